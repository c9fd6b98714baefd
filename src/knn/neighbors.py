"""Lists of neighbors: their order, and how they are merged.

`merge` and `has_ties_out_of_order` take arrays of NumPy or CuPy: NumPy's functions pass the latter
on to CuPy's.
"""

import numpy as np

Neighbors = tuple[np.ndarray, np.ndarray]  # similarity, index: (q, k), highest similarity first


def best_first(similarity: np.ndarray, index: np.ndarray) -> Neighbors:
    """The same lists (q, k) in order of similarity, highest first, ties by index."""
    order = np.lexsort((index, -similarity), axis=1)
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(index, order, axis=1)


def order_ties(similarity: np.ndarray, index: np.ndarray) -> Neighbors:
    """Lists (q, k), sorted best first, with ties by index: only lists with a tie are sorted."""
    queries = np.flatnonzero(_ties_out_of_order(similarity, index).any(axis=1))
    if not len(queries):
        return similarity, index

    ordered = index.copy()
    _, ordered[queries] = best_first(similarity[queries], index[queries])
    return similarity, ordered


def has_ties_out_of_order(similarity: np.ndarray, index: np.ndarray) -> bool:
    """Whether equal similarities of lists (q, k) stand in another order than that of the index."""
    return bool(_ties_out_of_order(similarity, index).any())


def _ties_out_of_order(similarity: np.ndarray, index: np.ndarray) -> np.ndarray:
    tie = similarity[:, 1:] == similarity[:, :-1]
    return tie & (index[:, 1:] < index[:, :-1])


def merge(one: Neighbors, other: Neighbors, k: int) -> Neighbors:
    """The `k` best of two lists that stand best first, in the same order.

    A tie keeps the order of the lists: ties stay by index where `one` has the lower indices.
    """
    similarity = np.concatenate([one[0], other[0]], axis=1)
    index = np.concatenate([one[1], other[1]], axis=1)

    order = highest_first(similarity)[:, :k]  # both halves are sorted, which a stable sort uses
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(index, order, axis=1)


def add_block(best: Neighbors | None, block: Neighbors, k: int) -> Neighbors:
    """The `k` best of the blocks so far (None before the first) and of one more block."""
    return block if best is None else merge(best, block, k)


def highest_first(similarity: np.ndarray) -> np.ndarray:
    """(q, k) the columns of each row in order of similarity, highest first; equal ones stay put."""
    if isinstance(similarity, np.ndarray):
        return np.argsort(-similarity, axis=1, kind="stable")
    return (-similarity).argsort(axis=1)  # CuPy's sort is always stable
