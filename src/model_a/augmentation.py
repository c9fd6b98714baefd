"""Training images changed at random: the paper's rotation, flip and crop.

They work on the batch, on the device that trains.
"""

import numpy as np
import torch
from torchvision.transforms import v2

# images that share one draw of angle and crop: a batch has many draws, a draw costs one kernel
CHUNK = 8


def augment(pixels: torch.Tensor, may_flip: torch.Tensor, *, chunk: int = CHUNK) -> torch.Tensor:
    """(n, 3, s, s) uint8 changed at random, of the same shape.

    Rotation by up to 10 degrees, a crop of 70 to 100 % of the area, and a flip. An image is
    flipped only where `may_flip` (n,) bool allows it: its prompt may tell left from right.
    """
    if len(pixels) != len(may_flip):
        raise ValueError(f"{len(pixels)} images, but {len(may_flip)} entries of may_flip")

    rotate = v2.RandomRotation(10, interpolation=v2.InterpolationMode.BILINEAR, fill=128)
    crop = v2.RandomResizedCrop(
        pixels.shape[-2:], scale=(0.7, 1.0), ratio=(0.9, 1.1), antialias=True
    )
    change = v2.Compose([rotate, crop])
    changed = torch.cat([change(part) for part in pixels.split(chunk)])

    flip = (torch.rand(len(pixels)) < 0.5).to(pixels.device) & may_flip
    return torch.where(flip[:, None, None, None], changed.flip(-1), changed)


def examples(image: np.ndarray, count: int) -> list[np.ndarray]:
    """`image` (s, s, 3) uint8, and `count` times as `augment` may show it, flips included."""
    original = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    copies = original.repeat(count, 1, 1, 1)
    changed = augment(copies, torch.ones(count, dtype=torch.bool), chunk=1)
    return list(torch.cat([original, changed]).permute(0, 2, 3, 1).numpy())
