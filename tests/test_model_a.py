"""Folds on disk: trained, kept, loaded again, on three families of towers, also by Dask workers."""

import time
from dataclasses import replace
from multiprocessing import active_children

import numpy as np
import pytest
import torch

from src import dask_workers, encoder
from src.artifacts import load_embeddings
from src.data import images
from src.model_a import fit, folds, training_set
from src.model_a.tower import make_tower
from tests.helpers import toy_training
from tests.helpers.recipes import small_recipe

RECIPE = small_recipe(epochs=2, batch_size=16)
CONVNEXT = {
    "timm_model_name": "test_convnext",
    "timm_pool": "avg",
    "timm_proj": "linear",
    "image_size": 64,
}
VIT_B_32 = {
    "image_size": 224,
    "patch_size": 32,
    "width": 768,
    "layers": 12,
    "head_width": 64,
}  # OpenAI's, in full size
CONVNEXT_TINY = {
    "timm_model_name": "convnext_tiny",
    "timm_pool": "avg",
    "timm_proj": "linear",
    "image_size": 224,
}
TIMM = {
    "timm_model_name": "test_vit",
    "timm_pool": "token",
    "timm_proj": "linear",
    "image_size": 160,
}


def tasks(folder):
    folds = np.arange(60) % 2
    return [
        {
            "rows": np.flatnonzero(folds != f),
            "scored": np.flatnonzero(folds == f),
            "recipe": RECIPE,
            "seed": f,
            "base": folder / f"model_a_fold{f}",
            "label": f"fold {f}",
        }
        for f in (0, 1)
    ]


TOWERS = {
    "vit": (toy_training.VISION, {}),
    "convnext": (CONVNEXT, {}),
    "timm_vit": (TIMM, {}),
    "ViT-B-32": (VIT_B_32, {"quick_gelu": True}),
    "ConvNeXt-T": (CONVNEXT_TINY, {}),
}


@pytest.mark.parametrize(("vision", "options"), TOWERS.values(), ids=TOWERS)
def test_a_tower_is_trained_kept_loaded_and_predicts_the_same(tmp_path, vision, options):
    clip = encoder.load(toy_training.write_clip(tmp_path / "clip", vision, **options), device="cpu")
    data = toy_training.data_for(clip, 12)
    rows = np.arange(12)
    recipe = replace(RECIPE, head="paper", epochs=1, batch_size=4)
    found = folds.train_fold(
        clip, data, data, rows=rows, scored=rows[:6], recipe=recipe, seed=0, base=tmp_path / "fold"
    )
    _, stored = load_embeddings(tmp_path / "fold_test")
    fitted = folds.load_fold(tmp_path / "fold", clip)
    assert fit.predict_pixels(fitted, clip, data.pixels) == pytest.approx(stored, abs=1e-5)
    assert (
        found["rows_trained"] == 12
        and len(found["history"]) == 2
        and not (tmp_path / "fold.checkpoint").exists()
    )


def test_a_fold_is_not_trained_twice_and_not_loaded_with_another_clip(tmp_path, monkeypatch):
    clip = encoder.load(toy_training.write_clip(tmp_path / "clip"), device="cpu")
    data = toy_training.data_for(clip)
    first = folds.train_fold(clip, data, data, **tasks(tmp_path)[0])
    monkeypatch.setattr(folds, "fit", None)
    assert folds.train_fold(clip, data, data, **tasks(tmp_path)[0]) == first
    with pytest.raises(ValueError, match="model_a_fold0 was trained from another CLIP"):
        folds.load_fold(tmp_path / "model_a_fold0", replace(clip, fingerprint="other"))


def test_two_dask_workers_give_what_one_process_gives(tmp_path):
    name = toy_training.write_clip(tmp_path / "clip")
    clip = encoder.load(name, device="cpu")
    data = toy_training.data_for(clip)
    np.save(tmp_path / "pixels.npy", data.pixels)
    data = replace(
        data, pixels=np.load(tmp_path / "pixels.npy", mmap_mode="r")
    )  # goes to the workers as its file
    shared = {"encoder": clip, "data": data, "test": data}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has: another number adds in another order
    here = dask_workers.run(folds.train_fold, tasks(tmp_path / "here"), shared=shared)
    torch.set_num_threads(threads)
    before = set(active_children())
    there = dask_workers.run(
        folds.train_fold, tasks(tmp_path / "there"), shared=shared, cluster="local"
    )
    deadline = time.monotonic() + 60  # for a killed worker on a busy machine to be gone
    while set(active_children()) > before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not set(active_children()) - before, "the workers outlive their work"
    assert [f["score"] for f in here] == [f["score"] for f in there]
    for f in (0, 1):
        a, b = (
            load_embeddings(tmp_path / place / f"model_a_fold{f}_test")[1]
            for place in ("here", "there")
        )
        assert (a == b).all()


