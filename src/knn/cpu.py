"""The search on a CPU: faiss, block by block."""

import numpy as np

from src.knn.neighbors import Neighbors, add_block, best_first, order_ties
from src.knn.rows import SearchRequest, centered, pieces, unit_rows

BLOCK_BYTES = 512 * 2**20  # of one block of the store in float32
FEW_QUERIES = 4  # one product, bound by memory; faiss would use one core for each query


def block_rows(width: int) -> int:
    """Rows of a block where nothing else is asked for."""
    return max(1, BLOCK_BYTES // (4 * width))


def search_on_cpu(request: SearchRequest) -> Neighbors:
    """As `search`."""
    queries = request.queries
    settings = request.settings
    store_rows = settings.store_rows or block_rows(queries.shape[1])

    best: Neighbors | None = None
    for piece in pieces(request.shards, request.rows, store_rows):
        store_index = piece.indices()
        x = piece.read()
        if not settings.checked:
            x = unit_rows(x, "store", store_index)
        x = centered(x, settings.center)

        # a block may hold fewer rows than are asked for
        k = min(request.k, len(x))
        similarity, row = _search_block(x, queries, k, settings.query_rows)
        piece.release()

        # the lists of one block are in order already but for ties, also those that clipping makes
        np.clip(similarity, -1, 1, out=similarity)
        best = add_block(best, order_ties(similarity, store_index[row]), request.k)

    assert best is not None  # k >= 1 rows are visible, so there was a block
    return best


def _search_block(x: np.ndarray, queries: np.ndarray, k: int, query_rows: int) -> Neighbors:
    if len(queries) <= FEW_QUERIES:
        return _best_of_all(queries @ x.T, k)

    import faiss

    similarity = np.empty((len(queries), k), np.float32)
    row = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), query_rows):
        block = slice(start, start + query_rows)
        # unlike an index, faiss.knn copies nothing
        similarity[block], row[block] = faiss.knn(
            queries[block], x, k, metric=faiss.METRIC_INNER_PRODUCT
        )
    return similarity, row


def _best_of_all(similarity: np.ndarray, k: int) -> Neighbors:
    """The `k` highest of each row of (q, n), highest first, ties by index."""
    # the k highest in any order, then these few alone are sorted
    row = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    return best_first(np.take_along_axis(similarity, row, axis=1), row)
