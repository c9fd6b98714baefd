"""The training engine: its arithmetic on toys, and real fits of small real towers, stopped and started again."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import clips
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from src import cluster, encoder, model_a, training
from src.metrics import avg_cos, unit
from src.paths import ROOT
from src.tower import Tower
from src.training import Recipe, TrainingSet

SHORT = Recipe(epochs=2, batch_size=8, trainable_blocks=1, lr_vision=1e-3, lr_fc=1e-3, patience=9)


def pictures(n: int, size: int) -> np.ndarray:
    """Noise pictures of three kinds of brightness, so that there is something to learn."""
    rng = np.random.default_rng(0)
    return (rng.integers(0, 150, (n, size, size, 3)) + 50 * (np.arange(n) % 3)[:, None, None, None]).astype(np.uint8)


def toy_set(clip: encoder.Encoder, n: int = 60) -> TrainingSet:
    pixels = pictures(n, clip.geometry.size)
    kinds = unit(np.random.default_rng(1).standard_normal((3, 384)).astype(np.float32))
    targets = unit(kinds[np.arange(n) % 3] + 0.02 * np.random.default_rng(2).standard_normal((n, 384)).astype(np.float32))
    return TrainingSet([f"p{i}" for i in range(n)], pixels, encoder.embed_images(clip, pixels), targets[None], np.arange(n))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> encoder.Encoder:
    return encoder.load(clips.write(tmp_path_factory.mktemp("clip") / "net", "efficientnet"), device="cpu")


def test_rates_rise_and_then_fall_along_half_a_cosine():
    rates = [training.warmup_cosine(step, n_steps=10, warmup=0.2) for step in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1, 0.5 * (1 + np.cos(np.pi / 9))]) and rates[-1] < 0.04
    assert all(a > b for a, b in zip(rates[1:], rates[2:], strict=False))


def test_losses_are_1_minus_cosine_and_a_share_of_the_other():
    prediction, target = torch.eye(3, 384) * 5, torch.eye(3, 384)[[0, 1, 1]]
    plain = training.losses(prediction, target, Recipe())
    torch.testing.assert_close(plain, torch.tensor([0.0, 0, 1]))
    for loss in ("contrastive", "huber"):
        more = training.losses(prediction, target, Recipe(loss=loss, loss_mix=0.5))
        twice = training.losses(prediction, target, Recipe(loss=loss, loss_mix=1.0))
        torch.testing.assert_close(2 * (more - plain), twice - plain)
        assert more[2] > plain[2]


def test_tower_and_head_have_their_own_rates_and_the_layers_decay(clip):
    tower, head = Tower(clip.model.visual, 2), model_a.Head(32)
    recipe = Recipe(lr_vision=1e-4, lr_fc=1e-2, lr_fc2=1e-1, layer_decay=0.5, weight_decay=0.1)
    groups = training.parameter_groups(tower, head, recipe)
    assert {g["lr"] for g in groups if g["name"] == "tower"} == {1e-4, 5e-5, 2.5e-5}
    assert {g["lr"] for g in groups if g["name"] == "head"} == {1e-2, 1e-1}
    assert all(g["weight_decay"] == (0.1 if g["params"][0].ndim > 1 else 0) for g in groups)
    assert all(p.requires_grad for g in groups for p in g["params"])


def test_between_goes_from_the_start_to_the_end():
    start, end = {"w": torch.zeros(2), "n": torch.tensor(1)}, {"w": torch.ones(2), "n": torch.tensor(7)}
    assert training.between(start, end, 0.25)["w"].tolist() == [0.25, 0.25] and training.between(start, end, 0.25)["n"] == 7


def test_each_epoch_draws_one_of_the_pictures_that_stand_for_a_row():
    stands_for = np.array([0, 1, 0, 0, 4, 1])
    none = np.zeros(6)
    data = TrainingSet(list("abcdef"), none, none, np.zeros((2, 6, 384), np.float32), np.arange(6), stands_for=stands_for)
    recipe = Recipe(batch_size=2, several_pictures=True, augment_text=True)
    plans = [training.plan(data, np.array([0, 1, 4]), recipe, seed=1, epoch=epoch) for epoch in range(40)]
    assert all(sorted(stands_for[p.pictures]) == [0, 1, 4] for p in plans)
    assert {int(i) for p in plans for i in p.pictures} == set(range(6)) and {int(v) for p in plans for v in p.versions} == {0, 1}
    again = training.plan(data, np.array([0, 1, 4]), recipe, seed=1, epoch=7)
    assert (again.pictures == plans[7].pictures).all()
    one = training.plan(data, np.array([0, 1, 4]), Recipe(batch_size=2), seed=1, epoch=0)
    assert sorted(one.pictures) == [0, 1, 4] and set(one.versions) == {0} and one.bounds.tolist() == [0, 2, 3]


@pytest.mark.parametrize(("change", "message"), [
    ({"head": "deep"}, "head must be one of linear, paper, wide, got 'deep'"),
    ({"epochs": -1}, "epochs must be at least 0, got -1"),
    ({"layer_decay": 1.5}, "layer_decay must be within 0.001..1"), ({"loss": "l2"}, "loss must be one of"),
])
def test_a_wrong_recipe_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**change)


def test_parts_of_other_lengths_are_refused():
    with pytest.raises(ValueError, match="different lengths"):
        TrainingSet(["a"], np.zeros(2), np.zeros(1), np.zeros((1, 1, 384)), np.zeros(1))


@pytest.mark.parametrize("change", [
    {}, {"head": "wide"}, {"head": "linear", "ema": 0.9}, {"loss": "contrastive", "accumulate": 2}, {"augment_images": True},
    {"lora_rank": 2}, {"tower": "frozen"}, {"start": "random", "layer_decay": 0.5},
    {"grad_checkpointing": True, "activation": "gelu"},
], ids=lambda change: ", ".join(map(str, change)) or "default")
def test_a_fit_ends_at_or_above_its_start_on_the_inner_split_and_moves_what_it_should(clip, change):
    data, rows = toy_set(clip), np.arange(48)
    fitted = model_a.fit(clip, data, rows, recipe=replace(SHORT, **change), seed=3)
    _, held_out = model_a.inner_split(data.group, rows, 3)
    score = avg_cos(data.targets[0][held_out], model_a.predict(fitted, clip, data, held_out))
    assert score >= fitted.history[0]["score"] - 1e-6 and score == pytest.approx(max(fitted.factors.values()), abs=1e-5)
    assert len(fitted.history) == 3 and all(np.isfinite(entry["loss"]) for entry in fitted.history[1:])
    assert any(p.requires_grad for p in fitted.tower.parameters()) == (change.get("tower") != "frozen")


def test_a_fine_tune_that_only_loses_ends_as_its_probe(clip):
    data, rows = toy_set(clip), np.arange(48)
    fitted = model_a.fit(clip, data, rows, recipe=replace(SHORT, lr_vision=3.0, lr_fc=3.0), seed=3)
    assert fitted.factor == 0.0 or max(fitted.factors.values()) >= fitted.factors[0.0]
    _, held_out = model_a.inner_split(data.group, rows, 3)
    score = avg_cos(data.targets[0][held_out], model_a.predict(fitted, clip, data, held_out))
    assert score >= fitted.history[0]["score"] - 1e-6


def test_a_loss_that_is_not_finite_names_the_epoch_the_rates_and_the_ids(clip):
    data = toy_set(clip)
    data.targets[0, 5] = np.nan
    fitted, _ = model_a.begin(clip, data, np.arange(10, 30), np.arange(30, 40), SHORT, 0)
    run = training.Run(fitted, clip, data, np.arange(8), recipe=SHORT, seed=0, label="fox")
    with pytest.raises(FloatingPointError, match=r"fox: the loss is nan in epoch 1, batch 0, at learning rates.*'p5'"):
        list(run.steps())


def test_a_run_that_is_stopped_inside_an_epoch_ends_with_the_same_weights(clip, tmp_path):
    data, recipe = toy_set(clip), replace(SHORT, epochs=2, ema=0.9)

    def begun():
        fitted, _ = model_a.begin(clip, data, np.arange(48), np.arange(48, 60), recipe, 0)
        return training.Run(fitted, clip, data, np.arange(48), recipe=recipe, seed=0)

    whole = begun()
    list(whole.steps())
    stopped = begun()
    for n, _ in enumerate(stopped.steps(), start=1):
        if n == 3:
            stopped.save(tmp_path)
            break
    again = begun()
    assert again.load(tmp_path) and again.batch == 3
    list(again.steps())
    for name, p in training.weights(whole.fitted).items():
        assert torch.equal(p, training.weights(again.fitted)[name]), name
        assert torch.equal(whole.average[name], again.average[name]), name


SCRIPT = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
import test_training as t
from src import encoder, model_a
from dataclasses import replace
model_a.CHECKPOINT_STEPS = 2
clip = encoder.load({clip!r}, device="cpu")
data = t.toy_set(clip)
print("begun", flush=True)
recipe = replace(t.SHORT, epochs=12, patience=99)
model_a.train_fold(clip, data, data, rows=np.arange(48), scored=np.arange(48, 60), recipe=recipe, seed=1, base=Path({base!r}))
print("done", flush=True)
"""


