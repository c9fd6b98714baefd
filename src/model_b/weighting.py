"""Distance to weight to prediction (equations 4 and 5), and the choice of K and the weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import polars as pl

from src.metrics import l2_normalize

KINDS = ("euclidean", "cosine")

ValueLookup = Callable[[np.ndarray], np.ndarray]  # rows of the run, any shape -> values (..., d)


# --- equations 4 and 5 ---


def distance(similarity: np.ndarray, kind: str = "euclidean") -> np.ndarray:
    """Distance of unit vectors from their cosine: sqrt(max(2 - 2 s, 0)), or 1 - s; float64,
    `similarity`'s shape.
    """
    if kind not in KINDS:
        raise ValueError(f"distance {kind!r} is not one of {KINDS}")
    cosine_distance = np.maximum(1 - similarity.astype(np.float64), 0)
    return np.sqrt(2 * cosine_distance) if kind == "euclidean" else cosine_distance


def weights(
    distance: np.ndarray, dim: float, delta: float, coef: float, *, inside: bool = False
) -> np.ndarray:
    """Equation 4, in the shape of `distance`: coef / (d^dim + delta), or with delta `inside` the
    exponent, as printed.

    Outside, delta bounds the weight of d = 0 at coef / delta. Inside, coef / d^(dim + delta), it
    does not: d = 0 weighs infinitely, and `fuse` takes the limit. ValueError when delta or coef is
    not positive, or a distance negative or NaN.
    """
    if not (delta > 0 and coef > 0 and dim >= 0):
        raise ValueError(
            f"dim = {dim}, delta = {delta}, coef = {coef}: "
            "delta and coef must be positive, dim at least 0"
        )
    invalid = ~(distance >= 0)
    if invalid.any():
        raise ValueError(f"{invalid.sum()} of {distance.size} distances are negative or NaN")

    # at d = 0 a weight may be infinite, which `fuse` takes as the limit
    with np.errstate(divide="ignore", over="ignore"):
        return coef / distance ** (dim + delta) if inside else coef / (distance**dim + delta)


@dataclass(frozen=True)
class Weighting:
    """What a neighbor weighs: equation 4 with its constants, or, with `tau`, softmax(s / tau)."""

    dim: float = 6
    delta: float = 1e-4
    coef: float = 1e-3
    kind: str = "euclidean"
    inside: bool = False  # delta inside the exponent
    tau: float | None = None  # temperature; the other constants then have no effect

    def __call__(self, similarity: np.ndarray) -> np.ndarray:
        """(q, k) float64 weights of lists sorted best first; softmax up to a factor of each row."""
        if self.tau is None:
            d = distance(similarity, self.kind)
            return weights(d, self.dim, self.delta, self.coef, inside=self.inside)
        if not self.tau > 0:
            raise ValueError(f"tau = {self.tau} must be positive")

        # less the row's highest similarity, so that no power overflows
        similarity = similarity.astype(np.float64)
        return np.exp((similarity - similarity[:, :1]) / self.tau)

    def __str__(self) -> str:
        return f"dim {self.dim:g}" if self.tau is None else f"tau {self.tau:g}"


# K and the weights: as the paper prints equation 4, and as the notebook that it comes from has it
PRESETS = {
    "paper": (100, Weighting(dim=6, delta=1e-4, coef=1e-3, kind="euclidean", inside=True)),
    "public": (100, Weighting(dim=6, delta=1e-4, coef=1e-3, kind="cosine")),
}


def fuse(weight: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Equation 5, then unit length: the mean over k of weight (q, k) times values (q, k, d), (q, d)
    float32 unit rows.

    Where weights are infinite their rows share everything equally: the limit of distances that go
    to 0 together.
    """
    if values.ndim != 3 or weight.shape != values.shape[:2]:
        raise ValueError(
            f"weights of shape {weight.shape} do not fit values of shape {values.shape}"
        )
    weight = finite_weights(weight).astype(np.float32)
    weighted_sum = (weight[:, None] @ values)[:, 0]
    return l2_normalize(weighted_sum / weight.shape[1])


