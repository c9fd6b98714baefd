"""The scores of finished runs in one table: Table 1 and the rows beyond it, out-of-fold and on the
test images.
"""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from src import artifacts, paths
from src.ensemble import table1
from src.paths import display_path


def ladder(output: Path) -> pl.DataFrame:
    """Every scored variant of a run: Table 1's columns, `table1` (false for the rows beyond it),
    test, test_low, test_high.

    The test columns are null where the truth is not known. Raises FileNotFoundError naming the
    stage that has not run.
    """
    variants = table1.load_all(output)
    test_names = {"avg_cos": "test", "low": "test_low", "high": "test_high"}
    if not (output / paths.TEST_SCORES).exists():
        return variants.with_columns(
            pl.lit(None, pl.Float64).alias(name) for name in test_names.values()
        )
    test = artifacts.load_table(output / paths.TEST_SCORES).rename(test_names)
    return variants.join(test, on="model", how="left", maintain_order="left")


def over_runs(outputs: Sequence[Path]) -> pl.DataFrame:
    """`ladder` of several runs in one: the mean of each number, and `spread`, `test_spread`:
    standard deviations.

    Seconds are those of the first run: later ones may find in its cache what the first had to
    compute.
    """
    # the first run's order, which sorting by `place` gives back
    tables = []
    for run, output in enumerate(outputs):
        table = ladder(output).with_row_index("place")
        tables.append(table.with_columns(run=pl.lit(run)))

    numbers = ("avg_cos", "low", "high", "paper", "test", "test_low", "test_high")
    merged = (
        pl.concat(tables)
        .group_by("model", "table1")
        .agg(
            pl.col("place").min(),
            pl.col("seconds").filter(pl.col("run") == 0).first(),
            pl.len().alias("runs"),
            pl.col("rows_trained").mean().round().cast(pl.Int64),
            *[pl.col(name).mean() for name in numbers],
            spread=pl.col("avg_cos").std(),
            test_spread=pl.col("test").std(),
        )
    )
    return merged.sort("place").drop("place")


def gains(outputs: Sequence[Path]) -> list[dict]:
    """Each run's paired gain over its better single member, and its blend: output, better_single,
    mean, low, high, weights.
    """
    rows = []
    for output in outputs:
        blend = artifacts.load_json(output / paths.BLEND)
        row = {"output": display_path(output), **blend["difference"]}
        row["better_single"] = blend["better_single"]
        row["weights"] = blend["weights"]
        rows.append(row)
    return rows


# --- numbers as text ---


def number(value: float | None, digits: int = 4) -> str:
    """`.6802`, as papers print it; empty for None."""
    return "" if value is None else f"{value:.{digits}f}".replace("0.", ".", 1)


def signed(value: float) -> str:
    """`+.0054` or `-.0003`."""
    return f"{value:+.4f}".replace("0.", ".", 1)


def span(low: float | None, high: float | None) -> str:
    """`.6790 to .6814`; empty where an end is None."""
    return "" if low is None or high is None else f"{number(low)} to {number(high)}"


def duration(seconds: float | None) -> str:
    """`42 s`, `3.1 min` or `2.0 h`; empty for None."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.0f}\u00a0s"
    if seconds < 6000:
        return f"{seconds / 60:.1f}\u00a0min"
    return f"{seconds / 3600:.1f}\u00a0h"
