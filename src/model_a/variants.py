"""The models that notebook 02 trains, one a variant of Table 1, and their folds.

Three CLIP variants that differ in the rows they learn from, and Model A, once for each CLIP.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from src import artifacts, paths
from src.dask_workers import run
from src.encoder import Encoder
from src.model_a.folds import collect_fold_predictions, train_fold
from src.model_a.recipe import Recipe
from src.model_a.training_set import TrainingSet, prediction_set, training_set


@dataclass(frozen=True)
class Variant:
    """A recipe, the CLIP it starts from, and the rows it may learn from, `visible` (n,) bool."""

    name: str
    encoder: Encoder
    recipe: Recipe
    visible: np.ndarray
    data: TrainingSet
    test: TrainingSet

    def task(self, fold: np.ndarray, number: int, *, scored: np.ndarray, seed: int) -> dict:
        """What `train_fold` needs to train without fold `number` and to score its `scored` rows."""
        return {
            "rows": np.flatnonzero(self.visible & (fold != number)),
            "scored": np.flatnonzero(scored & (fold == number)),
            "recipe": self.recipe,
            "seed": seed + number,
            "label": f"{self.name}, fold {number}",
        }

    def bases(self, fold: np.ndarray, out: Path) -> list[Path]:
        """Where the folds lie, in order."""
        return [out / paths.FOLD.format(variant=self.name, fold=int(n)) for n in np.unique(fold)]


def member_clips(clip: str, extra_clips: Sequence[str]) -> dict[str, str]:
    """The members of Model A by name, each with the CLIP it is trained from."""
    further = {f"model_a_{n}": name for n, name in enumerate(extra_clips, start=2)}
    return {"model_a": clip} | further


def prepare(
    encoders: Mapping[str, Encoder],
    pairs: pl.DataFrame,
    test_images: pl.DataFrame,
    targets: np.ndarray,
    out: Path,
    *,
    recipe: Recipe,
    baseline: Recipe,
) -> dict[str, Variant]:
    """Every variant with its training set: the CLIP variants first, then Model A's members.

    `encoders` has one CLIP a member, `model_a` first; `targets` are (v, n, 384). The CLIP variants
    share one training set.
    """

    def sets(encoder: Encoder, recipe: Recipe) -> dict[str, TrainingSet]:
        train = training_set(
            encoder, pairs, out, name=f"pairs.{encoder.tag}", recipe=recipe, targets=targets
        )
        test = prediction_set(encoder, test_images, out, name=f"test.{encoder.tag}", recipe=recipe)
        return {"data": train, "test": test}

    filter1 = pairs["filter1"].to_numpy()
    filter2 = pairs["filter2"].to_numpy()
    visible_to = {
        "clip": np.ones(len(pairs), dtype=bool),
        "clip_filter1": filter1,
        "clip_filter2": filter2,
    }
    # the variants differ in the rows that they may learn from, not in what a row is
    first = encoders["model_a"]
    shared = sets(first, baseline)
    variants = {
        name: Variant(name, first, baseline, visible, **shared)
        for name, visible in visible_to.items()
    }
    for name, encoder in encoders.items():
        variants[name] = Variant(name, encoder, recipe, filter2, **sets(encoder, recipe))
    return variants


def train(
    variant: Variant,
    fold: np.ndarray,
    out: Path,
    *,
    scored: np.ndarray,
    seed: int,
    cluster: str | None = None,
) -> list[dict]:
    """Train the variant once without each fold; what `train_fold` says of each, with its names.

    `scored` (n,) bool are the rows that are predicted out-of-fold. Folds are Dask tasks where
    there is a `cluster`.
    """
    numbers = [int(n) for n in np.unique(fold)]
    tasks = [
        variant.task(fold, number, scored=scored, seed=seed) | {"base": base}
        for number, base in zip(numbers, variant.bases(fold, out), strict=True)
    ]
    # sent to each worker once, not with every fold
    shared = {"encoder": variant.encoder, "data": variant.data, "test": variant.test}
    records = run(train_fold, tasks, shared=shared, cluster=cluster)
    return [
        {"variant": variant.name, "fold": number, **record}
        for number, record in zip(numbers, records, strict=True)
    ]


def predictions(
    variant: Variant, fold: np.ndarray, out: Path, what: str
) -> tuple[list[str], np.ndarray]:
    """Ids and (n, 384) unit rows of the trained folds: `oof` joined, `test` averaged."""
    return collect_fold_predictions(variant.bases(fold, out), what)


def save_predictions(variant: Variant, fold: np.ndarray, out: Path) -> tuple[list[str], np.ndarray]:
    """Write the variant's out-of-fold and test predictions; ids and rows of the former."""
    oof = predictions(variant, fold, out, "oof")
    test = predictions(variant, fold, out, "test")
    artifacts.save_embeddings(out / paths.OOF.format(variant=variant.name), *oof)
    artifacts.save_embeddings(out / paths.TEST.format(variant=variant.name), *test)
    return oof


def interpolation_sentences(records: Sequence[Mapping]) -> str:
    """How many fits of `train` left their start, and what that gained on the inner split."""
    at_start = sum(record["factor"] == 0 for record in records)
    gains = []
    for record in records:
        score = {float(factor): value for factor, value in record["factors"].items()}
        gains.append(score[record["factor"]] - score[0.0])
    return (
        f"Of {len(records)} fits of Model A {at_start} stay at their start, "
        f"and {len(records) - at_start} move towards their best epoch. "
        f"On the inner validation split they gain {np.mean(gains):.4f} in the mean."
    )
