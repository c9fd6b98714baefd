"""Folds that share the blocks which none of them changed predict what they predict alone."""

from copy import deepcopy

import numpy as np
import pytest
import torch

from src import encoder
from src.metrics import l2_normalize
from src.model_a import fit
from src.model_a.fitted import FittedModel
from src.model_a.fold_ensemble import FoldEnsemble
from src.model_a.head import Head
from src.model_a.tower import make_tower
from tests.helpers.recipes import small_recipe
from tests.helpers.tiny_clip import write_clip

_constants = np.random.default_rng(0)
PIXELS = _constants.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder)
    return encoder.load(f"local-dir:{folder}", device="cpu")


def fold(clip, seed, **recipe):
    """A fold whose trained weights are moved at random, as training would."""
    torch.manual_seed(seed)
    recipe = small_recipe(**recipe)
    head = Head(clip.model.visual.head.proj.out_features)
    found = FittedModel(make_tower(clip, recipe), head)
    with torch.no_grad():
        for parameter in found.tower.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter) * parameter.std().nan_to_num(0))
    return found


def whole(clip, folds):
    return l2_normalize(np.sum([fit.predict_pixels(f, clip, PIXELS) for f in folds], axis=0))


def test_shared_blocks_change_no_prediction(clip):
    members = {"model_a": [fold(clip, seed, trainable_blocks=2) for seed in (1, 2)]}
    ensemble = FoldEnsemble(clip, members)
    assert ensemble.shared == {"model_a"}
    embedding, found = ensemble(PIXELS)
    np.testing.assert_allclose(embedding, encoder.embed_images(clip, PIXELS), atol=1e-5)
    np.testing.assert_allclose(found["model_a"], whole(clip, members["model_a"]), atol=1e-5)
    assert (
        np.abs(fit.predict_pixels(members["model_a"][0], clip, PIXELS) - found["model_a"]).max()
        > 1e-3
    )


def test_the_frozen_blocks_run_once(clip):
    folds = [fold(clip, seed, trainable_blocks=2) for seed in (1, 2)]
    ensemble = FoldEnsemble(clip, {"model_a": folds})
    stems = [
        tower.visual.trunk.conv_stem
        for tower in (ensemble.plain, clip.model, *(f.tower for f in folds))
    ]
    calls = []
    hooks = [stem.register_forward_hook(lambda *_: calls.append(1)) for stem in stems]
    ensemble(PIXELS)
    for hook in hooks:
        hook.remove()
    assert len(calls) == 1


def test_a_member_of_another_cut_or_with_other_frozen_blocks_runs_whole(clip):
    changed = fold(clip, 3, trainable_blocks=2)
    with torch.no_grad():
        changed.tower.visual.trunk.conv_stem.weight.mul_(1.1)
    members = {
        "model_a": [fold(clip, 1, trainable_blocks=2)],
        "deeper": [fold(clip, 2, trainable_blocks=4)],
        "changed": [changed],
    }
    ensemble = FoldEnsemble(clip, members)
    assert ensemble.shared == {"model_a"}
    found = ensemble(PIXELS)[1]
    for name, folds in members.items():
        np.testing.assert_allclose(found[name], whole(clip, folds), atol=1e-5)


@pytest.mark.parametrize("lora_blocks", [-1, 1])
def test_in_front_of_adapters_the_blocks_are_shared(clip, lora_blocks):
    members = {
        "lora": [
            fold(clip, seed, trainable_blocks=1, lora_rank=2, lora_blocks=lora_blocks)
            for seed in (1, 2)
        ]
    }
    ensemble = FoldEnsemble(clip, members)
    assert ensemble.shared == {"lora"} and ensemble.plain.cut == members["lora"][0].tower.cut
    embedding, found = ensemble(PIXELS)
    np.testing.assert_allclose(embedding, encoder.embed_images(clip, PIXELS), atol=1e-5)
    np.testing.assert_allclose(found["lora"], whole(clip, members["lora"]), atol=1e-5)


def test_without_a_member_it_is_the_clip(clip):
    embedding, found = FoldEnsemble(clip, {})(PIXELS)
    np.testing.assert_allclose(embedding, encoder.embed_images(clip, PIXELS), atol=1e-6)
    assert not found and deepcopy(embedding).dtype == np.float32
