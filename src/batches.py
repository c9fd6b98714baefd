"""Batches on their way to the device: on a GPU the next one is made ready while it computes."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Batch = TypeVar("Batch")

READ_EVERY = 256  # batches whose results wait on the device before they are read together


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`x` on the device; to a GPU from pinned memory, so that the copy does not hold up the CPU."""
    if device.type != "cuda" or x.device.type == "cuda":
        return x.to(device)
    host = x if x.is_pinned() else x.pin_memory()
    return host.to(device, non_blocking=True)


def pinned(batch: Any) -> Any:
    """The batch with every tensor on the CPU in pinned memory: a tensor, or a dict or dataclass."""
    if isinstance(batch, torch.Tensor):
        return batch.pin_memory() if batch.device.type == "cpu" else batch
    if isinstance(batch, dict):
        return {name: pinned(value) for name, value in batch.items()}
    if is_dataclass(batch) and not isinstance(batch, type):
        changed = {part.name: pinned(getattr(batch, part.name)) for part in fields(batch)}
        return replace(batch, **changed)
    return batch


def prepared(
    prepare: Callable[[Item], Batch], items: Iterable[Item], device: torch.device
) -> Iterator[Batch]:
    """`prepare(item)` for each item, in order; for a GPU one ahead and pinned, in a thread.

    On a CPU both would only compete for the same cores.
    """
    if device.type != "cuda":
        for item in items:
            yield prepare(item)
        return

    def prepare_pinned(item: Item) -> Batch:
        return pinned(prepare(item))

    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for item in items:
            following = pool.submit(prepare_pinned, item)
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
