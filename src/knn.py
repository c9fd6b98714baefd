"""Exact top-K search by cosine: cuML on a GPU, faiss on a CPU, either on many Dask workers, behind
one return contract.

The store is any number of shards, arrays or memory maps. They are read in blocks of rows and the
blocks' lists are merged here, so memory is bounded by a block and the engines cannot differ in
anything but the last bits of a similarity.
"""

import mmap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import cache, partial
from importlib.metadata import version

import numpy as np

from src.dask_workers import connect

ENGINES = ("auto", "cuml", "faiss")
TOLERANCE = 1e-3  # how far from 1 the length of a row may be
ROUNDING = 2e-6  # a length further from 1 than this is set right: faiss takes the inner product, cuML the cosine
FEW_QUERIES = 4  # so few are one product that is bound by memory; faiss would use one core for each
BLOCK_BYTES = 512 * 2**20  # of one block of the store in float32

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
Neighbors = tuple[np.ndarray, np.ndarray]


def resolve_engine(engine: str = "auto") -> tuple[str, str]:
    """The engine that will search, `cuml` or `faiss`, and why. RuntimeError when `cuml` is asked
    for and cannot run.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is not one of {ENGINES}")
    if engine == "faiss":
        return "faiss", "asked for"
    obstacle = _obstacle_to_cuml()
    if obstacle is None:
        return "cuml", "a usable GPU"
    if engine == "cuml":
        raise RuntimeError(f"engine 'cuml' cannot run: {obstacle}; use engine 'auto' or 'faiss'")
    return "faiss", obstacle


def _obstacle_to_cuml() -> str | None:
    try:
        import cuml.neighbors  # noqa: F401
        import cupy
    except ImportError as error:
        return f"cuML is not installed ({error})"
    return None if cupy.cuda.is_available() else "no GPU that CUDA can use"


def describe(engine: str = "auto") -> dict[str, str]:
    """What searches, for meta.json: `engine`, its `engine_version`, the `engine_device`, and `why`
    it was taken.
    """
    name, why = resolve_engine(engine)
    if name == "faiss":
        return {
            "engine": name,
            "engine_version": version("faiss-cpu"),
            "engine_device": "cpu",
            "why": why,
        }
    import cuml
    import cupy

    gpu = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    return {"engine": name, "engine_version": cuml.__version__, "engine_device": gpu, "why": why}


def search(
    store: np.ndarray | Sequence[np.ndarray],
    queries: np.ndarray,
    k: int,
    engine: str = "auto",
    *,
    rows: np.ndarray | None = None,
    cluster: object | None = None,
    center: np.ndarray | None = None,
    store_rows: int | None = None,
    query_rows: int = 8192,
    checked: bool = False,
) -> Neighbors:
    """The `k` rows of `store` most similar to each query: `similarity` (q, k) float32 descending,
    `index` (q, k) int64.

    `store` is an array or a list of shards, (n, d) float32 or float16; `queries` (q, d) float32;
    unit rows (float16 rows are set to unit length again). `index` counts through the shards. `rows`
    (n,) bool leaves in only those rows of the store. `center` (d,) is taken from every row of the
    store, which is then set to unit length; queries come as they are to be. `cluster` is None,
    "local", "tcp://host:port" or a Dask client: the shards become tasks. At most `store_rows` rows
    are held in float32 at a time. Equal similarities stand in order of index; where a tie runs
    across place k, which of the tied rows are in the list is the engine's choice. `checked` says
    that the store is float32 and was found to be of unit length before; it is not measured again.
    Raises ValueError on other shapes, types, lengths, or k.
    """
    shards = [store] if isinstance(store, np.ndarray) else list(store)
    _check(shards, queries, k, rows, store_rows, query_rows)
    queries = _unit_rows(queries, "queries", 0)
    store_rows = store_rows or max(1, BLOCK_BYTES // (4 * queries.shape[1]))
    if cluster is not None:
        return _search_cluster(
            shards, queries, k, engine, rows, cluster, center, store_rows, query_rows
        )
    name, _ = resolve_engine(engine)
    if name == "cuml":
        _check_gpu()
    engine_index = _cuml_index if name == "cuml" else _faiss_index
    build = partial(engine_index, center=center, checked=checked)
    return _search_blocks(build, shards, queries, k, rows, store_rows, query_rows)


def _search_blocks(
    build: Callable[[np.ndarray, int, int], Search],
    shards: Sequence[np.ndarray],
    queries: np.ndarray,
    k: int,
    rows: np.ndarray | None,
    store_rows: int,
    query_rows: int,
) -> Neighbors:
    lists = empty_neighbors(len(queries))
    for start, block, inside in _blocks(shards, rows, store_rows):
        depth = min(k, len(block))
        similarity, where = _search_block(build(block, depth, start), queries, depth, query_rows)
        lists = merge(lists, (similarity, (where if inside is None else inside[where]) + start), k)
    return lists


def _blocks(
    shards: Sequence[np.ndarray], rows: np.ndarray | None, store_rows: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
    """Blocks of the store: the index of the first row, the rows, and which of the block they are
    (None for all).
    """
    offset = 0
    for shard in shards:
        for start in range(0, len(shard), store_rows):
            block = shard[start : start + store_rows]
            inside = (
                None
                if rows is None
                else np.flatnonzero(rows[offset + start : offset + start + len(block)])
            )
            if inside is None or len(inside) == len(block):
                yield offset + start, block, None
            elif len(inside):
                yield offset + start, block[inside], inside
            _release(shard)
        offset += len(shard)


def _release(shard: np.ndarray) -> None:
    """Let go of a read-only memory map's pages, which would otherwise count as this process's
    memory until the end.
    """
    if not isinstance(shard, np.memmap) or shard.mode != "r":
        return
    base = shard
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(base, "madvise"):
        base.madvise(mmap.MADV_DONTNEED)


def _search_block(search: Search, queries: np.ndarray, k: int, query_rows: int) -> Neighbors:
    similarity = np.empty((len(queries), k), np.float32)
    index = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), query_rows):
        part = slice(start, start + query_rows)
        found, where = search(queries[part], k)
        similarity[part], index[part] = np.clip(found, -1, 1), where
    return similarity, index


def empty_neighbors(n: int) -> Neighbors:
    """Empty lists of `n` queries, to merge into."""
    return np.empty((n, 0), np.float32), np.empty((n, 0), np.int64)


def merge(one: Neighbors, other: Neighbors, k: int) -> Neighbors:
    """The `k` best of two lists of neighbors, best first, ties by index; in whatever order lists
    are merged.
    """
    similarity = np.concatenate([one[0], other[0]], axis=1)
    index = np.concatenate([one[1], other[1]], axis=1)
    similarity, index = best_first(similarity, index)
    return similarity[:, :k], index[:, :k]


def best_first(similarity: np.ndarray, index: np.ndarray) -> Neighbors:
    """The same lists (q, k) in order of similarity, highest first, ties by index."""
    order = np.lexsort((index, -similarity), axis=1)
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(index, order, axis=1)


def order_ties(similarity: np.ndarray, index: np.ndarray) -> Neighbors:
    """Lists (q, k) that stand best first, with ties by index: only the lists that have a tie are
    sorted.
    """
    tie = similarity[:, 1:] == similarity[:, :-1]
    out_of_order = tie & (index[:, 1:] < index[:, :-1])
    queries = np.flatnonzero(out_of_order.any(axis=1))
    index = index.copy() if len(queries) else index
    index[queries] = best_first(similarity[queries], index[queries])[1]
    return similarity, index


def _faiss_index(
    block: np.ndarray,
    k: int,
    first: int,
    center: np.ndarray | None = None,
    checked: bool = False,
) -> Search:
    x = block if checked else _unit_rows(block, "store", first)
    x = _centered(x, center)

    def search(queries: np.ndarray, k: int) -> Neighbors:
        if len(queries) <= FEW_QUERIES:
            return _best_of_all(queries @ x.T, k)

        import faiss

        # unlike an index, this copies nothing
        return faiss.knn(queries, x, k, metric=faiss.METRIC_INNER_PRODUCT)

    return search


def _best_of_all(similarity: np.ndarray, k: int) -> Neighbors:
    """The `k` highest of each row of (q, n), highest first, ties by index."""
    index = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    found = np.take_along_axis(similarity, index, axis=1)
    order = np.lexsort((index, -found), axis=1)
    return np.take_along_axis(found, order, axis=1), np.take_along_axis(index, order, axis=1)


def _cuml_index(
    block: np.ndarray,
    k: int,
    first: int,
    center: np.ndarray | None = None,
    checked: bool = False,
) -> Search:
    import cupy
    from cuml.neighbors import NearestNeighbors

    # float16 rows cross the bus as they are and widen on the device
    x = cupy.asarray(block)
    x = x if checked else _unit_rows(x, "store", first)
    x = _centered(x, None if center is None else cupy.asarray(center))
    # cosine, because cuML's Euclidean metrics on unit rows give 0 for any pair above similarity 0.9995
    model = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine", output_type="cupy")
    model.fit(x)

    def search(queries: np.ndarray, k: int) -> Neighbors:
        distance, index = model.kneighbors(cupy.asarray(queries), n_neighbors=k)
        return 1 - cupy.asnumpy(distance), cupy.asnumpy(index)

    return search


def _unit_rows(x: np.ndarray, name: str, first: int) -> np.ndarray:
    """`x` in float32, C order, unit rows; a NumPy or CuPy array (NumPy's functions pass on to
    CuPy's for the latter).
    """
    given, x = x, x.astype(np.float32, order="C", copy=False)
    length = np.sqrt(np.einsum("nd,nd->n", x, x))
    off = np.abs(length - 1)
    if not len(x) or float(off.max()) <= ROUNDING:
        return x
    bad = np.flatnonzero(~(off <= TOLERANCE))
    if len(bad):
        example = f"row {first + int(bad[0])} has length {float(length[bad[0]]):.4g}"
        raise ValueError(
            f"{name}: {len(bad)} of {len(x)} rows are not of unit length or not finite, e.g. {example}"
        )
    return np.divide(x, length[:, None], out=None if x is given else x)


def _centered(x: np.ndarray, center: np.ndarray | None) -> np.ndarray:
    if center is None:
        return x
    x = x - center
    x /= np.sqrt(np.einsum("nd,nd->n", x, x))[:, None]
    return x


@cache
def _check_gpu() -> None:
    """One small exact search before the first real one: a GPU library that answers wrongly does so
    silently.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 8), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    found, index = _search_blocks(_cuml_index, [x], x[:64], 10, None, 100, 50)
    exact = x[:64] @ x.T
    expected = -np.sort(-exact, axis=1)[:, :10]
    off = max(
        np.abs(found - expected).max(),
        np.abs(np.take_along_axis(exact, index, axis=1) - found).max(),
    )
    if not off < 1e-4:
        raise RuntimeError(
            f"cuML's self-check failed: similarities are off by up to {off:.2g} against numpy"
        )


