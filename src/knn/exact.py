"""The search itself: check the arguments, then search by an engine or on a cluster's workers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from src.knn.cluster import search_on_workers
from src.knn.cpu import search_on_cpu
from src.knn.engines import resolve_engine
from src.knn.gpu import check_engine, search_on_gpu
from src.knn.neighbors import Neighbors
from src.knn.rows import BlockSettings, SearchRequest, unit_rows

if TYPE_CHECKING:
    from distributed import Client


def search(
    store: np.ndarray | Sequence[np.ndarray],
    queries: np.ndarray,
    k: int,
    engine: str = "auto",
    *,
    rows: np.ndarray | None = None,
    cluster: "str | Client | None" = None,
    center: np.ndarray | None = None,
    store_rows: int | None = None,
    query_rows: int = 8192,
    checked: bool = False,
) -> Neighbors:
    """The `k` rows of `store` most similar to each query.

    `similarity` (q, k) float32 descending, `index` (q, k) int64, ties by index. Where a tie runs
    across place k, which of the tied rows are in the list is the engine's choice.

    `store` is an array or a list of shards, (n, d) float32 or float16; `queries` (q, d) float32;
    unit rows (float16 rows are set to unit length again). `index` counts through the shards.

    `rows` (n,) bool leaves in only those rows of the store. `center` (d,) is taken from every row
    of the store, which is then set to unit length; queries come as they are to be. `cluster` is
    None, "local", "tcp://host:port" or a Dask client: the shards become tasks. At most `store_rows`
    rows are held in float32 at a time, by default as many as memory allows. `checked` says that the
    store is float32 and was found to be of unit length before; it is not measured again.

    Raises ValueError on other shapes, types, lengths, or k.
    """
    shards = [store] if isinstance(store, np.ndarray) else list(store)
    _check(shards, queries, k, rows, store_rows, query_rows)
    settings = BlockSettings(center, store_rows, query_rows, checked)
    request = SearchRequest(shards, unit_rows(queries, "queries"), k, rows, settings)

    if cluster is not None:
        return search_on_workers(request, search=search, engine=engine, cluster=cluster)

    name, _ = resolve_engine(engine)
    if name == "faiss":
        return search_on_cpu(request)
    check_engine(name)
    return search_on_gpu(name, request)


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
            f"queries must be 2-D float32, got {queries.ndim}-D {queries.dtype} "
            f"of shape {queries.shape}"
        )
    for x in shards:
        if x.ndim != 2 or x.dtype not in (np.float32, np.float16):
            raise ValueError(
                f"store must be 2-D float32 or float16, got {x.ndim}-D {x.dtype} of shape {x.shape}"
            )
        if x.shape[1] != queries.shape[1]:
            raise ValueError(f"store is {x.shape[1]} wide, queries are {queries.shape[1]} wide")

    n = sum(len(x) for x in shards)
    if rows is not None and (rows.shape != (n,) or rows.dtype != bool):
        raise ValueError(
            f"rows must be bool of shape ({n},), got {rows.dtype} of shape {rows.shape}"
        )

    # a list is never shorter than k: so many rows must be visible
    visible = n if rows is None else int(rows.sum())
    if not 1 <= k <= visible:
        raise ValueError(f"k = {k} is not within 1..{visible}, the visible rows of the store")
    if (store_rows is not None and store_rows < 1) or query_rows < 1:
        raise ValueError(
            f"blocks of {store_rows} store rows and {query_rows} queries: both must be at least 1"
        )