def test_an_unknown_cluster_is_refused():
    with pytest.raises(
        ValueError, match="cluster must be null, local or tcp://host:port, got 'slurm'"
    ):
        dask_workers.run(print, [], shared={}, cluster="slurm")


def test_frozen_activations_are_kept_for_the_same_images_alone(tmp_path, monkeypatch):
    clip = encoder.load(toy_training.write_clip(tmp_path / "clip"), device="cpu")
    data = toy_training.data_for(clip)
    tower = make_tower(clip, RECIPE)
    pixels = images.Pixels(data.ids, data.pixels, "key", content=data.ids)
    kept = training_set.frozen_activations(tower, clip, pixels, tmp_path / "kept.npy")
    with encoder.autocast(clip.device):
        torch.testing.assert_close(
            torch.from_numpy(np.array(kept)), tower.frozen(clip.normalize(data.pixels))
        )
    monkeypatch.setattr(training_set, "_write_activations", lambda *args: False)
    assert training_set.frozen_activations(tower, clip, pixels, tmp_path / "kept.npy") is not None
    assert (
        training_set.frozen_activations(
            tower, clip, replace(pixels, key="other"), tmp_path / "kept.npy"
        )
        is None
    )


def test_embeddings_by_way_of_kept_activations_are_the_encoder_s_own(tmp_path):
    clip = encoder.load(toy_training.write_clip(tmp_path / "clip"), device="cpu")
    data = toy_training.data_for(clip)
    tower = make_tower(clip, RECIPE)
    pixels = images.Pixels(data.ids, data.pixels, "key", content=data.ids)
    kept = training_set.frozen_activations(tower, clip, pixels, tmp_path / "kept.npy")
    rounding = (
        0.01 if encoder.multiplies_bf16() else 1e-5
    )  # the encoder's own adds the last block's output up in bf16
    np.testing.assert_allclose(
        training_set.embeddings_from_activations(tower, kept, batch_size=7),
        encoder.embed_images(clip, data.pixels),
        atol=rounding,
    )


def test_another_size_interpolates_position_embeddings(tmp_path):
    name = toy_training.write_clip(tmp_path / "clip")
    small = encoder.load(name, device="cpu")
    large = encoder.load(f"{name}@64", device="cpu")
    assert large.geometry.size == 64 and small.fingerprint != large.fingerprint
    assert (
        large.model.visual.positional_embedding.shape[0] == 17
        and small.model.visual.positional_embedding.shape[0] == 5
    )
    pixels = np.full((2, 64, 64, 3), 90, np.uint8)  # one colour: the size makes little difference
    a = encoder.embed_images(small, pixels[:, :32, :32])
    b = encoder.embed_images(large, pixels)
    assert (a * b).sum(axis=1).min() > 0.5


def test_clip_score_weights_rank_images_by_their_own_prompt(tmp_path):
    clip = encoder.load(toy_training.write_clip(tmp_path / "clip"), device="cpu")
    texts = ["a fox", "two boats", "a red house"]
    own = encoder.embed_texts(clip, texts)
    embeddings = np.stack([own[0], -own[1], np.ones(24) / np.sqrt(24)]).astype(np.float32)
    weight = training_set.clip_score_weights(clip, embeddings, texts, tmp_path, "pairs")
    assert weight[0] == 1.5 and weight[1] == 0.5 and weight[2] == 1.0


def test_collected_predictions_join_folds_and_averages_test_rows(tmp_path):
    from src.artifacts import save_embeddings

    for f, angle in enumerate((0.0, 1.0)):
        rows = np.array([[np.cos(angle), np.sin(angle)]], dtype=np.float32)
        save_embeddings(tmp_path / f"f{f}_oof", [f"p{f}"], rows)
        save_embeddings(tmp_path / f"f{f}_test", ["t"], rows)
    bases = [tmp_path / "f0", tmp_path / "f1"]
    assert folds.collect_oof([[base] for base in bases])[0] == ["p0", "p1"]
    assert folds.collect_test(bases)[1] == pytest.approx(
        np.array([[np.cos(0.5), np.sin(0.5)]]), abs=1e-6
    )


def test_activations_too_large_to_keep_are_not_kept(tmp_path, monkeypatch):
    clip = encoder.load(toy_training.write_clip(tmp_path / "clip"), device="cpu")
    raw = toy_training.data_for(clip, 12)
    pixels = images.Pixels(raw.ids, raw.pixels, "some images", raw.ids)
    whole = make_tower(clip, replace(RECIPE, trainable_blocks=-1))
    assert training_set.frozen_activations(whole, clip, pixels, tmp_path / "kept.npy") is None, (
        "no block is frozen"
    )
    monkeypatch.setattr(training_set, "ACTIVATION_BYTES", 1000)
    assert (
        training_set.frozen_activations(
            make_tower(clip, RECIPE), clip, pixels, tmp_path / "kept.npy"
        )
        is None
    )
    assert not list(tmp_path.glob("*kept*"))
