"""A CLIP in evaluation mode, the device it is on, and the precision it runs in."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from src.artifacts import fingerprint
from src.batches import to_device
from src.data.images import ImagePreprocess

Tokenizer = Callable[[list[str]], torch.Tensor]  # texts -> (n, context) int64


class ClipModel(Protocol):
    """What is used of a CLIP: open_clip's own, or one that looks like it (see towers)."""

    visual: torch.nn.Module

    def encode_image(self, image: torch.Tensor, /) -> torch.Tensor:
        """(n, 3, s, s) normalized pixels -> (n, D), not of unit length."""

    def encode_text(self, text: torch.Tensor, /) -> torch.Tensor:
        """(n, context) tokens -> (n, D), not of unit length."""


@dataclass(frozen=True)
class Encoder:
    """A CLIP in evaluation mode with what its inputs must look like.

    `fingerprint` changes with the weights. Sent to another process it travels as its name and is
    loaded there (see loading).
    """

    model: ClipModel
    tokenizer: Tokenizer | None  # None without a text tower
    geometry: ImagePreprocess
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    fingerprint: str
    name: str

    @property
    def batch(self) -> int:
        """Images in a pass: a small batch stays in a CPU's cache, a large one fills a GPU."""
        return 128 if self.device.type == "cuda" else 32

    @property
    def tag(self) -> str:
        """A short name that changes with the weights, for columns and files of this CLIP."""
        return f"clip_{fingerprint(self.fingerprint)[:12]}"

    @property
    def has_text(self) -> bool:
        """Whether it embeds texts too: Model B needs that, a member of Model A does not."""
        return self.tokenizer is not None

    def normalize(self, pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
        """(n, s, s, 3) uint8 -> (n, 3, s, s) float32 on the device, in channels_last.

        With CLIP's own mean and standard deviation.
        """
        if isinstance(pixels, np.ndarray):
            pixels = torch.from_numpy(np.array(pixels))
        x = to_device(pixels, self.device).permute(0, 3, 1, 2).float()
        mean = torch.tensor(self.mean, device=self.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=self.device).view(1, 3, 1, 1)
        return ((x / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


# --- device and precision ---


def choose_device(device: str = "auto") -> torch.device:
    """`auto` is cuda where there is one, else the cpu.

    Raises ValueError for another name, and when cuda is asked for and missing.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device: cuda was asked for, but torch sees no CUDA device; use device: auto or cpu"
        )
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def autocast(device: torch.device) -> AbstractContextManager:
    """bf16 where the device computes it natively, fp16 on an older GPU, else fp32."""
    if device.type == "cuda":
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.autocast("cuda", dtype=dtype)
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=multiplies_bf16())


def multiplies_bf16() -> bool:
    """Whether the CPU has instructions for bf16.

    With AVX-512 alone oneDNN offers it too, at less than half of fp32's speed.
    """
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    native = not avx512 or getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return native and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def describe(encoder: Encoder) -> str:
    """One line for a notebook's first output."""
    return (
        f"{type(encoder.model.visual).__name__}, {encoder.geometry.size} px, on {encoder.device} "
        f"({torch.get_num_threads()} of {os.cpu_count()} threads)"
    )