def test_a_run_killed_again_and_again_ends_with_the_same_weights(clip, tmp_path):
    def command(base: Path) -> list[str]:
        return [sys.executable, "-c", SCRIPT.format(root=str(ROOT), tests=str(ROOT / "tests"), clip=clip.name, base=str(base))]

    whole, killed = tmp_path / "whole" / "fold", tmp_path / "killed" / "fold"
    subprocess.run(command(whole), check=True, capture_output=True)
    random, kills = np.random.default_rng(0), 0
    for attempt in range(4):
        process = subprocess.Popen(command(killed), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout.readline() == "begun\n"
        if attempt < 3:
            time.sleep(random.uniform(0.05, 0.6))
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait(120)
    assert kills == 3 and process.returncode == 0
    first, second = (load_file(base.with_name("fold.safetensors")) for base in (whole, killed))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", clips.VISION)
def test_a_trained_tower_is_saved_loaded_and_predicts_the_same(kind, tmp_path):
    clip = encoder.load(clips.write(tmp_path / "clip", kind), device="cpu")
    data = toy_set(clip, 20)
    recipe = replace(SHORT, epochs=1, batch_size=8, lr_vision=1e-4)
    base = tmp_path / "folds" / "model_a_fold0"
    record = model_a.train_fold(clip, data, data, rows=np.arange(16), scored=np.arange(16, 20), recipe=recipe, seed=0, base=base)
    assert record["rows_trained"] == 16
    ids, stored = model_a.gather([base], "test")
    loaded = model_a.load_fold(base, encoder.load(clip.name, device="cpu"))
    assert ids == data.ids and np.abs(model_a.predict_pixels(loaded, clip, data.pixels) - stored).max() < 1e-5
    before = base.with_name(base.name + ".safetensors").stat().st_mtime_ns
    model_a.train_fold(clip, data, data, rows=np.arange(16), scored=np.arange(16, 20), recipe=recipe, seed=0, base=base)
    assert base.with_name(base.name + ".safetensors").stat().st_mtime_ns == before, "a fold that is there was trained again"
    with pytest.raises(ValueError, match="another CLIP"):
        model_a.load_fold(base, replace(clip, fingerprint="other"))


def _square(n: int, offset: int) -> int:
    if n < 0:
        raise ValueError(f"n is {n}")
    return n * n + offset


def test_tasks_on_two_workers_give_the_same_in_the_same_order_and_their_own_error():
    tasks = [{"n": n} for n in range(5)]
    assert cluster.run(_square, tasks, shared={"offset": 1}) == [1, 2, 5, 10, 17]
    assert cluster.run(_square, tasks, shared={"offset": 1}, cluster="local") == [1, 2, 5, 10, 17]
    with pytest.raises(ValueError, match="n is -1"):
        cluster.run(_square, [{"n": -1}], shared={"offset": 0}, cluster="local")
    with pytest.raises(ValueError, match="cluster must be null, local or tcp"):
        cluster.run(_square, tasks, shared={"offset": 0}, cluster="everywhere")


def test_folds_on_two_workers_equal_those_trained_here(clip, tmp_path):
    data = toy_set(clip)
    shared = {"encoder": clip, "data": data, "test": data}

    def tasks(name: str) -> list[dict]:
        return [{"rows": np.arange(40), "scored": np.arange(40, 60), "recipe": replace(SHORT, epochs=1), "seed": f,
                 "base": tmp_path / name / f"fold{f}"} for f in range(2)]

    torch.set_num_threads(1)  # as each worker has: another number adds in another order
    here = cluster.run(model_a.train_fold, tasks("here"), shared=shared)
    there = cluster.run(model_a.train_fold, tasks("there"), shared=shared, cluster="local")
    assert [found["score"] for found in here] == pytest.approx([found["score"] for found in there], abs=1e-6)


def test_predictions_do_not_depend_on_the_batch_and_draw_nothing(clip):
    data = toy_set(clip)
    fitted = model_a.fit(clip, data, np.arange(48), recipe=replace(SHORT, epochs=1, head="wide", augment_images=True), seed=0)
    rows = np.arange(60)
    first = model_a.predict(fitted, clip, data, rows, batch_size=7)
    assert np.abs(first - model_a.predict(fitted, clip, data, rows)).max() < 1e-5
    assert np.linalg.norm(first, axis=1) == pytest.approx(np.ones(60), abs=1e-5)
    assert isinstance(fitted.head, nn.Module) and not fitted.head.training
