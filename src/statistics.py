"""Intervals by a bootstrap over groups, plain and paired."""

from dataclasses import dataclass

import numpy as np

DRAWN_AT_ONCE = 4_000_000  # indices of a part of the resamples


def standard_error(values: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Standard error of the mean of `values` (n,); rows of one group count as one draw."""
    deviation = values - np.mean(values, dtype=np.float64)
    group_sum = np.bincount(_group_numbers(len(values), groups), weights=deviation)
    return float(np.sqrt(np.square(group_sum).sum()) / len(values))


def _group_numbers(rows: int, groups: np.ndarray | None) -> np.ndarray:
    """(rows,) int64: the number of each row's group, from 0; without groups each row is one of its
    own.
    """
    if groups is None:
        return np.arange(rows)
    return np.unique(groups, return_inverse=True)[1]


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
    """Mean of `values` (n,) with the 2.5 and 97.5 percentiles over resamples; whole groups are
    drawn when given.

    Rows of one group are not independent, so drawing rows would make the interval too narrow.
    """
    bad = (~np.isfinite(values)).sum()
    if len(values) == 0 or bad:
        raise ValueError(f"{len(values)} values, {bad} of them NaN or infinite")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"{len(groups)} groups for {len(values)} values")

    # a group is drawn as a whole, so its sum and its size are all that is needed of it
    number = _group_numbers(len(values), groups)
    total = np.bincount(number, weights=values)
    count = np.bincount(number)
    n_groups = len(total)

    # in parts of so many resamples that the drawn indices fit the memory
    rng = np.random.default_rng(seed)
    means = np.empty(n_bootstrap)
    part = max(1, DRAWN_AT_ONCE // n_groups)
    for start in range(0, n_bootstrap, part):
        size = min(part, n_bootstrap - start)
        drawn = rng.integers(n_groups, size=(size, n_groups))
        means[start : start + size] = total[drawn].sum(axis=1) / count[drawn].sum(axis=1)

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
    """The mean of `first` - `second` (n,), row by row on the same rows, with its interval as in
    `bootstrap`.
    """
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape} values do not pair")
    return bootstrap(
        first.astype(np.float64) - second, groups=groups, n_bootstrap=n_bootstrap, seed=seed
    )


def verdict(difference: Interval) -> str:
    """`helps` where the whole interval of a difference lies above 0, `hurts` below it, else
    `unclear`.
    """
    if difference.low > 0:
        return "helps"
    if difference.high < 0:
        return "hurts"
    return "unclear"


def verdict_line(change: str, difference: Interval) -> str:
    """What changed, by how much, and whether that helps, in one line."""
    return f"{change}: {difference}, {verdict(difference)}"
