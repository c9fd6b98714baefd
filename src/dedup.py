"""Which prompts stay, and which may never stand on two sides of a split.

Data filter 1 is rules, data filter 2 a cosine filter (equation 7); groups of near-duplicates become folds, so that an
out-of-fold score is not flattered by a prompt that the model has all but seen.
"""

from collections.abc import Iterator

import numpy as np
import polars as pl
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import GroupKFold

BLOCK = 2048  # rows of one similarity block: 2048 x 60,000 float32 are 490 MB at the most


def normalised(prompts: pl.Series) -> pl.Series:
    """Prompts under Unicode NFKC, lower case, single spaces: equal results are exact duplicates."""
    folded = prompts.str.normalize("NFKC").str.to_lowercase()
    return folded.str.replace_all(r"\s+", " ").str.strip_chars()


def rules(prompts: pl.Series, *, min_words: int, max_tokens: int, edge_characters: int, n_tokens: np.ndarray) -> pl.Series:
    """Data filter 1: for each prompt the reason to drop it, or null. Of equal prompts the first stays.

    `n_tokens` (n,) counts the sentence encoder's tokens; `edge_characters` > 0 also drops a prompt whose first or last so
    many characters occurred before, as the competition's public recipe does (15 there).
    """
    if len(prompts) != len(n_tokens):
        raise ValueError(f"{len(prompts)} prompts, {len(n_tokens)} token counts")
    text = normalised(prompts)
    frame = pl.DataFrame({"text": text, "tokens": n_tokens})
    reason = (pl.when(text == "").then(pl.lit("empty"))
              .when(~text.is_first_distinct()).then(pl.lit("exact duplicate"))
              .when(text.str.count_matches(r"\S+") < min_words).then(pl.lit(f"fewer than {min_words} words"))
              .when(frame["tokens"] > max_tokens).then(pl.lit(f"more than {max_tokens} tokens")))
    if edge_characters:
        reason = reason.when(~text.str.head(edge_characters).is_first_distinct()).then(pl.lit("opening seen before"))
        reason = reason.when(~text.str.tail(edge_characters).is_first_distinct()).then(pl.lit("ending seen before"))
    return frame.select(reason=reason)["reason"]


