"""Distance to weight to prediction (equations 4 and 5), and the choice of K and the weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import polars as pl

from src.metrics import l2_normalize

KINDS = ("euclidean", "cosine")

ValueLookup = Callable[
    [np.ndarray], np.ndarray
]  # rows of the store, any shape -> their values (..., d)
Neighbors = tuple[
    np.ndarray, np.ndarray
]  # similarity, index: (q, k) each, as knn.search gives them


# --- equations 4 and 5 ---


def distance(similarity: np.ndarray, kind: str = "euclidean") -> np.ndarray:
    """Distance of unit vectors from their cosine: sqrt(max(2 - 2 s, 0)), or 1 - s; float64, in the shape of `similarity`."""
    if kind not in KINDS:
        raise ValueError(f"distance {kind!r} is not one of {KINDS}")
    apart = np.maximum(1 - similarity.astype(np.float64), 0)
    return np.sqrt(2 * apart) if kind == "euclidean" else apart


def weights(
    distance: np.ndarray, dim: float, delta: float, coef: float, *, inside: bool = False
) -> np.ndarray:
    """Equation 4, in the shape of `distance`: coef / (d^dim + delta), or with delta `inside` the exponent, as it is printed.

    Outside, delta bounds the weight of d = 0 at coef / delta. Inside, coef / d^(dim + delta), it does not: d = 0 weighs
    infinitely, and `fuse` takes the limit. ValueError when delta or coef is not positive, or a distance is negative or NaN.
    """
    if not (delta > 0 and coef > 0 and dim >= 0):
        raise ValueError(
            f"dim = {dim}, delta = {delta}, coef = {coef}: delta and coef must be positive, dim at least 0"
        )
    if not (distance >= 0).all():
        raise ValueError(
            f"{(~(distance >= 0)).sum()} of {distance.size} distances are negative or NaN"
        )
    with np.errstate(divide="ignore", over="ignore"):
        return coef / distance ** (dim + delta) if inside else coef / (distance**dim + delta)


@dataclass(frozen=True)
class Weighting:
    """What a neighbour weighs: equation 4 with all its constants, or, with `tau`, softmax(s / tau)."""

    dim: float = 6
    delta: float = 1e-4
    coef: float = 1e-3
    kind: str = "euclidean"
    inside: bool = False  # delta inside the exponent
    tau: float | None = None  # temperature; the other constants then have no effect

    def __call__(self, similarity: np.ndarray) -> np.ndarray:
        """(q, k) float64 weights of lists that stand best first; softmax up to a factor of each row."""
        if self.tau is None:
            return weights(
                distance(similarity, self.kind), self.dim, self.delta, self.coef, inside=self.inside
            )
        if not self.tau > 0:
            raise ValueError(f"tau = {self.tau} must be positive")
        similarity = similarity.astype(np.float64)
        return np.exp((similarity - similarity[:, :1]) / self.tau)

    def __str__(self) -> str:
        return f"dim {self.dim:g}" if self.tau is None else f"tau {self.tau:g}"


PRESETS = {  # K and the weights: as the paper prints equation 4, and as the notebook that it comes from has it
    "paper": (100, Weighting(dim=6, delta=1e-4, coef=1e-3, kind="euclidean", inside=True)),
    "public": (100, Weighting(dim=6, delta=1e-4, coef=1e-3, kind="cosine")),
}


def fuse(weight: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Equation 5, then unit length: mean over k of weight (q, k) times values (q, k, d), as (q, d) float32 unit rows.

    Where weights are infinite their rows share everything equally: the limit of distances that go to 0 together.
    """
    if values.ndim != 3 or weight.shape != values.shape[:2]:
        raise ValueError(
            f"weights of shape {weight.shape} do not fit values of shape {values.shape}"
        )
    return l2_normalize(
        (_limit(weight).astype(np.float32)[:, None] @ values)[:, 0] / weight.shape[1]
    )


def _limit(weight: np.ndarray) -> np.ndarray:
    """Weights with each row's largest at 1; a row with infinite ones keeps these alone."""
    infinite = np.isinf(weight)
    exact = infinite.any(axis=1, keepdims=True)
    finite = np.where(infinite, 0, weight)
    return np.where(exact, infinite, finite / np.where(exact, 1, finite.max(axis=1, keepdims=True)))


def fuse_neighbours(
    similarity: np.ndarray,
    index: np.ndarray,
    take: ValueLookup,
    weighting: Weighting,
    *,
    k: int,
    rows: int = 256,
) -> np.ndarray:
    """Prediction (q, d) float32 unit rows from the first `k` neighbours; values are taken for `rows` queries at a time."""
    _check_lists(similarity, index, k)
    blocks = (slice(start, start + rows) for start in range(0, max(1, len(index)), rows))
    return np.concatenate(
        [fuse(weighting(similarity[block, :k]), take(index[block, :k])) for block in blocks]
    )


