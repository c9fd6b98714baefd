"""Model B: zero-shot CLIP over a datastore of prompts. Nothing is trained; K and dim are chosen out-of-fold.

Keys are CLIP text embeddings of prompts, queries CLIP image embeddings, values the sentence embeddings of the same prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl

from src import artifacts, dedup, knn, paths
from src.metrics import unit

KINDS = ("euclidean", "cosine")
TEXT_ONLY = -1  # the fold of a store row that has no picture


def distance(similarity: np.ndarray, kind: str = "euclidean") -> np.ndarray:
    """Distance of unit vectors from their cosine: sqrt(max(2 - 2 s, 0)), or 1 - s; float64, in the shape of `similarity`."""
    if kind not in KINDS:
        raise ValueError(f"distance {kind!r} is not one of {KINDS}")
    apart = np.maximum(1 - similarity.astype(np.float64), 0)
    return np.sqrt(2 * apart) if kind == "euclidean" else apart


def weights(distance: np.ndarray, dim: float, delta: float, coef: float) -> np.ndarray:
    """Equation 4 as built: coef / (d^dim + delta), in the shape of `distance`.

    delta stands outside the exponent, where it bounds the weight of d = 0. ValueError when delta or coef is not positive.
    """
    if not (delta > 0 and coef > 0 and dim >= 0):
        raise ValueError(f"dim = {dim}, delta = {delta}, coef = {coef}: delta and coef must be positive, dim at least 0")
    if not (distance >= 0).all():
        raise ValueError(f"{(~(distance >= 0)).sum()} of {distance.size} distances are negative or NaN")
    return coef / (distance**dim + delta)


def fuse(weight: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Equation 5, then unit length: mean over k of weight (q, k) times values (q, k, d), as (q, d) float32 unit rows."""
    if values.ndim != 3 or weight.shape != values.shape[:2]:
        raise ValueError(f"weights of shape {weight.shape} do not fit values of shape {values.shape}")
    return unit(np.einsum("qk,qkd->qd", weight, values, dtype=np.float64) / weight.shape[1])


def fuse_neighbours(
    similarity: np.ndarray,
    index: np.ndarray,
    values: np.ndarray,
    *,
    k: int,
    dim: float,
    delta: float,
    coef: float,
    kind: str = "euclidean",
    rows: int = 512,
) -> np.ndarray:
    """Prediction (q, d) float32 unit rows from the first `k` neighbours; `index` (q, K) points into `values` (n, d).

    Neighbours' values are gathered for `rows` queries at a time.
    """
    _check_lists(similarity, index, k)
    prediction = np.empty((len(index), values.shape[1]), np.float32)
    for start in range(0, len(index), rows):
        block = slice(start, start + rows)
        weight = weights(distance(similarity[block, :k], kind), dim, delta, coef)
        prediction[block] = fuse(weight, values[index[block, :k]])
    return prediction


@dataclass(frozen=True)
class Tuned:
    """What `tune` found: the whole grid, the choice over all rows, the choice for each fold, the cross-fitted rows."""

    grid: pl.DataFrame  # k, dim, avg_cos over all rows
    k: int
    dim: float
    choices: pl.DataFrame  # fold, k, dim: chosen on the other folds
    prediction: np.ndarray  # (q, d) float32 unit rows; each fold by its own choice


def tune(
    similarity: np.ndarray,
    index: np.ndarray,
    values: np.ndarray,
    truth: np.ndarray,
    fold: np.ndarray,
    *,
    k_grid: Sequence[int],
    dim_grid: Sequence[float],
    delta: float,
    coef: float,
    kind: str = "euclidean",
) -> Tuned:
    """Score every (k, dim) from one search, and predict each fold with the pair that is best on the other folds.

    `truth` (q, d) unit rows and `fold` (q,) int64 belong to the queries. At least two folds are needed.
    """
    folds = np.unique(fold)
    if len(folds) < 2:
        raise ValueError(f"choosing on the other folds needs at least 2 folds, got {folds.tolist()}")
    for k in k_grid:
        _check_lists(similarity, index, k)
    pairs = list(product(k_grid, dim_grid))
    score = _grid_cosines(similarity, index, values, truth, k_grid, dim_grid, delta, coef, kind)
    grid = pl.DataFrame(pairs, schema={"k": pl.Int64, "dim": pl.Float64}, orient="row")
    prediction, choices = np.empty_like(truth), []
    for f in folds:
        k, dim = pairs[int(score[fold != f].mean(axis=0).argmax())]
        mine = fold == f
        settings = {"k": k, "dim": dim, "delta": delta, "coef": coef, "kind": kind}
        prediction[mine] = fuse_neighbours(similarity[mine], index[mine], values, **settings)
        choices.append((int(f), k, float(dim)))
    best = pairs[int(score.mean(axis=0).argmax())]
    return Tuned(
        grid=grid.with_columns(avg_cos=pl.Series(score.mean(axis=0))),
        k=best[0],
        dim=best[1],
        choices=pl.DataFrame(choices, schema={"fold": pl.Int64, "k": pl.Int64, "dim": pl.Float64}, orient="row"),
        prediction=prediction,
    )


