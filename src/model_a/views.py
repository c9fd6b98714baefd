"""Views of an image, over which Model A's prediction of it may be averaged.

Each is made from the pixels that the tower sees anyway, so the stages and new images share one way.
"""

from collections.abc import Callable, Sequence

import numpy as np

CENTER = "center"
PLAIN = (CENTER,)  # the image as it is, and nothing else
SIDE = 7 / 8  # of a cut-out, over the side of the image

Change = Callable[[np.ndarray], np.ndarray]  # (n, s, s, 3) uint8 -> the same shape


def unchanged(pixels: np.ndarray) -> np.ndarray:
    """The image as it is."""
    return pixels


def flipped(pixels: np.ndarray) -> np.ndarray:
    """Left and right exchanged."""
    return np.ascontiguousarray(pixels[:, :, ::-1])


def cut_out(pixels: np.ndarray, down: float, right: float) -> np.ndarray:
    """A square of SIDE times the side, brought back to the full size.

    `down` and `right` say where it lies, from 0 (top, left) to 1 (bottom, right).
    """
    import torch
    from torchvision.transforms.v2 import functional as transforms

    full = pixels.shape[1]
    side = round(SIDE * full)
    top = round(down * (full - side))
    left = round(right * (full - side))
    # (n, side, side, 3), then channels first, as the resize wants them
    part = np.ascontiguousarray(pixels[:, top : top + side, left : left + side])
    images = torch.from_numpy(part).permute(0, 3, 1, 2)
    resized = transforms.resize(images, [full, full], antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous().numpy()


def cut_out_at(down: float, right: float) -> Change:
    """`cut_out` at one place."""
    return lambda pixels: cut_out(pixels, down, right)


CHANGES: dict[str, tuple[Change, ...]] = {
    CENTER: (unchanged,),
    "flip": (flipped,),
    "zoom": (cut_out_at(0.5, 0.5),),
    "corners": tuple(cut_out_at(down, right) for down in (0, 1) for right in (0, 1)),
}


def changes_of(views: Sequence[str]) -> list[Change]:
    """What is done to an image for each of `views`; all of them count alike in the mean.

    Raises ValueError for a view that is unknown or named twice, and for no view at all.
    """
    unknown = [view for view in views if view not in CHANGES]
    if unknown or not views or len(set(views)) < len(views):
        raise ValueError(
            f"views must be some of {', '.join(CHANGES)}, each once, got {list(views)}"
        )
    return [change for view in views for change in CHANGES[view]]
