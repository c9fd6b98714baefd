"""The models that notebook 02 trains, one a variant of Table 1, and their folds.

Three CLIP variants that differ in the rows they learn from, and Model A, once for each CLIP.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import polars as pl

from src import artifacts, paths
from src.dask_workers import run
from src.encoder import Encoder
from src.model_a.averaging import SEED_STEP, SINGLE, Averaging
from src.model_a.fit import FinalPlan
from src.model_a.folds import collect_oof, collect_test, train_fold
from src.model_a.recipe import Recipe
from src.model_a.training_set import TrainingSet, prediction_set, training_set


@dataclass(frozen=True)
class Variant:
    """A recipe, the CLIP it starts from, and the rows it may learn from, `visible` (n,) bool.

    `averaging` says what its predictions are means of.
    """

    name: str
    encoder: Encoder
    recipe: Recipe
    visible: np.ndarray
    data: TrainingSet
    test: TrainingSet
    averaging: Averaging = SINGLE

    def task(self, fold: np.ndarray, number: int, *, scored: np.ndarray, seed: int) -> dict:
        """What `train_fold` needs to train without fold `number` and to score its `scored` rows."""
        return {
            "rows": np.flatnonzero(self.visible & (fold != number)),
            "scored": np.flatnonzero(scored & (fold == number)),
            "recipe": self.recipe,
            "seed": seed + number,
            "label": f"{self.name}, fold {number}",
        }

    def bases(self, fold: np.ndarray, out: Path) -> list[list[Path]]:
        """Where the fits of each fold lie, folds in order."""
        return [self.averaging.fold_bases(out, self.name, int(n)) for n in np.unique(fold)]


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
    averaging: Averaging = SINGLE,
    cluster: str | None = None,
) -> dict[str, Variant]:
    """Every variant with its training set: the CLIP variants first, then Model A's members.

    `encoders` has one CLIP a member, `model_a` first; `targets` are (v, n, 384). The CLIP variants
    share one training set; `averaging` is that of Model A's members. Images of a size that notebook
    01 has not decoded are decoded here, by the workers of a `cluster` where there is one.
    """

    def sets(encoder: Encoder, recipe: Recipe) -> tuple[TrainingSet, TrainingSet]:
        train = training_set(
            encoder,
            pairs,
            out,
            name=f"pairs.{encoder.tag}",
            recipe=recipe,
            targets=targets,
            cluster=cluster,
        )
        test = prediction_set(
            encoder,
            test_images,
            out,
            name=f"test.{encoder.tag}",
            recipe=recipe,
            cluster=cluster,
        )
        return train, test

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
        name: Variant(name, first, baseline, visible, *shared)
        for name, visible in visible_to.items()
    }
    for name, encoder in encoders.items():
        own = sets(encoder, recipe)
        variants[name] = Variant(name, encoder, recipe, filter2, *own, averaging)
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
    """Train the variant without each fold, once per seed; returns `train_fold`'s records with
    names.

    `scored` (n,) bool are the rows that are predicted out-of-fold. Fits are Dask tasks where there
    is a `cluster`.
    """
    names = []
    tasks = []
    for number, bases in zip(np.unique(fold).tolist(), variant.bases(fold, out), strict=True):
        task = variant.task(fold, number, scored=scored, seed=seed)
        for n, base in enumerate(bases):
            names.append({"variant": variant.name, "fold": number, "seed": n})
            tasks.append(_of_seed(task, n) | {"base": base, "views": variant.averaging.views})

    records = run(train_fold, tasks, shared=_shared(variant), cluster=cluster)
    return [{**name, **record} for name, record in zip(names, records, strict=True)]


def train_on_all(
    variant: Variant,
    out: Path,
    records: Sequence[Mapping],
    *,
    seed: int,
    cluster: str | None = None,
) -> list[dict]:
    """The final fits of the variant, if it has any, from the `records` of its folds. Returns
    `train_fold`'s record of each; no row is left to score.
    """
    bases = variant.averaging.final_bases(out, variant.name)
    if not bases:
        return []

    task = {
        "rows": np.flatnonzero(variant.visible),
        "scored": np.empty(0, dtype=np.int64),
        "recipe": variant.recipe,
        "plan": FinalPlan.from_records(records),
        "seed": seed,
        "views": variant.averaging.views,
        "label": f"{variant.name}, all rows",
    }
    tasks = [_of_seed(task, n) | {"base": base} for n, base in enumerate(bases)]
    return run(train_fold, tasks, shared=_shared(variant), cluster=cluster)


def _shared(variant: Variant) -> dict:
    """What all fits of a variant have in common: sent to each worker once, not with every fit."""
    return {"encoder": variant.encoder, "data": variant.data, "test": variant.test}


def _of_seed(task: dict, n: int) -> dict:
    """The task of a fold's `n`-th fit: another seed, and a label that says so."""
    if n == 0:
        return task
    return task | {
        "seed": task["seed"] + n * SEED_STEP,
        "label": f"{task['label']}, seed {n}",
    }


def predictions(
    variant: Variant, fold: np.ndarray, out: Path, what: str
) -> tuple[list[str], np.ndarray]:
    """Ids and (n, 384) unit rows of the trained fits: `oof` joined, `test` averaged."""
    bases = variant.bases(fold, out)
    if what == "oof":
        return collect_oof(bases)
    final = variant.averaging.final_bases(out, variant.name)
    return collect_test([*chain.from_iterable(bases), *final])


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
