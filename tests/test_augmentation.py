"""Changed images keep shape and type, and flips respect the prompt."""

import pytest
import torch

from src.model_a import augmentation


def half_white(n):
    images = torch.zeros(n, 3, 32, 32, dtype=torch.uint8)
    images[..., 16:] = 255
    return images


def test_images_change_and_keep_their_form():
    torch.manual_seed(0)
    images = half_white(20)
    changed = augmentation.augment(images, torch.ones(20, dtype=torch.bool))
    assert changed.shape == images.shape and changed.dtype == torch.uint8
    assert all((a != b).any() for a, b in zip(changed, images, strict=True))
    assert len({tuple(p.flatten().tolist()) for p in changed}) >= 3, "several draws a batch"


@pytest.mark.parametrize("may", [True, False])
def test_only_images_that_may_be_flipped_are(may):
    torch.manual_seed(0)
    changed = augmentation.augment(half_white(40), torch.full((40,), may)).float()
    flipped = changed[..., :12].mean(dim=(1, 2, 3)) > changed[..., 20:].mean(dim=(1, 2, 3))
    assert 8 < flipped.sum() < 32 if may else not flipped.any()


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 images, but 3 entries"):
        augmentation.augment(half_white(2), torch.ones(3, dtype=torch.bool))