def finite_weights(weight: np.ndarray) -> np.ndarray:
    """Weights (q, k) with each row's largest at 1; a row with infinite ones keeps these alone."""
    infinite = np.isinf(weight)
    any_infinite = infinite.any(axis=1, keepdims=True)
    finite = np.where(infinite, 0, weight)
    largest = np.where(any_infinite, 1, finite.max(axis=1, keepdims=True))
    return np.where(any_infinite, infinite, finite / largest)


def weight_shares(weight: np.ndarray, total: float) -> np.ndarray:
    """Weights (q, k) scaled so that each row sums to `total`."""
    weight = finite_weights(weight)
    return total * weight / weight.sum(axis=1, keepdims=True)


def fuse_neighbors(
    similarity: np.ndarray,
    index: np.ndarray,
    lookup: ValueLookup,
    weighting: Weighting,
    *,
    k: int,
    rows: int = 256,
) -> np.ndarray:
    """Prediction (q, d) float32 unit rows from the first `k` neighbors; values are read for `rows`
    queries at a time.
    """
    _check_lists(similarity, index, k)
    predictions = []
    for start in range(0, max(1, len(index)), rows):
        block = slice(start, start + rows)
        weight = weighting(similarity[block, :k])
        predictions.append(fuse(weight, lookup(index[block, :k])))
    return np.concatenate(predictions)


