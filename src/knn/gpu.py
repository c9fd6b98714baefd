"""The search on a GPU by cuML or cuVS: the store comes in blocks, and lists are merged there.

A block is as large as the device's free memory allows. The next one is copied, through pinned
memory and on a stream of its own, while the present one is searched; float16 rows cross the bus as
they are. CuPy arrays go through NumPy's functions, which pass them on to CuPy's.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from src.knn.neighbors import (
    Neighbors,
    add_block,
    has_ties_out_of_order,
    highest_first,
    order_ties,
)
from src.knn.rows import BlockSettings, Piece, SearchRequest, centered, pieces, unit_rows

if TYPE_CHECKING:
    import cupy

MEMORY_SHARE = 0.6  # of the device's free memory that blocks may take; the libraries need some too
PIECES_OF_A_BLOCK = 8  # the unit in which a block is filled, so that it can span shards
STAGING_BYTES = 16 * 2**20  # of each of the two pinned buffers that rows pass through
COPY_THREADS = 4  # fill a pinned buffer: one thread copies slower than the bus
RESCORE_BYTES = 512 * 2**20  # of candidates' rows that are rescored at a time

Search = Callable[[np.ndarray, int], Neighbors]  # queries, k -> similarity, row of the block
Block = list[Piece]


def search_on_gpu(engine: str, request: SearchRequest) -> Neighbors:
    """As `search`; `engine` is "cuml" or "cuvs"."""
    import cupy

    if not len(request.queries):
        empty = (0, request.k)
        return np.empty(empty, np.float32), np.empty(empty, np.int64)

    build = {"cuml": _cuml_index, "cuvs": _cuvs_index}[engine]
    settings = request.settings
    width = request.queries.shape[1]
    store_rows = settings.store_rows
    if store_rows is None:
        store_rows = _rows_that_fit(width, max(x.dtype.itemsize for x in request.shards))
    queries = cupy.asarray(request.queries)
    center = None if settings.center is None else cupy.asarray(settings.center)

    best: Neighbors | None = None
    blocks = _blocks(request.shards, request.rows, store_rows)
    for x, store_index in _blocks_on_device(blocks, width):
        if not settings.checked:
            x = unit_rows(x, "store", store_index)
        x = centered(x, center)

        # a block may hold fewer rows than are asked for
        k = min(request.k, len(x))
        similarity, row = _search_queries(build(x, k), queries, k, settings.query_rows)
        best = add_block(best, (similarity, cupy.asarray(store_index)[row]), request.k)

    assert best is not None  # k >= 1 rows are visible, so there was a block
    similarity, index = best
    similarity = np.clip(similarity, -1, 1)

    # lists leave the device once; only where clipping or the engine left ties are they sorted
    ties = has_ties_out_of_order(similarity, index)
    on_host = cupy.asnumpy(similarity), cupy.asnumpy(index)
    return order_ties(*on_host) if ties else on_host


def _search_queries(search: Search, queries: np.ndarray, k: int, query_rows: int) -> Neighbors:
    starts = range(0, len(queries), query_rows)
    parts = [search(queries[start : start + query_rows], k) for start in starts]
    if len(parts) == 1:
        return parts[0]
    similarity = np.concatenate([part[0] for part in parts])
    row = np.concatenate([part[1] for part in parts])
    return similarity, row


@cache
def check_engine(engine: str) -> None:
    """One small exact search before the first real one: a GPU library may answer wrongly, silently.

    RuntimeError when similarities are off by 1e-4 or more against NumPy.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 8), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    queries = x[:64]
    # blocks so small that lists are merged
    settings = BlockSettings(center=None, store_rows=100, query_rows=50)
    request = SearchRequest([x], queries, k=10, rows=None, settings=settings)
    similarity, index = search_on_gpu(engine, request)

    exact = queries @ x.T
    best = -np.sort(-exact, axis=1)[:, :10]
    named = np.take_along_axis(exact, index, axis=1)
    off = max(np.abs(similarity - best).max(), np.abs(named - similarity).max())
    if not off < 1e-4:
        raise RuntimeError(
            f"{engine}'s self-check failed: similarities are off by up to {off:.2g} against numpy"
        )


# --- blocks of the store on the device ---