def _grid_cosines(similarity, index, values, truth, k_grid, dim_grid, delta, coef, kind, rows=256) -> np.ndarray:
    """(q, len(k_grid) * len(dim_grid)) float64 cosines with the truth, k the slower axis; neighbours gathered once."""
    score = np.empty((len(index), len(k_grid), len(dim_grid)))
    widest = max(k_grid)
    for start in range(0, len(index), rows):
        block = slice(start, start + rows)
        apart = distance(similarity[block, :widest], kind)
        weight = np.stack([weights(apart, dim, delta, coef) for dim in dim_grid], axis=1)
        weight = (weight / weight.max(axis=2, keepdims=True)).astype(np.float32)
        near = values[index[block, :widest]]
        for i, k in enumerate(k_grid):
            fused = weight[:, :, :k] @ near[:, :k]
            along = np.einsum("qjd,qd->qj", fused, truth[block])
            score[block, i] = along / np.linalg.norm(fused, axis=2)
    return score.reshape(len(index), -1)


def _check_lists(similarity: np.ndarray, index: np.ndarray, k: int) -> None:
    if similarity.shape != index.shape or similarity.ndim != 2:
        raise ValueError(f"similarity has shape {similarity.shape}, index {index.shape}; both must be (q, K)")
    if not 1 <= k <= index.shape[1]:
        raise ValueError(f"k = {k} is not within 1..{index.shape[1]}, the neighbours searched")


def allowed(store_fold: np.ndarray, conflicts: np.ndarray, fold: int) -> np.ndarray:
    """(n_store,) bool: the rows that a query of `fold` may see. The one place where a row is kept from its own kind.

    `store_fold` (n_store,) is TEXT_ONLY for a prompt without a picture; `conflicts` is (n_store, n_folds) bool.
    Not seen: rows of the fold itself, and rows that conflict with it (for text-only prompts: `text_conflicts`).
    """
    if conflicts.shape[0] != len(store_fold) or not 0 <= fold < conflicts.shape[1]:
        raise ValueError(f"fold {fold}, {len(store_fold)} store rows, conflicts of shape {conflicts.shape}")
    return (store_fold != fold) & ~conflicts[:, fold]


def text_conflicts(
    text: np.ndarray, train: np.ndarray, fold: np.ndarray, threshold: float, *, rows: int = 2048
) -> np.ndarray:
    """(n_text, n_folds) bool: the text-only prompt is above `threshold` in cosine with some training row of that fold.

    `text` and `train` are unit sentence embeddings; `train` holds every readable row, kept by the filters or not.
    """
    if len(fold) != len(train):
        raise ValueError(f"{len(fold)} folds for {len(train)} training rows")
    conflicts = np.zeros((len(text), int(fold.max()) + 1), bool)
    for f in np.unique(fold):
        members = np.ascontiguousarray(train[fold == f].T)
        for start in range(0, len(text), rows):
            block = slice(start, start + rows)
            conflicts[block, f] = (text[block] @ members).max(axis=1) > threshold
    return conflicts


def search_out_of_fold(
    keys: np.ndarray,
    queries: np.ndarray,
    query_fold: np.ndarray,
    store_fold: np.ndarray,
    conflicts: np.ndarray,
    k: int,
    engine: str = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """One search per fold over the rows it is `allowed`: `similarity`, `index` (q, k), as `knn.search`, into all `keys`.

    ValueError when a fold is allowed fewer than k rows.
    """
    similarity = np.empty((len(queries), k), np.float32)
    index = np.empty((len(queries), k), np.int64)
    for f in np.unique(query_fold):
        mine, seen = query_fold == f, np.flatnonzero(allowed(store_fold, conflicts, int(f)))
        if len(seen) < k:
            raise ValueError(f"fold {f} may see {len(seen)} rows of the store, fewer than k = {k}")
        similarity[mine], found = knn.search(keys[seen], queries[mine], k, engine)
        index[mine] = seen[found]
    return similarity, index


def clean_text(prompts: pl.DataFrame, known: pl.Series) -> pl.DataFrame:
    """The rows of `prompts` (column `prompt`) that add to the store, in order.

    Dropped, all after normalisation: empty prompts, those already seen above, and those equal to one of `known`.
    """
    normal = dedup.normalised(prompts["prompt"].fill_null(""))
    fresh = (normal != "") & normal.is_first_distinct() & ~normal.is_in(dedup.normalised(known).unique().implode())
    return prompts.filter(fresh)


@dataclass(frozen=True)
class ModelB:
    """The whole store and what notebook 03 chose: prediction on new pictures, as on the test pictures."""

    store: pl.DataFrame  # id, prompt, source: row i belongs to row i of keys and values
    keys: np.ndarray
    values: np.ndarray
    settings: dict
    engine: str = "auto"

    def predict(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """CLIP image embeddings (q, D) -> prediction (q, 384) float32 unit rows, similarity and index (q, k) into `store`."""
        similarity, index = knn.search(self.keys, queries, self.settings["k"], self.engine)
        return fuse_neighbours(similarity, index, self.values, **self.settings), similarity, index


def load(output: Path, engine: str = "auto") -> ModelB:
    """Model B as notebook 03 left it in `output`. Raises FileNotFoundError naming the stage when it has not run."""
    store = artifacts.load_table(output / paths.STORE)
    keys, values = (artifacts.load_embeddings(output / name, store["id"])[1] for name in (paths.STORE_KEYS, paths.STORE_VALUES))
    choice = artifacts.load_json(output / paths.CHOICE_B)
    return ModelB(store, keys, values, {name: choice[name] for name in ("k", "dim", "delta", "coef", "kind")}, engine)
