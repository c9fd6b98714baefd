"""The blend of Models A and B (equation 6), its alpha, and the intervals and the table that judge it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.optimize import minimize_scalar

from src.metrics import cosines, unit


def blend(a: np.ndarray, b: np.ndarray, alpha: float) -> np.ndarray:
    """Equation 6 on unit rows, then unit length: alpha a + (1 - alpha) b, (n, d) float32."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha = {alpha} is not within 0..1")
    if a.shape != b.shape:
        raise ValueError(f"a has shape {a.shape}, b {b.shape}")
    return unit(alpha * unit(a) + (1 - alpha) * unit(b))


def search_alpha(truth: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The alpha in [0, 1] with the highest mean cosine of the blend: a grid of hundredths, then refined around its best."""
    score = _mean_score(truth, a, b)
    grid = np.linspace(0, 1, 101)
    best = float(max(grid, key=score))
    ends = max(best - 0.01, 0), min(best + 0.01, 1)
    refined = float(minimize_scalar(lambda alpha: -score(alpha), bounds=ends, method="bounded").x)
    return max(best, refined, key=score)


def curve(truth: np.ndarray, a: np.ndarray, b: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """(len(alphas),) float64: the mean cosine of the blend at each alpha."""
    score = _mean_score(truth, a, b)
    return np.array([score(alpha) for alpha in alphas])


def _mean_score(truth: np.ndarray, a: np.ndarray, b: np.ndarray) -> Callable[[float], float]:
    # the blend's cosine needs only three numbers a row, so an alpha costs n operations instead of n d
    ta, tb, ab = (cosines(*pair).astype(np.float64) for pair in ((truth, a), (truth, b), (a, b)))

    def score(alpha: float) -> float:
        length = np.sqrt(np.maximum(alpha**2 + (1 - alpha) ** 2 + 2 * alpha * (1 - alpha) * ab, 1e-12))
        return float(np.mean((alpha * ta + (1 - alpha) * tb) / length))

    return score


def cross_fit(truth: np.ndarray, a: np.ndarray, b: np.ndarray, fold: np.ndarray) -> tuple[np.ndarray, dict[int, float]]:
    """The blend (n, d) of each fold by the alpha found on the other folds, and that alpha for each fold."""
    folds = np.unique(fold)
    if len(folds) < 2:
        raise ValueError(f"alpha from the other folds needs at least 2 folds, got {folds.tolist()}")
    prediction, alphas = np.empty_like(a), {}
    for f in folds:
        mine = fold == f
        alphas[int(f)] = search_alpha(truth[~mine], a[~mine], b[~mine])
        prediction[mine] = blend(a[mine], b[mine], alphas[int(f)])
    return prediction, alphas


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap(
    values: np.ndarray, *, groups: np.ndarray | None = None, samples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of `values` (n,) with the 2.5 and 97.5 percentiles over resamples; whole groups are drawn when given.

    Rows of one group are not independent, so drawing rows would make the interval too narrow.
    """
    if len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"{len(values)} values, {(~np.isfinite(values)).sum()} of them NaN or infinite")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"{len(groups)} groups for {len(values)} values")
    label = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    total, count = np.bincount(label, weights=values), np.bincount(label)
    rng, means, rows = np.random.default_rng(seed), np.empty(samples), max(1, 4_000_000 // len(total))
    for start in range(0, samples, rows):
        drawn = rng.integers(len(total), size=(min(rows, samples - start), len(total)))
        means[start : start + rows] = total[drawn].sum(axis=1) / count[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(np.mean(values, dtype=np.float64)), float(low), float(high))


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, *, groups: np.ndarray | None = None, samples: int = 2000, seed: int = 0
) -> Interval:
    """The mean of `first` - `second` (n,), row by row on the same rows, with its interval as in `bootstrap`."""
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape} values do not pair")
    return bootstrap(first.astype(np.float64) - second, groups=groups, samples=samples, seed=seed)


@dataclass(frozen=True)
class Scored:
    """One model on the out-of-fold rows."""

    model: str
    rows_trained: int
    cosines: np.ndarray  # (n,)
    seconds: float


def table1(
    rows: Sequence[Scored], *, groups: np.ndarray | None = None, samples: int = 2000, seed: int = 0
) -> pl.DataFrame:
    """Table 1: model, rows_trained, avg_cos, low, high (95 %), seconds; in order. All rows scored on the same pictures."""
    sizes = {row.model: len(row.cosines) for row in rows}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"models are scored on different numbers of rows: {sizes}")
    table = []
    for row in rows:
        found = bootstrap(row.cosines, groups=groups, samples=samples, seed=seed)
        table.append((row.model, row.rows_trained, found.mean, found.low, found.high, row.seconds))
    columns = {"model": pl.String, "rows_trained": pl.Int64, "avg_cos": pl.Float64, "low": pl.Float64}
    return pl.DataFrame(table, schema={**columns, "high": pl.Float64, "seconds": pl.Float64}, orient="row")
