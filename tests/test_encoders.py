"""Encoders of every family: loaded, cut, trained a step, kept, loaded again, the same vectors."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch

from src import encoder
from src.artifacts import load_embeddings
from src.model_a import chain, fit, folds
from src.model_a.tower import Tower, make_tower
from tests.helpers import random_clips, toy_training
from tests.helpers.recipes import small_recipe

# family by open_clip's name, and whether its tower is cut
OPEN_CLIP = {
    "MobileCLIP-S1": True,
    "MobileCLIP2-S0": True,
    "coca_ViT-B-32": True,
    "EVA02-B-16": True,
    "PE-Core-T-16-384": True,
    "ViT-B-16-SigLIP2": True,
    "ViT-B-16-quickgelu": True,  # DFN, MetaCLIP
    "ViT-H-14-worldwide": True,  # MetaCLIP 2
    "ViTamin-S": True,
    "convnext_base": True,
    "RN50": False,
}
TIMM = {"test_vit": True, "test_efficientnet": True, "test_resnet": False}
RECIPE = small_recipe(epochs=1, batch_size=4, trainable_blocks=1)


def check_training(clip: encoder.Encoder, folder, is_cut: bool) -> None:
    """One step on four images; what is stored is what the loaded fold predicts."""
    data = toy_training.data_for(clip, 5)
    tower = make_tower(clip, RECIPE)
    assert tower.splits == is_cut
    rows = np.arange(5)
    record = folds.train_fold(
        clip, data, data, rows=rows, scored=rows, recipe=RECIPE, seed=0, base=folder / "fold"
    )
    assert len(record["history"]) == 2 and record["history"][1]["loss"] > 0

    _, stored = load_embeddings(folder / "fold_test")
    again = fit.predict_pixels(folds.load_fold(folder / "fold", clip), clip, data.pixels)
    np.testing.assert_allclose(again, stored, atol=1e-5)


@pytest.mark.parametrize(("name", "is_cut"), OPEN_CLIP.items(), ids=OPEN_CLIP)
def test_a_family_of_open_clip_is_trained_kept_and_loaded(tmp_path, name, is_cut):
    if name not in open_clip.list_models():
        pytest.skip(f"this open_clip has no {name}")
    clip = encoder.load(random_clips.write_random_clip(name, tmp_path / "clip"), device="cpu")
    check_training(clip, tmp_path, is_cut)
    assert encoder.embed_texts(clip, ["a fox", "two boats"]).shape[0] == 2


@pytest.mark.parametrize(("name", "is_cut"), TIMM.items(), ids=TIMM)
def test_a_timm_tower_is_a_member_of_model_a_alone(tmp_path, name, is_cut):
    clip = encoder.load(random_clips.write_timm_tower(name, tmp_path / "tower"), device="cpu")
    assert not clip.has_text
    check_training(clip, tmp_path, is_cut)
    with pytest.raises(ValueError, match="has no text tower: it can be one of notebook 02's"):
        encoder.embed_texts(clip, ["a fox"])


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_folder_of_transformers_gives_what_transformers_gives(tmp_path, family):
    import transformers

    name = random_clips.write_hugging_face_clip(family, tmp_path / "clip")
    clip = encoder.load(name, device="cpu")
    check_training(clip, tmp_path, is_cut=True)

    theirs = transformers.AutoModel.from_pretrained(tmp_path / "clip").eval()
    pixels = toy_training.data_for(clip, 3).pixels
    texts = ["a red fox", "a blue boat on ice"]
    with torch.no_grad():
        x = clip.normalize(pixels)
        image = theirs.get_image_features(pixel_values=x).pooler_output
        text = theirs.get_text_features(input_ids=clip.tokenizer(texts)).pooler_output
        torch.testing.assert_close(clip.model.encode_image(x), image)
        torch.testing.assert_close(clip.model.encode_text(clip.tokenizer(texts)), text)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_folder_of_transformers_runs_at_another_size(tmp_path, family):
    import transformers

    name = random_clips.write_hugging_face_clip(family, tmp_path / "clip")
    clip = encoder.load(f"{name}@64", device="cpu")
    assert clip.geometry.size == 64
    assert clip.fingerprint != encoder.load(name, device="cpu").fingerprint
    assert Tower(clip.model.visual, 1).splits

    theirs = transformers.AutoModel.from_pretrained(tmp_path / "clip").eval()
    x = clip.normalize(toy_training.data_for(clip, 3).pixels)
    with torch.no_grad():
        image = theirs.get_image_features(pixel_values=x, interpolate_pos_encoding=True)
        torch.testing.assert_close(clip.model.encode_image(x), image.pooler_output)

    with pytest.raises(RuntimeError, match="60 pixels are not a multiple of the patch size 8"):
        encoder.load(f"{name}@60", device="cpu")


def test_a_lost_rotary_embedding_is_noticed(monkeypatch, tmp_path):
    name = random_clips.write_random_clip("EVA02-B-16", tmp_path / "clip")
    visual = encoder.load(name, device="cpu").model.visual
    assert Tower(visual, 1).splits
    monkeypatch.setattr(chain, "_blocks_with_rotary_embedding", lambda trunk: list(trunk.blocks))
    assert not Tower(visual, 1).splits


def test_a_cut_that_raises_leaves_the_tower_whole(monkeypatch, tmp_path):
    clip = encoder.load(toy_training.write_clip(tmp_path / "clip"), device="cpu")

    def broken(x):
        raise TypeError("another signature")

    found = chain.chain_of(clip.model.visual)
    monkeypatch.setattr("src.model_a.tower.chain_of", lambda visual: replace(found, stem=broken))
    assert not Tower(clip.model.visual, 1).splits


# --- weights of a local folder ---


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "weights.pt"])
def test_weights_under_other_names_are_loaded(tmp_path, name):
    clip = toy_training.write_clip(tmp_path / "clip")
    expected = encoder.load(clip, device="cpu").model.state_dict()
    file = tmp_path / "clip" / "open_clip_model.safetensors"
    if name.endswith(".safetensors"):
        file.rename(file.with_name(name))
    else:
        file.unlink()
        torch.save({"state_dict": expected, "epoch": 3}, file.with_name(name))
    loaded = encoder.load(clip, device="cpu").model.state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())


def test_pickled_weights_run_at_another_size_whatever_their_name(tmp_path):
    loaded = []
    for name in ("model.pth", "weights.pt"):
        clip = toy_training.write_clip(tmp_path / name / "clip")
        file = tmp_path / name / "clip" / "open_clip_model.safetensors"
        torch.save(encoder.load(clip, device="cpu").model.state_dict(), file.with_name(name))
        file.unlink()
        loaded.append(encoder.load(f"{clip}@64", device="cpu"))

    by_open_clip, by_hand = loaded
    assert by_hand.geometry.size == by_open_clip.geometry.size == 64
    tensors = by_open_clip.model.state_dict()
    assert tensors["visual.positional_embedding"].shape[0] == 17  # 4 x 4 patches and the class
    for key, tensor in by_hand.model.state_dict().items():
        assert torch.equal(tensor, tensors[key]), key


def test_a_git_lfs_pointer_and_a_training_checkpoint_are_named(tmp_path):
    clip = toy_training.write_clip(tmp_path / "clip")
    file = tmp_path / "clip" / "open_clip_model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(
        ValueError, match="is a Git LFS pointer in place of the file: run `git lfs pull`"
    ):
        encoder.load(clip, device="cpu")

    file.unlink()
    torch.save({"model": {}, "optimizer": {}, "step": 7}, file.with_name("model.pth"))
    with pytest.raises(RuntimeError, match="is a training checkpoint, not weights: model, optim"):
        encoder.load(clip, device="cpu")


def test_a_folder_of_another_model_is_refused_by_its_type(tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="describes a 'bert'; known are clip, siglip"):
        encoder.load(f"local-dir:{tmp_path / 'bert'}", device="cpu")
