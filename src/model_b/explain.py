"""Neighbors as tables and sentences: which prompts, how similar, with what weight, and why."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from src.knn import Neighbors
from src.model_b.datastore import ColumnView
from src.model_b.weighting import ValueLookup

FAR = 0.05  # the nearest visible prompt is far when its cosine is this much below the median
HUB_FACTOR = 5  # a hub is listed for this many times as many queries as the median prompt


def neighbor_table(
    queries: Sequence[str],
    prompts: pl.DataFrame,
    similarity: np.ndarray,
    index: np.ndarray,
    weight: np.ndarray,
) -> pl.DataFrame:
    """Lists as a table `query, rank, neighbor, prompt, similarity, weight`; rank from 0."""
    k = index.shape[1]
    flat_index = index.ravel()
    return pl.DataFrame(
        {
            "query": np.repeat(np.asarray(queries, dtype=object), k).tolist(),
            "rank": np.tile(np.arange(k), len(index)),
            "neighbor": prompts["id"].gather(flat_index),
            "prompt": prompts["prompt"].gather(flat_index),
            "similarity": similarity.ravel(),
            "weight": weight.ravel(),
        }
    )


def neighbor_lines(prompts: Sequence[str], index: np.ndarray, weight: np.ndarray) -> list[str]:
    """One query's neighbors `index` (k,) as lines: the part of all weights, then the prompt."""
    return [f"{w:.0%} {prompts[i]}" for i, w in zip(index, weight, strict=True)]


def spread_by_score(score: np.ndarray, count: int) -> np.ndarray:
    """(count,) int64: rows at equal steps of rank from the worst score to the best, the very ends
    left out.
    """
    ranks = np.linspace(0, len(score) - 1, count + 2).round().astype(int)[1:-1]
    return np.argsort(score)[ranks]


def nearest_visible(
    truth: np.ndarray,
    values: ColumnView,
    fold: np.ndarray,
    visible: dict[int, np.ndarray],
    engine: str = "auto",
) -> Neighbors:
    """For each query the visible prompt nearest to its truth: cosine (q,) float32 and row (q,)
    int64 of the run.
    """
    cosine = np.empty(len(truth), np.float32)
    row = np.empty(len(truth), np.int64)
    for f, visible_rows in visible.items():
        in_fold = fold == f
        similarity, index = values.search(truth[in_fold], 1, engine, visible=visible_rows)
        cosine[in_fold] = similarity[:, 0]
        row[in_fold] = index[:, 0]
    return cosine, row


def failure_reasons(
    index: np.ndarray,
    lookup: ValueLookup,
    truth: np.ndarray,
    best: Neighbors,
    queries: Sequence[int],
    *,
    near: int = 10,
) -> list[str]:
    """A sentence on why each of `queries` went wrong, from its list of neighbors `index` (q, K).

    `best` is `nearest_visible`'s answer. In order: the datastore holds nothing near the truth; the
    first neighbor is a hub; what is near is ranked low; or it is outvoted.
    """
    best_cosine, best_row = best
    median_cosine = float(np.median(best_cosine))

    # in how many lists each prompt stands among the first `near`
    list_counts = np.bincount(index[:, :near].ravel(), minlength=int(best_row.max()) + 1)
    median_count = np.median(list_counts[list_counts > 0])

    reasons = []
    for q in queries:
        first = index[q, 0]
        ranks = np.flatnonzero(index[q] == best_row[q])
        rank = int(ranks[0]) if len(ranks) else None
        nearest = f"the nearest visible prompt ({best_cosine[q]:.2f})"
        place = f"not among the first {index.shape[1]}" if rank is None else f"number {rank + 1}"

        # the first of the causes that holds: each would hide those below it
        if best_cosine[q] < median_cosine - FAR:
            reason = (
                f"nothing near in the datastore: {nearest} is far, {median_cosine:.2f} is usual"
            )
        elif list_counts[first] > HUB_FACTOR * median_count and first != best_row[q]:
            reason = (
                f"a hub: the first neighbor is among the first {near} of {list_counts[first]} "
                f"queries, {median_count:.0f} is usual"
            )
        elif rank is None or rank >= near:
            first_cosine = float(lookup(index[q, :1])[0] @ truth[q])
            reason = f"ranked low: {nearest} is {place}, the first has {first_cosine:.2f}"
        else:
            reason = f"outvoted: {nearest} is {place}, the others pull away"
        reasons.append(reason)
    return reasons


def reason_counts(reasons: Sequence[str]) -> dict[str, int]:
    """How often each kind of reason of `failure_reasons` is given, the most frequent first."""
    kinds = pl.Series([reason.split(":")[0] for reason in reasons])
    return dict(kinds.value_counts(sort=True).iter_rows())
