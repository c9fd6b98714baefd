"""Table 1 of the paper on the data at hand, and the rows beyond it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from src import artifacts, paths
from src.metrics import cosines, mean_prompt
from src.paths import Stage
from src.statistics import Interval, bootstrap, paired_bootstrap

PAPER = {
    "CLIP": 0.5642,
    "CLIP + data filter 1": 0.5684,
    "CLIP + data filter 2": 0.5721,
    "Model A": 0.5753,
    "Model B": 0.5531,
    "Ensemble": 0.5961,
}  # the paper's Table 1
MEAN_PROMPT = "Mean prompt"  # the row above it, blind to the image
OF_ALL = "Ensemble of all members"  # the row beyond it, where there are more than two

_NUMBERS = dict.fromkeys(("avg_cos", "low", "high", "seconds", "paper"), pl.Float64)
SCHEMA = pl.Schema({"model": pl.String, "rows_trained": pl.Int64, **_NUMBERS})


@dataclass(frozen=True)
class ScoredVariant:
    """One row of the table: a model and its scores on the out-of-fold rows."""

    name: str
    rows_trained: int | None  # None: not known, as of a member from outside
    cosines: np.ndarray  # (n,)
    seconds: float | None


def table1(
    variants: Sequence[ScoredVariant],
    *,
    groups: np.ndarray | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> pl.DataFrame:
    """Table 1: model, rows_trained, avg_cos, low, high (95 %), seconds, paper; in order.

    Raises ValueError unless all variants are scored on the same number of rows.
    """
    sizes = {variant.name: len(variant.cosines) for variant in variants}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"models are scored on different numbers of rows: {sizes}")

    rows = []
    for variant in variants:
        score = bootstrap(variant.cosines, groups=groups, n_bootstrap=n_bootstrap, seed=seed)
        of_score = (score.mean, score.low, score.high)
        beside = (variant.seconds, PAPER.get(variant.name))
        rows.append((variant.name, variant.rows_trained, *of_score, *beside))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def load_all(output: Path) -> pl.DataFrame:
    """Table 1 and the rows beyond it, as notebook 04 wrote them; `table1` is false for the latter.

    Raises FileNotFoundError naming the stage that has not run.
    """
    table = artifacts.load_table(output / paths.TABLE1).with_columns(table1=pl.lit(True))
    beyond = artifacts.load_table(output / paths.LADDER_TABLE).with_columns(table1=pl.lit(False))

    # a column that is empty in one of the two files has no type there
    both = pl.concat([table, beyond], how="diagonal_relaxed")
    return both.cast(SCHEMA)


# --- the variants of a run ---


@dataclass(frozen=True)
class Scoring:
    """The out-of-fold rows that every variant is scored on, and what the notebooks before left
    beside their predictions.
    """

    output: Path
    ids: list[str]
    truth: np.ndarray  # (n, d) float32 unit rows
    rows_kept: dict[str, int]  # of each step of paths.LADDER
    rows_store: int  # prompts in Model B's store, Model A's rows among them
    seconds: dict[str, float]  # training over all folds by variant; model_b: its notebook

    def variant(self, title: str, name: str, prediction: np.ndarray, *, rows: int) -> ScoredVariant:
        """The scored variant of a prediction (n, d); `name` is that of its artifacts."""
        score = cosines(self.truth, prediction)
        return ScoredVariant(title, rows, score, self.seconds.get(name))

    def out_of_fold(self, name: str) -> np.ndarray:
        """(n, d) float32: the out-of-fold predictions of a variant of notebook 02."""
        base = self.output / paths.OOF.format(variant=name)
        return artifacts.load_embeddings(base, self.ids)[1]


def scoring(output: Path, ids: Sequence[str], truth: np.ndarray) -> Scoring:
    """Gather from `output` what Table 1 shows beside the scores of the rows `ids`, whose targets
    are `truth`.
    """
    trained = artifacts.load_table(output / paths.TRAINED)
    seconds = trained.group_by("variant").agg(pl.col("seconds").sum())
    meta_b = artifacts.load_json(output / Stage.MODEL_B / paths.META)

    # the rows that each step of the ladder could learn from
    pairs = artifacts.load_table(output / paths.PAIRS)
    steps = (len(pairs), int(pairs["filter1"].sum()), len(ids), len(ids))
    return Scoring(
        output=output,
        ids=list(ids),
        truth=truth,
        rows_kept=dict(zip(paths.LADDER, steps, strict=True)),
        rows_store=len(artifacts.load_table(output / paths.STORE)),
        seconds=dict(seconds.select("variant", "seconds").iter_rows())
        | {"model_b": meta_b["seconds"]},
    )


def mean_prompt_variant(on: Scoring, fold: np.ndarray) -> ScoredVariant:
    """The first row of the table: the mean of the targets outside each row's `fold` (n,)."""
    return on.variant(MEAN_PROMPT, "mean", mean_prompt(on.truth, fold), rows=len(on.ids))


