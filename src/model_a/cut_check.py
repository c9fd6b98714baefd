"""Whether a tower that was cut in two still gives its own embeddings: measured, not assumed.

A part of the forward that the two parts leave out may change little on a smooth image, and a
library may change its forward. So the check looks at several varied images, at the precision in
use, and compares the error with how much the embeddings of different images differ.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from src.encoder import autocast
from src.encoder.towers import ForeignModule
from src.model_a.chain import embed

TOLERANCE = 0.01  # of the mean distance between embeddings of different images


def varied_images(height: int, width: int) -> torch.Tensor:
    """(6, 3, height, width) float32 in -2..2: noise, fine and coarse, a gradient, shapes."""
    generator = torch.Generator().manual_seed(0)
    y = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width)[None, :].expand(height, width)

    # from one pixel to the whole image: a part left out may show only in some of them
    fine = torch.randn(3, height, width, generator=generator).clamp(-2, 2)
    few = torch.randn(1, 3, 5, 5, generator=generator).clamp(-2, 2)
    coarse = F.interpolate(few, size=(height, width), mode="bicubic")[0].clamp(-2, 2)
    gradient = torch.stack([2 * x, 2 * y, -x - y])
    disc = ((x - 0.2) ** 2 + (y + 0.3) ** 2 < 0.3).float()
    stripes = torch.sign(torch.sin(12 * x + 5 * y))
    checks = torch.sign(torch.sin(9 * x) * torch.sin(9 * y))
    return torch.stack(
        [
            fine,
            coarse,
            gradient,
            torch.stack([4 * disc - 2, 1 - disc, disc]),
            torch.stack([stripes, -stripes, 2 * stripes]),
            torch.stack([2 * checks, checks, x]),
        ]
    )


@torch.no_grad()
def same_embeddings(visual: ForeignModule, parts: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Whether `parts` gives the embeddings of `visual`; False where either cannot be computed.

    The largest error may be a hundredth of the mean distance between the images, or, at half
    precision, what rounding alone changes in the whole tower.
    """
    try:
        size = visual.image_size
        height, width = size if isinstance(size, tuple | list) else (size, size)
        device = next(visual.parameters()).device
        x = varied_images(height, width).to(device).contiguous(memory_format=torch.channels_last)
        with autocast(device):
            whole = F.normalize(embed(visual, x).float(), dim=-1)
            error = (F.normalize(parts(x).float(), dim=-1) - whole).norm(dim=-1).max()
        if error <= TOLERANCE * torch.pdist(whole).mean():
            return True

        # at half precision the parts may round otherwise: as far off as the whole is from exact
        with torch.autocast(device.type, enabled=False):
            exact = F.normalize(embed(visual, x).float(), dim=-1)
        return bool(error <= (whole - exact).norm(dim=-1).max())
    except Exception:  # whatever a library raises, the tower then runs whole
        return False