def merge_weighted(
    indices: Sequence[np.ndarray], weights: Sequence[np.ndarray], depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Several lists of each query as one: `index` and `weight` (q, depth), largest weight first,
    ties by index.

    A prompt's weights are summed. Where a query has fewer than `depth` different prompts, all lists
    are that short.
    """
    index: np.ndarray = np.concatenate(indices, axis=1)
    weight: np.ndarray = np.concatenate(weights, axis=1)

    # bring equal prompts of a row side by side, and number the different ones
    order = np.argsort(index, axis=1, kind="stable")
    index = np.take_along_axis(index, order, axis=1)
    weight = np.take_along_axis(weight, order, axis=1)
    is_first = np.ones_like(index, bool)
    is_first[:, 1:] = index[:, 1:] != index[:, :-1]
    number = is_first.cumsum(axis=1) - 1

    # one entry for each different prompt, with the sum of its weights
    summed = np.zeros_like(weight)
    np.add.at(summed, (np.arange(len(index))[:, None], number), weight)
    prompts = np.zeros_like(index)
    np.put_along_axis(prompts, number, index, axis=1)

    # lists are as long as that of the query with the fewest different prompts
    fewest = int(is_first.sum(axis=1).min(initial=index.shape[1]))
    order = np.lexsort((prompts, -summed), axis=1)[:, : min(depth, fewest)]
    return np.take_along_axis(prompts, order, axis=1), np.take_along_axis(summed, order, axis=1)


def _check_lists(similarity: np.ndarray, index: np.ndarray, k: int) -> None:
    if similarity.shape != index.shape or similarity.ndim != 2:
        raise ValueError(
            f"similarity has shape {similarity.shape}, index {index.shape}; both must be (q, K)"
        )
    if not 1 <= k <= index.shape[1]:
        raise ValueError(f"k = {k} is not within 1..{index.shape[1]}, the neighbors searched")


# --- K and the weights, out-of-fold ---


@dataclass(frozen=True)
class TunedWeights:
    """What `tune` chose: over all rows, for each fold on the others, and what these predict."""

    grid: pl.DataFrame  # k, weighting, avg_cos over all rows
    k: int
    weighting: Weighting
    choices: pl.DataFrame  # fold, k, weighting: chosen on the other folds
    prediction: np.ndarray  # (q, d) float32 unit rows; each fold by its own choice
    final: np.ndarray  # (q, d) float32 unit rows; all by the choice over all rows


def tune(
    similarity: np.ndarray,
    index: np.ndarray,
    lookup: ValueLookup,
    truth: np.ndarray,
    fold: np.ndarray,
    *,
    k_grid: Sequence[int],
    weightings: Sequence[Weighting],
) -> TunedWeights:
    """Score every (k, weighting) from one search, and predict each fold with the pair that is best
    on the other folds.

    `truth` (q, d) unit rows and `fold` (q,) int64 belong to the queries. At least two folds are
    needed.
    """
    folds = np.unique(fold)
    if len(folds) < 2:
        raise ValueError(
            f"choosing on the other folds needs at least 2 folds, got {folds.tolist()}"
        )
    k_grid = sorted(k_grid)
    for k in k_grid:
        _check_lists(similarity, index, k)

    # one search and one table of cosines serve every choice
    pairs = list(product(k_grid, weightings))
    score = _grid_cosines(similarity, index, lookup, truth, k_grid, weightings)
    mean_score = score.mean(axis=0)

    def predict(rows: np.ndarray, pair: tuple[int, Weighting]) -> np.ndarray:
        k, weighting = pair
        return fuse_neighbors(similarity[rows], index[rows], lookup, weighting, k=k)

    # each fold is predicted with the pair that is best on the others
    prediction = np.empty_like(truth)
    chosen_pairs = []
    for f in folds:
        pair = pairs[int(score[fold != f].mean(axis=0).argmax())]
        prediction[fold == f] = predict(fold == f, pair)
        chosen_pairs.append(pair)

    best = pairs[int(mean_score.argmax())]
    all_alike = all(pair == best for pair in chosen_pairs)
    return TunedWeights(
        grid=pl.DataFrame(
            {
                "k": [k for k, _ in pairs],
                "weighting": [str(weighting) for _, weighting in pairs],
                "avg_cos": mean_score,
            }
        ),
        k=best[0],
        weighting=best[1],
        choices=pl.DataFrame(
            {
                "fold": folds.astype(np.int64),
                "k": [k for k, _ in chosen_pairs],
                "weighting": [str(weighting) for _, weighting in chosen_pairs],
            }
        ),
        prediction=prediction,
        final=prediction if all_alike else predict(np.ones(len(fold), bool), best),
    )


def _grid_cosines(
    similarity: np.ndarray,
    index: np.ndarray,
    lookup: ValueLookup,
    truth: np.ndarray,
    k_grid: Sequence[int],
    weightings: Sequence[Weighting],
    *,
    rows: int = 256,
) -> np.ndarray:
    """(q, len(k_grid) * len(weightings)) float64 cosines of predictions with `truth`, k the slower
    axis.

    `k_grid` ascends, so the sum for one k continues that for the k before it: each neighbor is
    added once.
    """
    score = np.empty((len(index), len(k_grid), len(weightings)))
    largest_k = k_grid[-1]
    for start in range(0, len(index), rows):
        block = slice(start, start + rows)
        values = lookup(index[block, :largest_k])
        by_weighting = [finite_weights(w(similarity[block, :largest_k])) for w in weightings]
        weight = np.stack(by_weighting, axis=1).astype(np.float32)

        fused = np.zeros((len(values), len(weightings), values.shape[2]), np.float32)
        previous_k = 0
        for column, k in enumerate(k_grid):
            fused += weight[:, :, previous_k:k] @ values[:, previous_k:k]
            along_truth = np.einsum("qjd,qd->qj", fused, truth[block])
            score[block, column] = along_truth / np.linalg.norm(fused, axis=2)
            previous_k = k
    return score.reshape(len(index), -1)


def choices_at_edge(
    tuned: TunedWeights, k_grid: Sequence[int], weightings: Sequence[Weighting]
) -> list[str]:
    """The choices over all rows that lie at an end of their grid, in words: a wider grid might do
    better.
    """
    at_edge = []
    if len(k_grid) > 1 and tuned.k in (min(k_grid), max(k_grid)):
        at_edge.append(f"K = {tuned.k}")

    # equation 4's exponents and the temperatures are two grids
    constant = "dim" if tuned.weighting.tau is None else "tau"
    same_kind = [w for w in weightings if (w.tau is None) == (tuned.weighting.tau is None)]
    tried = [getattr(w, constant) for w in same_kind]
    if len(tried) > 1 and getattr(tuned.weighting, constant) in (min(tried), max(tried)):
        at_edge.append(str(tuned.weighting))
    return at_edge


def choice_sentences(
    tuned: TunedWeights, k_grid: Sequence[int], weightings: Sequence[Weighting]
) -> str:
    """What is best over all rows, and whether a wider grid might do better."""
    at_edge = choices_at_edge(tuned, k_grid, weightings)
    sentence = f"Best over all rows: K = {tuned.k}, {tuned.weighting}."
    if not at_edge:
        return f"{sentence} Both lie inside their grids."
    where = ", ".join(at_edge)
    return f"{sentence} At the edge of its grid, where a wider one might do better: {where}."