# --- many workers ---


def _search_cluster(
    shards: Sequence[np.ndarray],
    queries: np.ndarray,
    k: int,
    engine: str,
    rows: np.ndarray | None,
    cluster: object,
    center: np.ndarray | None,
    store_rows: int,
    query_rows: int,
) -> Neighbors:
    """Pieces of shards as tasks, their lists merged as they come in.

    A memory map is opened by the workers themselves, under the same path. Everything else travels
    inside a task, not by `scatter`: what was scattered to a worker dies with it, a task is run
    again elsewhere.
    """
    from distributed import as_completed

    with (
        nullcontext(cluster) if hasattr(cluster, "submit") else connect(cluster) as client,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Sending large graph")
        shared = client.submit(_identity, queries, pure=False)
        pieces = _pieces(shards, rows, _piece_rows(shards, len(client.nthreads()), store_rows))
        settings = {
            "engine": engine,
            "center": center,
            "store_rows": store_rows,
            "query_rows": query_rows,
            "pure": False,
        }
        starts = {
            client.submit(_search_piece, piece, shared, k, mask, **settings): start
            for start, piece, mask in pieces
        }
        lists = empty_neighbors(len(queries))
        for future, (similarity, index) in as_completed(starts, with_results=True):
            lists = merge(lists, (similarity, index + starts[future]), k)
    return lists


def _piece_rows(shards: Sequence[np.ndarray], workers: int, store_rows: int) -> int:
    """Rows of a task: enough tasks for all workers, none above a block."""
    return max(1, min(store_rows, -(-sum(map(len, shards)) // max(1, workers))))


def _pieces(
    shards: Sequence[np.ndarray], rows: np.ndarray | None, piece_rows: int
) -> Iterator[tuple[int, object, object]]:
    """First index, piece and mask of every task; of a memory map only where it lies."""
    offset = 0
    for shard in shards:
        for start in range(0, len(shard), piece_rows):
            stop = min(start + piece_rows, len(shard))
            mask = None if rows is None else rows[offset + start : offset + stop]
            if mask is None or mask.any():
                yield offset + start, _reference(shard, start, stop), mask
        offset += len(shard)


def _reference(shard: np.ndarray, start: int, stop: int) -> object:
    if (
        not isinstance(shard, np.memmap)
        or isinstance(shard.base, np.memmap)
        or not shard.flags.c_contiguous
    ):
        return np.array(shard[start:stop])
    where = {
        "filename": str(shard.filename),
        "dtype": shard.dtype.str,
        "offset": shard.offset,
        "shape": shard.shape,
    }
    return {**where, "rows": (start, stop)}


def _search_piece(
    piece: object, queries: np.ndarray, k: int, mask: np.ndarray | None, **settings: object
) -> Neighbors:
    if isinstance(piece, dict):
        start, stop = piece["rows"]
        where = {name: piece[name] for name in ("filename", "dtype", "offset", "shape")}
        piece = np.memmap(mode="r", **where)[start:stop]
    k = min(k, len(piece) if mask is None else int(mask.sum()))
    return search(piece, queries, k, rows=mask, **settings)


def _identity(x: np.ndarray) -> np.ndarray:
    return x


def _check(
    shards: Sequence[np.ndarray],
    queries: np.ndarray,
    k: int,
    rows: np.ndarray | None,
    store_rows: int | None,
    query_rows: int,
) -> None:
    if queries.ndim != 2 or queries.dtype != np.float32:
        raise ValueError(
            f"queries must be 2-D float32, got {queries.ndim}-D {queries.dtype} of shape {queries.shape}"
        )
    for x in shards:
        if x.ndim != 2 or x.dtype not in (np.float32, np.float16):
            raise ValueError(
                f"store must be 2-D float32 or float16, got {x.ndim}-D {x.dtype} of shape {x.shape}"
            )
        if x.shape[1] != queries.shape[1]:
            raise ValueError(f"store is {x.shape[1]} wide, queries are {queries.shape[1]} wide")
    n = sum(map(len, shards))
    if rows is not None and (rows.shape != (n,) or rows.dtype != bool):
        raise ValueError(
            f"rows must be bool of shape ({n},), got {rows.dtype} of shape {rows.shape}"
        )
    visible = n if rows is None else int(rows.sum())
    if not 1 <= k <= visible:
        raise ValueError(f"k = {k} is not within 1..{visible}, the visible rows of the store")
    if (store_rows is not None and store_rows < 1) or query_rows < 1:
        raise ValueError(
            f"blocks of {store_rows} store rows and {query_rows} queries: both must be at least 1"
        )
