"""Distance to weight to prediction (equations 4 and 5), and the choice of K and the weights."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from src.metrics import l2_normalize

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("euclidean", "cosine")

# by device: neighbors whose values are looked up together, and bytes of values used at a time
BLOCK_NEIGHBORS = {"cpu": 2**17, "cuda": 2**21}
PART_BYTES = {"cpu": 4 * 2**20, "cuda": 2**30}

ValueLookup = Callable[[np.ndarray], np.ndarray]  # rows of the run, any shape -> values (..., d)


# --- equations 4 and 5 ---


def distance(similarity: np.ndarray, kind: str = "euclidean") -> np.ndarray:
    """Distance of unit vectors from their cosine: sqrt(max(2 - 2 s, 0)), or 1 - s; float64,
    `similarity`'s shape.
    """
    return _distance(_tensor(similarity), kind).numpy()


def _distance(similarity: "Tensor", kind: str) -> "Tensor":
    _check_kind(kind)
    cosine_distance = (1 - similarity.double()).clamp(min=0)
    return (2 * cosine_distance).sqrt() if kind == "euclidean" else cosine_distance


def weights(
    distance: np.ndarray, dim: float, delta: float, coef: float, *, inside: bool = False
) -> np.ndarray:
    """Equation 4, in the shape of `distance`: coef / (d^dim + delta), or with delta `inside` the
    exponent, as printed.

    Outside, delta bounds the weight of d = 0 at coef / delta. Inside, coef / d^(dim + delta), it
    does not: d = 0 weighs infinitely, and `fuse` takes the limit. ValueError when delta or coef is
    not positive, or a distance negative or NaN.
    """
    invalid = ~(distance >= 0)
    if invalid.any():
        raise ValueError(f"{invalid.sum()} of {distance.size} distances are negative or NaN")
    return _weights(_tensor(distance), dim, delta, coef, inside=inside).numpy()


def _weights(
    distance: "Tensor", dim: float, delta: float, coef: float, *, inside: bool
) -> "Tensor":
    _check_constants(dim, delta, coef)
    distance = distance.double()
    return coef / distance ** (dim + delta) if inside else coef / (distance**dim + delta)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"distance {kind!r} is not one of {KINDS}")


def _check_constants(dim: float, delta: float, coef: float) -> None:
    if not (delta > 0 and coef > 0 and dim >= 0):
        raise ValueError(
            f"dim = {dim}, delta = {delta}, coef = {coef}: "
            "delta and coef must be positive, dim at least 0"
        )


def _tensor(x: np.ndarray) -> "Tensor":
    import torch

    return torch.from_numpy(np.ascontiguousarray(x))


@dataclass(frozen=True)
class Weighting:
    """What a neighbor weighs: equation 4 with its constants, or, with `tau`, softmax(s / tau)."""

    dim: float = 6
    delta: float = 1e-4
    coef: float = 1e-3
    kind: str = "euclidean"
    inside: bool = False  # delta inside the exponent
    tau: float | None = None  # temperature; the other constants then have no effect

    def __post_init__(self):
        _check_kind(self.kind)
        _check_constants(self.dim, self.delta, self.coef)
        if self.tau is not None and not self.tau > 0:
            raise ValueError(f"tau = {self.tau} must be positive")

    def __call__(self, similarity: np.ndarray) -> np.ndarray:
        """(q, k) float64 weights of lists sorted best first; softmax up to a factor of each row."""
        return self.of(_tensor(similarity)).numpy()

    def of(self, similarity: "Tensor") -> "Tensor":
        """As the call, on the device of `similarity`."""
        if self.tau is None:
            d = _distance(similarity, self.kind)
            return _weights(d, self.dim, self.delta, self.coef, inside=self.inside)

        # less the row's highest similarity, so that no power overflows
        similarity = similarity.double()
        return ((similarity - similarity[:, :1]) / self.tau).exp()

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
    weighted_sum = _weighted_sum(_tensor(weight), _tensor(values))
    return l2_normalize(weighted_sum.numpy() / weight.shape[1])


def _weighted_sum(weight: "Tensor", values: "Tensor") -> "Tensor":
    """(q, d) float32: the sum over k of weights (q, k) times values (q, k, d)."""
    return (_finite_weights(weight).float()[:, None] @ values.float())[:, 0]


def _finite_weights(weight: "Tensor") -> "Tensor":
    """Weights (q, k) with each row's largest at 1; a row with infinite ones keeps these alone."""
    infinite = weight.isinf()
    any_infinite = infinite.any(dim=1, keepdim=True)
    finite = weight.masked_fill(infinite, 0)
    # the largest weight becomes 1, so float32 holds every row
    largest = finite.amax(dim=1, keepdim=True).masked_fill(any_infinite, 1)
    return (finite / largest).where(~any_infinite, infinite.to(weight.dtype))


def weight_shares(weight: np.ndarray, total: float) -> np.ndarray:
    """Weights (q, k) scaled so that each row sums to `total`."""
    weight = _finite_weights(_tensor(weight)).numpy()
    return total * weight / weight.sum(axis=1, keepdims=True)