def _check_lists(similarity: np.ndarray, index: np.ndarray, k: int) -> None:
    if similarity.shape != index.shape or similarity.ndim != 2:
        raise ValueError(
            f"similarity has shape {similarity.shape}, index {index.shape}; both must be (q, K)"
        )
    if not 1 <= k <= index.shape[1]:
        raise ValueError(f"k = {k} is not within 1..{index.shape[1]}, the neighbours searched")


# --- K and the weights, out-of-fold ---


@dataclass(frozen=True)
class TunedWeights:
    """What `tune` found: the whole grid, the choice over all rows, the choice for each fold, the cross-fitted rows."""

    grid: pl.DataFrame  # k, weighting, avg_cos over all rows
    k: int
    weighting: Weighting
    choices: pl.DataFrame  # fold, k, weighting: chosen on the other folds
    prediction: np.ndarray  # (q, d) float32 unit rows; each fold by its own choice
    final: np.ndarray  # (q, d) float32 unit rows; all by the choice over all rows


def tune(
    similarity: np.ndarray,
    index: np.ndarray,
    take: ValueLookup,
    truth: np.ndarray,
    fold: np.ndarray,
    *,
    k_grid: Sequence[int],
    weightings: Sequence[Weighting],
) -> TunedWeights:
    """Score every (k, weighting) from one search, and predict each fold with the pair that is best on the other folds.

    `truth` (q, d) unit rows and `fold` (q,) int64 belong to the queries. At least two folds are needed.
    """
    folds = np.unique(fold)
    if len(folds) < 2:
        raise ValueError(
            f"choosing on the other folds needs at least 2 folds, got {folds.tolist()}"
        )
    for k in k_grid:
        _check_lists(similarity, index, k)
    pairs = list(product(sorted(k_grid), weightings))
    score = _grid_cosines(similarity, index, take, truth, sorted(k_grid), weightings)

    def predict(rows: np.ndarray, pair: tuple[int, Weighting]) -> np.ndarray:
        return fuse_neighbours(similarity[rows], index[rows], take, pair[1], k=pair[0])

    best, prediction, choices = pairs[int(score.mean(axis=0).argmax())], np.empty_like(truth), []
    for f in folds:
        pair = pairs[int(score[fold != f].mean(axis=0).argmax())]
        prediction[fold == f] = predict(fold == f, pair)
        choices.append((int(f), pair[0], str(pair[1])))
    same = all((k, name) == (best[0], str(best[1])) for _, k, name in choices)
    return TunedWeights(
        grid=pl.DataFrame(
            {
                "k": [k for k, _ in pairs],
                "weighting": [str(w) for _, w in pairs],
                "avg_cos": score.mean(axis=0),
            }
        ),
        k=best[0],
        weighting=best[1],
        choices=pl.DataFrame(
            choices, schema={"fold": pl.Int64, "k": pl.Int64, "weighting": pl.String}, orient="row"
        ),
        prediction=prediction,
        final=prediction if same else predict(np.ones(len(fold), bool), best),
    )


def _grid_cosines(similarity, index, take, truth, k_grid, weightings, rows=256) -> np.ndarray:
    """(q, len(k_grid) * len(weightings)) float64 cosines with the truth, k the slower axis; each neighbour is summed once."""
    score = np.empty((len(index), len(k_grid), len(weightings)))
    for start in range(0, len(index), rows):
        block = slice(start, start + rows)
        near = take(index[block, : k_grid[-1]])
        weight = np.stack(
            [_limit(w(similarity[block, : k_grid[-1]])) for w in weightings], axis=1
        ).astype(np.float32)
        fused = np.zeros((len(near), len(weightings), near.shape[2]), np.float32)
        for i, (before, k) in enumerate(zip([0, *k_grid], k_grid, strict=False)):
            fused += weight[:, :, before:k] @ near[:, before:k]
            along = np.einsum("qjd,qd->qj", fused, truth[block])
            score[block, i] = along / np.linalg.norm(fused, axis=2)
    return score.reshape(len(index), -1)


def at_edge(
    tuned: TunedWeights, k_grid: Sequence[int], weightings: Sequence[Weighting]
) -> list[str]:
    """In words, which choices over all rows lie at an end of their grid, where a wider one might do better."""
    kind = (
        [w.tau for w in weightings if w.tau is not None]
        if tuned.weighting.tau is not None
        else [w.dim for w in weightings if w.tau is None]
    )
    chosen = tuned.weighting.dim if tuned.weighting.tau is None else tuned.weighting.tau
    found = [f"K = {tuned.k}"] if len(k_grid) > 1 and tuned.k in (min(k_grid), max(k_grid)) else []
    return found + (
        [str(tuned.weighting)] if len(kind) > 1 and chosen in (min(kind), max(kind)) else []
    )
