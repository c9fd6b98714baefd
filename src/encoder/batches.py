"""Batches on their way to the device: on a GPU the next one is made ready while it computes."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Batch = TypeVar("Batch")

READ_EVERY = 256  # batches whose results wait on the device before they are read together


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`x` on the device; to a GPU from pinned memory, so that the copy does not hold up the CPU."""
    if device.type != "cuda" or x.device.type == "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def prepared(
    prepare: Callable[[Item], Batch], items: Iterable[Item], device: torch.device
) -> Iterator[Batch]:
    """`prepare(item)` for each item, in order; for a GPU one ahead, in a thread.

    On a CPU both would only compete for the same cores.
    """
    if device.type != "cuda":
        for item in items:
            yield prepare(item)
        return

    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for item in items:
            following = pool.submit(prepare, item)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def read_together(batches: Iterable[torch.Tensor]) -> torch.Tensor:
    """The rows of all `batches` on the CPU, in order.

    Reading a GPU's result waits for it, so many are read at once.
    """
    read = []
    waiting = []
    for batch in batches:
        waiting.append(batch)
        if len(waiting) == READ_EVERY or batch.device.type == "cpu":
            read.append(torch.cat(waiting).cpu())
            waiting = []
    if waiting:
        read.append(torch.cat(waiting).cpu())
    return torch.cat(read)