def _rows_that_fit(width: int, itemsize: int) -> int:
    """Rows of a block: two as they come, and one in float32 and in float16, with their indices."""
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()
    free += cupy.get_default_memory_pool().free_bytes()
    row_bytes = width * (2 * itemsize + 4 + 2) + 8
    return max(1, int(MEMORY_SHARE * free) // row_bytes)


def _blocks(
    shards: Sequence[np.ndarray], rows: np.ndarray | None, store_rows: int
) -> Iterator[Block]:
    """Pieces of the store, in order, together at most `store_rows` rows of one type."""
    block: Block = []
    for piece in pieces(shards, rows, -(-store_rows // PIECES_OF_A_BLOCK)):
        full = _n_rows(block) + len(piece) > store_rows
        if block and (full or piece.shard.dtype != block[0].shard.dtype):
            yield block
            block = []
        block.append(piece)
    if block:
        yield block


def _n_rows(block: Block) -> int:
    return sum(len(piece) for piece in block)


def _blocks_on_device(
    blocks: Iterator[Block], width: int
) -> Iterator[tuple["cupy.ndarray", np.ndarray]]:
    """Each block's rows (m, d) on the device, in their own type, and their index in the store.

    While one is in use, the next is on its way.
    """
    import cupy

    uploader = _Uploader(width)
    with ThreadPoolExecutor(1, "upload") as background:

        def start(block: Block) -> tuple["cupy.ndarray", np.ndarray, Future]:
            # memory that is free again may still be in use by a kernel of the block before
            cupy.cuda.get_current_stream().synchronize()
            x = cupy.empty((_n_rows(block), width), block[0].shard.dtype)
            store_index = np.concatenate([piece.indices() for piece in block])
            return x, store_index, background.submit(uploader.copy, block, x)

        # the copy of the next block begins once the present one has arrived, before it is searched
        coming = None
        for block in chain(blocks, [None]):
            present = coming
            if present is not None:
                present[2].result()
            coming = None if block is None else start(block)
            if present is not None:
                x, store_index, _ = present
                yield x, store_index


class _Uploader:
    """Copies pieces to the device: threads fill one pinned buffer while the other is on its way."""

    def __init__(self, width: int):
        import cupy

        self.width = width
        self.device = cupy.cuda.Device()
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.buffers = [cupy.cuda.alloc_pinned_memory(STAGING_BYTES) for _ in range(2)]
        # an event for each buffer: what it held has arrived
        self.sent: list[cupy.cuda.Event | None] = [None, None]
        self.turn = 0

    def copy(self, block: Block, x: "cupy.ndarray") -> None:
        """Fill `x` (m, d) with the block's rows."""
        offset = 0
        with self.device, ThreadPoolExecutor(COPY_THREADS, "copy") as threads:
            for piece in block:
                step = max(1, STAGING_BYTES // (self.width * x.dtype.itemsize))
                for start in range(0, len(piece), step):
                    count = min(step, len(piece) - start)
                    staged = self._stage(piece, start, count, x.dtype, threads)
                    x[offset : offset + count].set(staged, stream=self.stream)
                    self.sent[self.turn] = self.stream.record()
                    self.turn = 1 - self.turn
                    offset += count
                piece.release()
            self.stream.synchronize()

    def _stage(
        self,
        piece: Piece,
        start: int,
        count: int,
        dtype: np.dtype,
        threads: ThreadPoolExecutor,
    ) -> np.ndarray:
        """(count, d): the piece's rows from `start` on, in the pinned buffer whose turn it is."""
        # the buffer may be filled again once the device has what it held before
        event = self.sent[self.turn]
        if event is not None:
            event.synchronize()
        buffer = np.frombuffer(self.buffers[self.turn], dtype, count * self.width)
        staged = buffer.reshape(count, self.width)

        def fill(part: slice) -> None:
            staged[part] = piece.read(slice(start + part.start, start + part.stop))

        # each thread fills rows of its own
        bounds = np.linspace(0, count, COPY_THREADS + 1).astype(int).tolist()
        list(threads.map(fill, map(slice, bounds[:-1], bounds[1:])))
        return staged


# --- cuML ---


def _cuml_index(x: np.ndarray, k: int) -> Search:
    from cuml.neighbors import NearestNeighbors

    # cosine: cuML's Euclidean metrics give 0 for any unit rows above similarity 0.9995
    model = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine", output_type="cupy")
    model.fit(x)

    def search(queries: np.ndarray, k: int) -> Neighbors:
        distance, row = model.kneighbors(queries, n_neighbors=k)
        return 1 - distance, row

    return search


# --- cuVS: candidates in float16, exact in float32 ---


def float16_margin(width: int) -> float:
    """How far a float16 score of unit rows may lie from their float32 product, at most.

    Rounding to float16 changes an entry by 2^-11 of itself, or by 2^-25 where it is subnormal, so
    the product of two unit rows by 2 * 2^-11 + 2^-22, and by 2^-25 sqrt(d) for each side. Products
    of float16 are exact in float32; summing d of them is off by at most d * 2^-22 even where an
    addend is truncated and not rounded. The float32 product itself is off by d * 2^-23.
    """
    rounded = 2 * 2**-11 + 2**-22
    subnormal = 2 * 2**-25 * width**0.5 + width * 2**-50
    summed = width * 2**-22 + width * 2**-23
    return 1.001 * (rounded + subnormal + summed)  # lengths are 1 within ROUNDING


def _cuvs_index(x: np.ndarray, k: int) -> Search:
    import cupy
    from cuvs.neighbors import brute_force

    # the index looks at these rows and holds no reference to them: they must outlive it
    half_rows = x.astype(np.float16)
    cupy.cuda.get_current_stream().synchronize()
    built = brute_force.build(half_rows, metric="inner_product")
    margin = float16_margin(x.shape[1])

    def candidates(queries: np.ndarray, count: int, rows: np.ndarray = half_rows) -> Neighbors:
        half_queries = queries.astype(np.float16)
        cupy.cuda.get_current_stream().synchronize()  # cuVS has a stream of its own
        score, row = brute_force.search(built, half_queries, count)
        return cupy.asarray(score), cupy.asarray(row)

    return lambda queries, k: _exact_from_candidates(candidates, x, queries, k, margin)


def _exact_from_candidates(
    candidates: Search, x: np.ndarray, queries: np.ndarray, k: int, margin: float
) -> Neighbors:
    """The `k` best of all rows `x` by float32 product, from candidates whose scores are off by
    `margin`.

    A row that is not a candidate scores at most the lowest candidate's score plus `margin`. Where
    the k-th best reaches that, the list is complete; for the other queries more candidates are
    drawn.
    """
    count = min(len(x), k + max(28, k // 4))
    similarity, row, complete = _best_candidates(candidates, x, queries, k, count, margin)
    while not bool(complete.all()):
        open_queries = np.flatnonzero(~complete)
        count = min(len(x), 4 * count)
        similarity[open_queries], row[open_queries], complete[open_queries] = _best_candidates(
            candidates, x, queries[open_queries], k, count, margin
        )
    return similarity, row


def _best_candidates(
    candidates: Search, x: np.ndarray, queries: np.ndarray, k: int, count: int, margin: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`similarity`, `row` (q, k) of `count` candidates, and (q,) bool: none is left out."""
    score, row = candidates(queries, count)
    exact = _products(x, queries, row)
    off = float(np.abs(exact - score).max())
    if not off <= margin:
        raise RuntimeError(
            f"cuVS: float16 scores are off by {off:.2g}, rounding explains at most {margin:.2g}"
        )

    # the k best of the candidates, and whether a row outside them could be better than the k-th
    order = highest_first(exact)[:, :k]
    similarity = np.take_along_axis(exact, order, axis=1)
    row = np.take_along_axis(row, order, axis=1)
    complete = score.min(axis=1) + np.float32(margin) <= similarity[:, -1]
    if count == len(x):
        complete[:] = True
    return similarity, row, complete


def _products(x: np.ndarray, queries: np.ndarray, row: np.ndarray) -> np.ndarray:
    """(q, c) float32: each query's product with its rows `row` (q, c) of `x`, some queries at a
    time.
    """
    step = max(1, RESCORE_BYTES // (4 * x.shape[1] * row.shape[1]))
    parts = []
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        parts.append(np.matmul(x[row[block]], queries[block, :, None])[:, :, 0])
    return np.concatenate(parts)