def cosine_filter(embeddings: np.ndarray, threshold: float, *, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Data filter 2 over (n, d) float32 unit rows, keeping one: in order, a row stays unless above `threshold` with a kept one.

    Returns `keeper` (n,) int64, the row's own index where it stays, else the most similar row kept before it, and
    `similarity` (n,) float32 to that keeper. No two kept rows are above the threshold. Exact, in blocks of `block` rows.
    """
    _check_unit(embeddings, threshold)
    keeper, similarity = np.arange(len(embeddings)), np.ones(len(embeddings), dtype=np.float32)
    kept = np.empty(0, dtype=np.int64)
    for start in range(0, len(embeddings), block):
        rows = np.arange(start, min(start + block, len(embeddings)))
        best = np.full(len(rows), -np.inf, dtype=np.float32)
        if len(kept):
            before = embeddings[rows] @ embeddings[kept].T
            nearest = before.argmax(axis=1)
            best, keeper[rows] = before[np.arange(len(rows)), nearest], kept[nearest]
        _within_block(embeddings, rows, best, keeper, threshold)
        stays = best <= threshold
        keeper[rows[stays]], similarity[rows] = rows[stays], np.where(stays, 1, best)
        kept = np.concatenate([kept, rows[stays]])
    return keeper, similarity


def _within_block(embeddings: np.ndarray, rows: np.ndarray, best: np.ndarray, keeper: np.ndarray, threshold: float) -> None:
    """Settle a block in order, in place: a row that stays is at once a keeper for the later rows of its block."""
    inside = embeddings[rows] @ embeddings[rows].T
    for i in range(len(rows)):
        if best[i] > threshold:
            continue
        closer = inside[i, i + 1:] > best[i + 1:]
        keeper[rows[i + 1:][closer]] = rows[i]
        best[i + 1:][closer] = inside[i, i + 1:][closer]


def _check_unit(embeddings: np.ndarray, threshold: float) -> None:
    if embeddings.ndim != 2 or embeddings.dtype != np.float32:
        raise ValueError(f"embeddings must be 2-D float32, got {embeddings.ndim}-D {embeddings.dtype}")
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold must be a cosine in [-1, 1], got {threshold}")
    off = np.flatnonzero(~(np.abs(np.linalg.norm(embeddings, axis=1) - 1) < 1e-3))
    if len(off):
        raise ValueError(f"{len(off)} of {len(embeddings)} rows are not of unit length, e.g. row {off[0]}")


def _blocks(embeddings: np.ndarray, block: int) -> Iterator[tuple[int, np.ndarray]]:
    """Similarities of each block of rows with the rows from its own start on: the upper half of the matrix."""
    for start in range(0, len(embeddings), block):
        yield start, embeddings[start:start + block] @ embeddings[start:].T


def edges(embeddings: np.ndarray, threshold: float, *, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every pair i < j of unit rows above `threshold`: `i`, `j` (m,) int64 and `similarity` (m,) float32."""
    _check_unit(embeddings, threshold)
    found = []
    for start, similarity in _blocks(embeddings, block):
        i, j = np.nonzero(similarity > threshold)
        above = j > i
        found.append((i[above] + start, j[above] + start, similarity[i[above], j[above]]))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def components(n: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """(n,) int64 labels of the connected components of the graph with edges i-j."""
    graph = coo_matrix((np.ones(len(i), dtype=bool), (i, j)), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def groups(embeddings: np.ndarray, threshold: float) -> np.ndarray:
    """(n,) int64 component labels: rows joined by a chain of pairs above `threshold` share a group."""
    i, j, _ = edges(embeddings, threshold)
    return components(len(embeddings), i, j)


def balanced_groups(embeddings: np.ndarray, keeper: np.ndarray, *, threshold: float, max_share: float, step: float = 0.02
                    ) -> tuple[np.ndarray, float]:
    """Groups at `threshold`, raised in steps until the largest holds at most `max_share` of the rows; and the value used.

    A removed row always shares the group of `keeper[row]`, whatever the threshold.
    """
    i, j, similarity = edges(embeddings, threshold)
    rows = np.arange(len(embeddings))
    while True:
        above = similarity > threshold
        labels = components(len(rows), np.concatenate([i[above], rows]), np.concatenate([j[above], keeper]))
        if np.bincount(labels).max() <= max_share * len(rows) or threshold + step > 1:
            return labels, round(threshold, 6)
        threshold += step


def folds(group: np.ndarray, n_folds: int) -> np.ndarray:
    """(n,) int64 fold of each row: whole groups, balanced. Raises ValueError with fewer groups than folds."""
    n_groups = len(np.unique(group))
    if n_groups < n_folds:
        raise ValueError(f"{n_groups} groups cannot fill {n_folds} folds: add rows, lower n_folds or raise group_similarity")
    fold = np.empty(len(group), dtype=np.int64)
    for f, (_, held_out) in enumerate(GroupKFold(n_folds).split(group, groups=group)):
        fold[held_out] = f
    return fold


def nearest_in(embeddings: np.ndarray, others: np.ndarray, *, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """For each row of `embeddings` the highest similarity among `others`, (n,) float32, and its index there, (n,) int64."""
    if not len(others):
        raise ValueError("no other rows to compare with")
    parts = [embeddings[s:s + block] @ others.T for s in range(0, len(embeddings), block)]
    return np.concatenate([p.max(axis=1) for p in parts]), np.concatenate([p.argmax(axis=1) for p in parts])


def leaks(embeddings: np.ndarray, fold: np.ndarray) -> pl.DataFrame:
    """The leak table: for each fold its rows, and the highest and the mean of its rows' highest similarity to other folds."""
    found = []
    for f in np.unique(fold):
        highest, _ = nearest_in(embeddings[fold == f], embeddings[fold != f])
        found.append({"fold": int(f), "rows": len(highest), "highest": float(highest.max()), "mean_highest": float(highest.mean())})
    return pl.DataFrame(found)


def nearest_other(embeddings: np.ndarray, *, block: int = BLOCK) -> np.ndarray:
    """(n,) float32: each unit row's highest similarity to any other row."""
    highest = np.empty(len(embeddings), dtype=np.float32)
    for start in range(0, len(embeddings), block):
        similarity = embeddings[start:start + block] @ embeddings.T
        similarity[np.arange(len(similarity)), start + np.arange(len(similarity))] = -np.inf
        highest[start:start + block] = similarity.max(axis=1)
    return highest


def extend_keepers(embeddings: np.ndarray, rows: np.ndarray, keeper: np.ndarray, similarity: np.ndarray
                   ) -> tuple[np.ndarray, np.ndarray]:
    """`cosine_filter`'s answer over `rows` carried to all n rows: a row outside `rows` gets its most similar kept row.

    Returns `keeper` (n,) int64 into all rows and `similarity` (n,) float32.
    """
    full_keeper, full_similarity = np.empty(len(embeddings), np.int64), np.empty(len(embeddings), np.float32)
    full_keeper[rows], full_similarity[rows] = rows[keeper], similarity
    outside = np.setdiff1d(np.arange(len(embeddings)), rows)
    if len(outside):
        kept = rows[keeper == np.arange(len(rows))]
        full_similarity[outside], nearest = nearest_in(embeddings[outside], embeddings[kept])
        full_keeper[outside] = kept[nearest]
    return full_keeper, full_similarity
