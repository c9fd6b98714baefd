"""Training images changed at random: the paper's rotation, flip and crop, each by itself.

They work on the batch, on the device that trains.
"""

import torch
from torchvision.transforms import v2

from src.model_a.recipe import ImageChanges

# images that share one draw of angle and crop: a batch has many draws, a draw costs one kernel
CHUNK = 8

ALL = ImageChanges(rotation=True, flip=True, crop=True)
NONE = ImageChanges(rotation=False, flip=False, crop=False)


def augment(
    pixels: torch.Tensor, may_flip: torch.Tensor, *, changes: ImageChanges = ALL, chunk: int = CHUNK
) -> torch.Tensor:
    """(n, 3, s, s) uint8 changed at random, of the same shape.

    An image is flipped only where `may_flip` (n,) bool allows it: its prompt may tell left from
    right.
    """
    if len(pixels) != len(may_flip):
        raise ValueError(f"{len(pixels)} images, but {len(may_flip)} entries of may_flip")

    steps: list[v2.Transform] = []
    if changes.rotation:
        steps.append(v2.RandomRotation(10, interpolation=v2.InterpolationMode.BILINEAR, fill=128))
    if changes.crop:
        steps.append(
            v2.RandomResizedCrop(
                pixels.shape[-2:], scale=(0.7, 1.0), ratio=(0.9, 1.1), antialias=True
            )
        )
    if steps:
        change = v2.Compose(steps)
        pixels = torch.cat([change(part) for part in pixels.split(chunk)])
    if not changes.flip:
        return pixels

    flip = (torch.rand(len(pixels)) < 0.5).to(pixels.device) & may_flip
    return torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
