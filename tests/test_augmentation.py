"""Changed pictures keep shape and type, and flips respect the prompt."""

import pytest
import torch

from src import augmentation


def half_white(n):
    pictures = torch.zeros(n, 3, 32, 32, dtype=torch.uint8)
    pictures[..., 16:] = 255
    return pictures


def test_pictures_change_and_keep_their_form():
    torch.manual_seed(0)
    pictures = half_white(20)
    changed = augmentation.augment(pictures, torch.ones(20, dtype=torch.bool))
    assert changed.shape == pictures.shape and changed.dtype == torch.uint8
    assert all((a != b).any() for a, b in zip(changed, pictures, strict=True))
    assert len({tuple(p.flatten().tolist()) for p in changed}) >= 3, "several draws a batch"


@pytest.mark.parametrize("may", [True, False])
def test_only_pictures_that_may_be_flipped_are(may):
    torch.manual_seed(0)
    changed = augmentation.augment(half_white(40), torch.full((40,), may)).float()
    flipped = changed[..., :12].mean(dim=(1, 2, 3)) > changed[..., 20:].mean(dim=(1, 2, 3))
    assert 8 < flipped.sum() < 32 if may else not flipped.any()


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 pictures, but 3 entries"):
        augmentation.augment(half_white(2), torch.ones(3, dtype=torch.bool))
