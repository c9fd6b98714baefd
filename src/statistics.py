"""Intervals by a bootstrap over groups, plain and paired."""

from dataclasses import dataclass

import numpy as np

# --- intervals and tables ---


def standard_error(values: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Standard error of the mean of `values` (n,); rows of one group count as one draw."""
    label = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    apart = np.bincount(label, weights=values - np.mean(values, dtype=np.float64))
    return float(np.sqrt(np.square(apart).sum()) / len(values))


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap(
    values: np.ndarray, *, groups: np.ndarray | None = None, n_bootstrap: int = 2000, seed: int = 0
) -> Interval:
    """Mean of `values` (n,) with the 2.5 and 97.5 percentiles over resamples; whole groups are drawn when given.

    Rows of one group are not independent, so drawing rows would make the interval too narrow.
    """
    if len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(
            f"{len(values)} values, {(~np.isfinite(values)).sum()} of them NaN or infinite"
        )
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"{len(groups)} groups for {len(values)} values")
    label = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    total, count = np.bincount(label, weights=values), np.bincount(label)
    rng, means, rows = (
        np.random.default_rng(seed),
        np.empty(n_bootstrap),
        max(1, 4_000_000 // len(total)),
    )
    for start in range(0, n_bootstrap, rows):
        drawn = rng.integers(len(total), size=(min(rows, n_bootstrap - start), len(total)))
        means[start : start + rows] = total[drawn].sum(axis=1) / count[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(np.mean(values, dtype=np.float64)), float(low), float(high))


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean of `first` - `second` (n,), row by row on the same rows, with its interval as in `bootstrap`."""
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape} values do not pair")
    return bootstrap(
        first.astype(np.float64) - second, groups=groups, n_bootstrap=n_bootstrap, seed=seed
    )


def verdict(difference: Interval) -> str:
    """`helps` where the whole interval of a difference lies above 0, `hurts` below it, else `unclear`."""
    if difference.low > 0:
        return "helps"
    if difference.high < 0:
        return "hurts"
    return "unclear"
