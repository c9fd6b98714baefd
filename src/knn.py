"""Exact top-K search by cosine: cuML on a GPU, faiss on a CPU, behind one function with one return contract.

Both engines see the store in blocks of rows; the lists of the blocks are merged here, so memory is bounded and the engines
cannot differ in anything but the last bits of a similarity.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

ENGINES = ("auto", "cuml", "faiss")
TOLERANCE = 1e-3  # how far from 1 the length of a row may be

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def resolve_engine(engine: str = "auto") -> tuple[str, str]:
    """The engine that will search, `cuml` or `faiss`, and why. RuntimeError when `cuml` is asked for and cannot run."""
    if engine not in ENGINES:
        raise ValueError(f"engine {engine!r} is not one of {ENGINES}")
    if engine == "faiss":
        return "faiss", "asked for"
    obstacle = _obstacle_to_cuml()
    if obstacle is None:
        import cuml

        return "cuml", f"cuML {cuml.__version__} and a usable GPU"
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


def search(
    store: np.ndarray,
    queries: np.ndarray,
    k: int,
    engine: str = "auto",
    *,
    store_rows: int = 1_000_000,
    query_rows: int = 8192,
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` rows of `store` most similar to each query: `similarity` (q, k) float32 descending, `index` (q, k) int64.

    Both inputs are (n, d) float32 unit rows. Equal similarities stand in order of index. Where a tie runs across place
    k, which of the tied rows are in the list is the engine's choice within a block of `store_rows`; the similarities are
    the k highest either way. Raises ValueError on other shapes, types, lengths, or k.
    """
    _check(store, queries, k, store_rows, query_rows)
    name, _ = resolve_engine(engine)
    build = _cuml_index if name == "cuml" else _faiss_index
    if name == "cuml":
        _check_gpu()
    return _search_blocks(build, store, queries, k, store_rows, query_rows)


def _search_blocks(
    build: Callable[[np.ndarray, int], Search],
    store: np.ndarray,
    queries: np.ndarray,
    k: int,
    store_rows: int,
    query_rows: int,
) -> tuple[np.ndarray, np.ndarray]:
    similarity = np.empty((len(queries), 0), np.float32)
    index = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(store), store_rows):
        block = np.ascontiguousarray(store[start : start + store_rows])
        found = _search_block(build(block, min(k, len(block))), queries, min(k, len(block)), query_rows)
        similarity, index = _merge(similarity, index, found[0], found[1] + start, k)
    return similarity, index


def _search_block(search: Search, queries: np.ndarray, k: int, query_rows: int) -> tuple[np.ndarray, np.ndarray]:
    similarity = np.empty((len(queries), k), np.float32)
    index = np.empty((len(queries), k), np.int64)
    for start in range(0, len(queries), query_rows):
        rows = slice(start, start + query_rows)
        found, where = search(np.ascontiguousarray(queries[rows]), k)
        similarity[rows], index[rows] = np.clip(found, -1, 1), where
    return similarity, index


def _merge(
    similarity: np.ndarray, index: np.ndarray, more: np.ndarray, more_index: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    similarity = np.concatenate([similarity, more], axis=1)
    index = np.concatenate([index, more_index], axis=1)
    order = np.lexsort((index, -similarity), axis=1)[:, :k]
    return np.take_along_axis(similarity, order, axis=1), np.take_along_axis(index, order, axis=1)


def _faiss_index(store: np.ndarray, k: int) -> Search:
    import faiss

    index = faiss.IndexFlatIP(store.shape[1])
    index.add(store)
    return index.search


def _cuml_index(store: np.ndarray, k: int) -> Search:
    from cuml.neighbors import NearestNeighbors

    # cosine, because cuML's Euclidean metrics on unit rows give 0 for any pair above similarity 0.9995
    model = NearestNeighbors(n_neighbors=k, algorithm="brute", metric="cosine", output_type="numpy")
    model.fit(store)

    def search(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        distance, index = model.kneighbors(queries, n_neighbors=k)
        return 1 - np.asarray(distance), np.asarray(index)

    return search


@cache
def _check_gpu() -> None:
    """One small exact search before the first real one: a GPU library that answers wrongly does so silently."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 8), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    found, index = _search_blocks(_cuml_index, x, x[:64], 10, 100, 50)
    exact = x[:64] @ x.T
    expected = -np.sort(-exact, axis=1)[:, :10]
    off = max(np.abs(found - expected).max(), np.abs(np.take_along_axis(exact, index, axis=1) - found).max())
    if not off < 1e-4:
        raise RuntimeError(f"cuML's self-check failed: similarities are off by up to {off:.2g} against numpy")


def _check(store: np.ndarray, queries: np.ndarray, k: int, store_rows: int, query_rows: int) -> None:
    for name, x in (("store", store), ("queries", queries)):
        if x.ndim != 2 or x.dtype != np.float32:
            raise ValueError(f"{name} must be 2-D float32, got {x.ndim}-D {x.dtype} of shape {x.shape}")
        _check_lengths(name, x)
    if store.shape[1] != queries.shape[1]:
        raise ValueError(f"store is {store.shape[1]} wide, queries are {queries.shape[1]} wide")
    if not 1 <= k <= len(store):
        raise ValueError(f"k = {k} is not within 1..{len(store)}, the rows of the store")
    if store_rows < 1 or query_rows < 1:
        raise ValueError(f"blocks of {store_rows} store rows and {query_rows} queries: both must be at least 1")


def _check_lengths(name: str, x: np.ndarray) -> None:
    length = np.sqrt(np.einsum("nd,nd->n", x, x))
    bad = np.flatnonzero(~(np.abs(length - 1) <= TOLERANCE))
    if len(bad):
        example = f"row {bad[0]} has length {length[bad[0]]:.4g}"
        raise ValueError(f"{name}: {len(bad)} of {len(x)} rows are not of unit length or not finite, e.g. {example}")