def paper_variants(on: Scoring, model_b: np.ndarray, ensemble: np.ndarray) -> list[ScoredVariant]:
    """The paper's six rows in order: the steps of notebook 02, Model B, and the ensemble of Models
    A and B.
    """
    variants = []
    for name, title in zip(paths.LADDER, PAPER, strict=False):
        prediction = on.out_of_fold(name)
        variants.append(on.variant(title, name, prediction, rows=on.rows_kept[name]))
    variants.append(on.variant("Model B", "model_b", model_b, rows=on.rows_store))

    # the ensemble takes both models, and next to no time itself
    seconds = on.seconds["model_a"] + on.seconds["model_b"]
    variants.append(ScoredVariant("Ensemble", on.rows_store, cosines(on.truth, ensemble), seconds))
    return variants


def further_variants(
    on: Scoring,
    members: Mapping[str, np.ndarray],
    sides: tuple[Sequence[str], Sequence[str]],
) -> list[ScoredVariant]:
    """The rows beyond Table 1: what else notebook 02 left, and each further member.

    `sides` names the members of Model A and those of Model B, the plain one first.
    """
    rows = len(on.ids)
    variants = []

    # for example the ablations of notebook 02
    for file in sorted((on.output / paths.TRAINED).parent.glob("oof_*.npy")):
        name = file.stem.removeprefix("oof_")
        if name not in paths.LADDER and name not in members:
            variants.append(on.variant(name, name, on.out_of_fold(name), rows=rows))

    # the first of each side is in the table above already
    of_a, of_b = sides
    variants += [on.variant(name, name, members[name], rows=rows) for name in of_a[1:]]
    variants += [on.variant(name, name, members[name], rows=on.rows_store) for name in of_b[1:]]
    return variants


def ladder_steps(
    variants: Sequence[ScoredVariant],
    *,
    groups: np.ndarray | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> list[tuple[str, Interval, float]]:
    """Each step of the paper's six rows: its name, its paired difference here, and the difference
    in the paper.

    The last step is that of the ensemble over the best single row, whichever it is here.
    """
    by_name = {variant.name: variant for variant in variants}
    single = [by_name[name] for name in PAPER if name != "Ensemble"]
    best = max(single, key=lambda variant: variant.cosines.mean())
    steps = (
        ("data filter 1", "CLIP", "CLIP + data filter 1"),
        ("data filter 2", "CLIP + data filter 1", "CLIP + data filter 2"),
        ("Model A: its whole recipe", "CLIP + data filter 2", "Model A"),
        (f"ensemble over {best.name}", best.name, "Ensemble"),
    )

    differences = []
    for step, before, after in steps:
        difference = paired_bootstrap(
            by_name[after].cosines,
            by_name[before].cosines,
            groups=groups,
            n_bootstrap=n_bootstrap,
            seed=seed,
        )
        differences.append((step, difference, PAPER[after] - PAPER[before]))
    return differences
