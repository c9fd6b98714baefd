"""The search on Dask workers: pieces of shards are tasks, and their lists are merged here."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from src.dask_workers import connect
from src.knn.cpu import block_rows
from src.knn.neighbors import Neighbors, add_block, order_ties
from src.knn.rows import SearchRequest

if TYPE_CHECKING:
    from distributed import Client


class MappedRows(NamedTuple):
    """Rows of a memory map that workers open themselves, under the same path."""

    filename: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    start: int
    stop: int

    def open(self) -> np.ndarray:
        shard = np.memmap(self.filename, self.dtype, "r", self.offset, self.shape)
        return shard[self.start : self.stop]


class Task(NamedTuple):
    """Rows of the store from index `first` on, and which of them to search (None for all)."""

    first: int
    rows: np.ndarray | MappedRows
    mask: np.ndarray | None


def search_on_workers(
    request: SearchRequest,
    *,
    search: Callable[..., Neighbors],
    engine: str,
    cluster: "str | Client",
) -> Neighbors:
    """As `search`, which the workers call; a lost worker's task is run again.

    What is not a memory map travels inside its task, not by `scatter`: scattered data dies with the
    worker that holds it.
    """
    from distributed import as_completed

    shards = request.shards
    settings = request.settings
    store_rows = settings.store_rows or block_rows(request.queries.shape[1])

    # a client that was given stays open
    workers: AbstractContextManager[Client] = (
        connect(cluster) if isinstance(cluster, str) else nullcontext(cluster)
    )
    with workers as client, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")
        shared_queries = client.submit(_identity, request.queries, pure=False)
        task_rows = _task_rows(shards, len(client.nthreads()), store_rows)

        # a task knows its own rows alone: `first_of` has where in the store they begin
        first_of = {}
        for task in _tasks(shards, request.rows, task_rows):
            future = client.submit(
                _search_piece,
                search,
                task.rows,
                shared_queries,
                request.k,
                task.mask,
                engine=engine,
                **asdict(settings),
                pure=False,
            )
            first_of[future] = task.first

        best: Neighbors | None = None
        for future, (similarity, index) in as_completed(first_of, with_results=True):
            best = add_block(best, (similarity, index + first_of[future]), request.k)

    assert best is not None  # k >= 1 rows are visible, so there was a task
    return order_ties(*best)  # tasks end in any order


def _task_rows(shards: Sequence[np.ndarray], workers: int, store_rows: int) -> int:
    """Rows of a task: enough tasks for all workers, none above a block."""
    n_rows = sum(len(shard) for shard in shards)
    rows_of_a_worker = -(-n_rows // max(1, workers))
    return max(1, min(store_rows, rows_of_a_worker))


def _tasks(shards: Sequence[np.ndarray], rows: np.ndarray | None, task_rows: int) -> Iterator[Task]:
    offset = 0
    for shard in shards:
        for start in range(0, len(shard), task_rows):
            stop = min(start + task_rows, len(shard))
            mask = None if rows is None else rows[offset + start : offset + stop]
            if mask is None or mask.any():
                yield Task(offset + start, _portable(shard, start, stop), mask)
        offset += len(shard)


def _portable(shard: np.ndarray, start: int, stop: int) -> np.ndarray | MappedRows:
    """A whole memory map by where it lies; of anything else the rows themselves."""
    is_view = isinstance(shard.base, np.memmap)
    if not isinstance(shard, np.memmap) or is_view or not shard.flags.c_contiguous:
        return np.array(shard[start:stop])
    return MappedRows(str(shard.filename), shard.dtype.str, shard.offset, shard.shape, start, stop)


def _search_piece(
    search: Callable[..., Neighbors],
    rows: np.ndarray | MappedRows,
    queries: np.ndarray,
    k: int,
    mask: np.ndarray | None,
    **settings: object,
) -> Neighbors:
    piece = rows.open() if isinstance(rows, MappedRows) else rows
    visible = len(piece) if mask is None else int(mask.sum())
    return search(piece, queries, min(k, visible), rows=mask, **settings)


def _identity(x: np.ndarray) -> np.ndarray:
    return x
