"""A device for tests without a GPU: arrays of their own class, and CuPy's calls autospecced."""

from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import create_autospec

import cupy
import numpy as np

FREE_BYTES = 2**30


class OnDevice(np.ndarray):
    """NumPy's arithmetic under another type, so that an array of the host is told apart."""

    def set(self, rows, stream=None):
        assert type(rows) is np.ndarray, f"{type(rows)} comes from no host buffer"
        assert stream is not None, "the copy would wait for the kernels"
        assert (rows.shape, rows.dtype) == (self.shape, self.dtype) and rows.flags.c_contiguous
        self[...] = rows


def install(monkeypatch) -> None:
    """Let the machine seem to have a GPU, whose memory is the host's."""
    monkeypatch.setattr(cupy.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cupy.cuda.runtime, "memGetInfo", lambda: (FREE_BYTES, 2 * FREE_BYTES))
    empty_pool = SimpleNamespace(free_bytes=lambda: 0)
    monkeypatch.setattr(cupy, "get_default_memory_pool", lambda: empty_pool)
    monkeypatch.setattr(cupy.cuda, "alloc_pinned_memory", bytearray)
    monkeypatch.setattr(cupy.cuda, "Device", nullcontext)
    stream = create_autospec(cupy.cuda.Stream)
    monkeypatch.setattr(cupy.cuda, "Stream", stream)
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: stream.return_value)
    for name, stand_in in (("asarray", _to_device), ("asnumpy", _to_host), ("empty", _empty)):
        spec = create_autospec(getattr(cupy, name), side_effect=stand_in)
        monkeypatch.setattr(cupy, name, spec)


def _to_device(x, **_):
    assert isinstance(x, np.ndarray), f"{type(x)} would go to the device through a copy on the host"
    return x if isinstance(x, OnDevice) else np.array(x).view(OnDevice)


def _to_host(x, **_):
    return np.array(x)


def _empty(shape, dtype):
    return np.full(shape, np.nan, dtype).view(OnDevice)
