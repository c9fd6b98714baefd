"""Targets, and the augmentation of prompts."""

import numpy as np
import pytest
import torch

from src import augmentation, prompts


def test_synonyms_and_shuffling_change_prompts_the_same_way_for_a_seed():
    texts = ["a beautiful painting of a small house", "xyzzy plugh"]
    first = prompts.augment(texts, synonyms=True, shuffle=False, seed=1)
    assert first == prompts.augment(texts, synonyms=True, shuffle=False, seed=1)
    assert first[0] != texts[0] and first[1] == texts[1]
    shuffled = prompts.augment(texts, synonyms=False, shuffle=True, seed=1)
    assert shuffled[0] != texts[0] and sorted(shuffled[0].split()) == sorted(texts[0].split())


def test_changed_prompts_are_encoded_anew_once_and_kept(tmp_path):
    texts = ["a beautiful painting of a small house", "a big dog in the forest"]
    changed, rows = prompts.changed_targets(texts, tmp_path, kind="synonyms", seed=1)
    assert np.abs(rows - prompts.encode(changed)).max() < 1e-5 and (rows != prompts.encode(texts)).any()
    written = (tmp_path / "targets_synonyms.npy").stat().st_mtime_ns
    assert (prompts.changed_targets(texts, tmp_path, kind="synonyms", seed=1)[1] == rows).all()
    assert (tmp_path / "targets_synonyms.npy").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="kind must be synonyms or shuffle"):
        prompts.changed_targets(texts, tmp_path, kind="typos", seed=1)


def test_targets_are_unit_rows_in_order_and_those_of_the_known_model():
    rows = prompts.encode(["a fox", "a fox in the snow", "a fox"])
    assert rows.shape == (3, 384) and rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert (rows[0] == rows[2]).all() and rows[0] @ rows[1] > 0.7
    assert prompts.encode([]).shape == (0, 384)


@pytest.mark.parametrize(("prompt", "tells"), [
    ("a cat left of a dog", True),
    ("leftovers on a bright table", False), ("a right-handed knight", True), ("an upright piano", False),
])
def test_prompts_that_tell_sides(prompt, tells):
    assert prompts.tells_sides(prompt) == tells


def test_pictures_change_but_not_their_shape_and_a_flip_is_held_back_where_it_would_lie():
    torch.manual_seed(0)
    half = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    half[..., :16] = 255  # white on the left
    kept = augmentation.augment(half, torch.zeros(64, dtype=torch.bool))
    flipped = augmentation.augment(half, torch.ones(64, dtype=torch.bool))
    assert kept.shape == half.shape and kept.dtype == torch.uint8 and (kept != half).any()
    sides = [(x[..., 4:12].float().mean((1, 2, 3)) > x[..., 20:28].float().mean((1, 2, 3))).float().mean() for x in (kept, flipped)]
    assert sides[0] == 1 and 0.2 < sides[1] < 0.8
    with pytest.raises(ValueError, match="64 pictures, but 3"):
        augmentation.augment(half, torch.ones(3, dtype=torch.bool))
