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


def test_each_change_is_made_by_itself():
    torch.manual_seed(0)
    images = half_white(16)
    may_flip = torch.ones(16, dtype=torch.bool)

    def changed(**which: bool) -> torch.Tensor:
        none = dict.fromkeys(("rotation", "flip", "crop"), False)
        changes = augmentation.ImageChanges(**(none | which))
        return augmentation.augment(images, may_flip, changes=changes, chunk=1)

    assert torch.equal(changed(), images)

    # a flip leaves whole columns, black on one side
    flipped = changed(flip=True)
    mirrored = images[0].flip(-1)
    assert all(torch.equal(image, images[0]) or torch.equal(image, mirrored) for image in flipped)
    assert 0 < sum(torch.equal(image, mirrored) for image in flipped) < 16

    # a crop moves the border, which stays upright; a rotation tilts it and fills the corners gray
    cropped = changed(crop=True)
    assert not torch.equal(cropped, images)
    assert (cropped == cropped[:, :, :1]).all()
    rotated = changed(rotation=True)
    assert (rotated[:, :, 0, 0] == 128).any()
    assert not (rotated == rotated[:, :, :1]).all()


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 images, but 3 entries"):
        augmentation.augment(half_white(2), torch.ones(3, dtype=torch.bool))