def fuse_neighbors(
    similarity: np.ndarray,
    index: np.ndarray,
    lookup: ValueLookup,
    weighting: Weighting,
    *,
    k: int,
    device: str = "cpu",
) -> np.ndarray:
    """Prediction (q, d) float32 unit rows from the first `k` neighbors, computed on the device."""
    import torch

    _check_lists(similarity, index, k)
    predictions = []
    for block in neighbor_blocks(similarity[:, :k], index[:, :k], lookup, device):
        # weights in float64 on the device, values a part at a time
        weight = weighting.of(block.similarity)
        # one result for the block: small ones in between would leave holes in the heap
        fused = torch.empty(len(weight), block.table.shape[1], device=device)
        for part, values in block.parts():
            fused[part] = _weighted_sum(weight[part], values)
        predictions.append(fused.cpu().numpy())
    return l2_normalize(np.concatenate(predictions) / k)


@dataclass(frozen=True)
class NeighborBlock:
    """Some queries' lists on the device, and the different rows of values that they name."""

    queries: slice
    similarity: "Tensor"  # (q, k)
    place: "Tensor"  # (q, k) int64: rows of `table`
    table: "Tensor"  # (u, d) float32

    def parts(self) -> "Iterator[tuple[slice, Tensor]]":
        """A few queries of the block at a time, with their values (p, k, d).

        On a CPU few enough for its cache: values that pass through memory take twice as long.
        """
        k = self.place.shape[1]
        width = self.table.shape[1]
        n_bytes = PART_BYTES["cuda" if self.table.is_cuda else "cpu"]
        step = max(1, n_bytes // (4 * k * width))
        for start in range(0, max(1, len(self.place)), step):
            part = slice(start, start + step)
            place = self.place[part]
            values = self.table.index_select(0, place.reshape(-1))
            yield part, values.view(len(place), k, width)


def neighbor_blocks(
    similarity: np.ndarray, index: np.ndarray, lookup: ValueLookup, device: str
) -> Iterator[NeighborBlock]:
    """The lists (q, k) in blocks on the device; values are looked up once for each block's rows."""
    k = index.shape[1]
    step = max(1, BLOCK_NEIGHBORS["cuda" if device.startswith("cuda") else "cpu"] // k)
    for start in range(0, max(1, len(index)), step):
        queries = slice(start, start + step)
        # queries share neighbors: a value is looked up and copied once a block
        rows, place = np.unique(index[queries], return_inverse=True)
        yield NeighborBlock(
            queries,
            similarity=_tensor(similarity[queries]).to(device),
            place=_tensor(place.reshape(-1, k)).to(device),
            table=_tensor(lookup(rows)).to(device),
        )


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
    if np.isnan(similarity).any():
        raise ValueError(f"{np.isnan(similarity).sum()} of {similarity.size} similarities are NaN")
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
    device: str = "cpu",
) -> TunedWeights:
    """Score every (k, weighting) from one search, and predict each fold with the pair that is best
    on the other folds.

    `truth` (q, d) unit rows and `fold` (q,) int64 belong to the queries. At least two folds are
    needed. Everything is computed on the device.
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
    score = _grid_cosines(similarity, index, lookup, truth, k_grid, weightings, device)
    mean_score = score.mean(axis=0)

    def predict(rows: np.ndarray, pair: tuple[int, Weighting]) -> np.ndarray:
        k, weighting = pair
        return fuse_neighbors(similarity[rows], index[rows], lookup, weighting, k=k, device=device)

    # each fold is predicted with the pair that is best on the others
    prediction = np.empty_like(truth)
    chosen_pairs = []
    for f in folds:
        pair = pairs[int(score[fold != f].mean(axis=0).argmax())]
        prediction[fold == f] = predict(fold == f, pair)
        chosen_pairs.append(pair)

    # new images have no fold: they get the pair that is best over all rows
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
    device: str,
) -> np.ndarray:
    """(q, len(k_grid) * len(weightings)) float64 cosines of predictions with `truth`, k the slower
    axis.

    `k_grid` ascends, so the sum for one k continues that for the k before it: each neighbor is
    added once.
    """
    import torch

    score = np.empty((len(index), len(k_grid), len(weightings)))
    bounds = list(pairwise([0, *k_grid]))
    largest_k = k_grid[-1]
    for block in neighbor_blocks(similarity[:, :largest_k], index[:, :largest_k], lookup, device):
        by_weighting = [_finite_weights(weighting.of(block.similarity)) for weighting in weightings]
        weight = torch.stack(by_weighting, dim=1).float()
        expected = _tensor(truth[block.queries]).to(device)

        # one result for the block: small ones in between would leave holes in the heap
        cosines = torch.empty(len(weight), len(k_grid), len(weightings), device=device)
        for part, values in block.parts():
            fused = torch.zeros(len(values), len(weightings), values.shape[2], device=device)
            for i, (previous_k, k) in enumerate(bounds):
                fused += weight[part, :, previous_k:k] @ values[:, previous_k:k]
                along_truth = (fused @ expected[part, :, None])[..., 0]
                cosines[part, i] = along_truth / fused.norm(dim=2)
        score[block.queries] = cosines.cpu().numpy()
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
