"""Neighbors as tables for people: which prompts, how similar, with what weight and why."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from src.model_b.datastore import Selection
from src.model_b.weighting import Neighbors, ValueLookup

# --- words ---


def neighbours(
    queries: Sequence[str],
    store: pl.DataFrame,
    similarity: np.ndarray,
    index: np.ndarray,
    weight: np.ndarray,
) -> pl.DataFrame:
    """Lists as a table `query, rank, neighbour, prompt, similarity, weight`; rank from 0."""
    flat, k = index.ravel(), index.shape[1]
    return pl.DataFrame(
        {
            "query": np.repeat(np.asarray(queries, dtype=object), k).tolist(),
            "rank": np.tile(np.arange(k), len(index)),
            "neighbour": store["id"].gather(flat),
            "prompt": store["prompt"].gather(flat),
            "similarity": similarity.ravel(),
            "weight": weight.ravel(),
        }
    )


def nearest_allowed(
    truth: np.ndarray,
    values: Selection,
    fold: np.ndarray,
    seen: dict[int, np.ndarray],
    engine: str = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """For each query the allowed prompt that is nearest to its truth: cosine (q,) float32 and row (q,) int64 of the store."""
    cosine, row = np.empty(len(truth), np.float32), np.empty(len(truth), np.int64)
    for f, mask in seen.items():
        similarity, index = values.search(truth[fold == f], 1, engine, seen=mask)
        cosine[fold == f], row[fold == f] = similarity[:, 0], index[:, 0]
    return cosine, row


def reasons(
    lists: Neighbors,
    take: ValueLookup,
    truth: np.ndarray,
    best_value: np.ndarray,
    best_row: np.ndarray,
    rows: Sequence[int],
    *,
    near: int = 10,
) -> list[str]:
    """A sentence on why each of the queries `rows` went wrong, from its list of neighbours.

    `best_row`, `best_value` (q,): see `nearest_allowed`. In order: the store holds nothing near the truth; the first neighbour
    is a hub; what is near is ranked low; or it is outvoted.
    """
    index, typical = lists[1], float(np.median(best_value))
    counts = np.bincount(index[:, :near].ravel(), minlength=int(best_row.max()) + 1)
    usual, said = np.median(counts[counts > 0]), []
    for r in rows:
        rank = np.flatnonzero(index[r] == best_row[r])
        place = f"number {rank[0] + 1}" if len(rank) else f"not among the first {index.shape[1]}"
        first, best = index[r, 0], f"the nearest allowed prompt ({best_value[r]:.2f})"
        if best_value[r] < typical - 0.05:
            said.append(f"nothing near in the store: {best} is far, {typical:.2f} is usual")
        elif counts[first] > 5 * usual and first != best_row[r]:
            said.append(
                f"a hub: the first neighbour is among the first {near} of {counts[first]} queries, {usual:.0f} is usual"
            )
        elif not len(rank) or rank[0] >= near:
            reached = float(take(index[r, :1])[0] @ truth[r])
            said.append(f"ranked low: {best} is {place}, the first has {reached:.2f}")
        else:
            said.append(f"outvoted: {best} is {place}, the others pull away")
    return said
