"""Independent tasks, one after another or on Dask workers, with the same results in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

LOCAL_WORKERS = 2  # on a machine without a GPU
AHEAD = 4  # tasks of each worker that are under way or wait for it


@contextmanager
def connect(cluster: str) -> "Iterator[Client]":
    """A Dask client: `local` starts one worker per GPU (two without a GPU), `tcp://host:port` joins
    a scheduler.

    Workers of a scheduler elsewhere must see the same folders under the same paths. Raises
    ValueError for another `cluster`.
    """
    if cluster != "local" and not cluster.startswith(("tcp://", "tls://")):
        raise ValueError(f"cluster must be null, local or tcp://host:port, got {cluster!r}")
    from distributed import Client

    workers: AbstractContextManager[LocalCluster | str] = (
        _local() if cluster == "local" else nullcontext(cluster)
    )
    with workers as scheduler, Client(scheduler, timeout="30s") as client:
        yield client


@contextmanager
def _local() -> "Iterator[LocalCluster]":
    """Workers that end with the block: closing a client does not stop them, and they would keep
    their memory until this process ends.
    """
    workers = _start_local()
    try:
        yield workers
    finally:
        # on a busy machine a worker that has been killed may not be gone in time
        with suppress(TimeoutError):
            workers.close()


def _start_local() -> "LocalCluster":
    import torch

    if torch.cuda.is_available():
        from dask_cuda import LocalCUDACluster

        return LocalCUDACluster()
    from distributed import LocalCluster

    return LocalCluster(n_workers=LOCAL_WORKERS, threads_per_worker=1, dashboard_address=None)


def run(
    function: Callable,
    tasks: Sequence[dict],
    *,
    shared: dict[str, object],
    cluster: str | None = None,
) -> list:
    """As `results`, all of them at once; those of a cluster's workers under a progress bar."""
    finished = results(function, tasks, shared=shared, cluster=cluster)
    in_order = tqdm(finished, total=len(tasks), desc=f"{cluster} workers", disable=cluster is None)
    return list(in_order)


def results(
    function: Callable,
    tasks: Iterable[dict],
    *,
    shared: dict[str, object],
    cluster: str | None = None,
) -> Generator[Any, None, None]:
    """`function(**task, **shared)` of each task, in order, as they arrive.

    `shared` is sent to each worker once. At most AHEAD tasks per worker are in progress, so neither
    tasks nor results pile up. A task that fails stops the rest and raises its own error here.
    """
    if cluster is None:
        for task in tasks:
            yield function(**task, **shared)
        return

    with connect(cluster) as client:
        # every worker holds what is shared, and a task that moves to another finds it there
        sent = client.scatter(shared, broadcast=True)
        limit = AHEAD * len(client.nthreads())
        waiting: deque = deque()
        for task in tasks:
            waiting.append(client.submit(_call, function, task, sent, pure=False))
            if len(waiting) == limit:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _call(function: Callable, task: dict, shared: dict) -> object:
    return function(**task, **shared)
