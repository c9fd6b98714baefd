"""Table 1 of the paper on the data at hand, and scores by label."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from src.statistics import bootstrap

PAPER = {
    "CLIP": 0.5642,
    "CLIP + data filter 1": 0.5684,
    "CLIP + data filter 2": 0.5721,
    "Model A": 0.5753,
    "Model B": 0.5531,
    "Ensemble": 0.5961,
}  # the paper's Table 1
OF_ALL = "Ensemble of all members"  # the row beyond it, where there are more than two


@dataclass(frozen=True)
class Scored:
    """One model on the out-of-fold rows."""

    model: str
    rows_trained: int
    cosines: np.ndarray  # (n,)
    seconds: float | None


def table1(
    rows: Sequence[Scored],
    *,
    groups: np.ndarray | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> pl.DataFrame:
    """Table 1: model, rows_trained, avg_cos, low, high (95 %), seconds, paper; in order. All scored on the same images."""
    sizes = {row.model: len(row.cosines) for row in rows}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"models are scored on different numbers of rows: {sizes}")
    table = []
    for row in rows:
        found = bootstrap(row.cosines, groups=groups, n_bootstrap=n_bootstrap, seed=seed)
        table.append(
            (
                row.model,
                row.rows_trained,
                found.mean,
                found.low,
                found.high,
                row.seconds,
                PAPER.get(row.model),
            )
        )
    numbers = dict.fromkeys(("avg_cos", "low", "high", "seconds", "paper"), pl.Float64)
    return pl.DataFrame(
        table, schema={"model": pl.String, "rows_trained": pl.Int64, **numbers}, orient="row"
    )


def by_label(
    values: np.ndarray,
    labels: Sequence[str],
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
    n_bootstrap: int = 1000,
) -> pl.DataFrame:
    """The mean of `values` (n,) for each label with its 95 % interval: label, rows, avg_cos, low, high; lowest first."""
    if len(labels) != len(values):
        raise ValueError(f"{len(labels)} labels for {len(values)} values")
    labels, table = np.asarray(labels), []
    for label in np.unique(labels):
        mine = labels == label
        found = bootstrap(
            values[mine],
            groups=None if groups is None else groups[mine],
            n_bootstrap=n_bootstrap,
            seed=seed,
        )
        table.append((str(label), int(mine.sum()), found.mean, found.low, found.high))
    schema = {
        "label": pl.String,
        "rows": pl.Int64,
        "avg_cos": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
    }
    return pl.DataFrame(table, schema=schema, orient="row").sort("avg_cos", "label")
