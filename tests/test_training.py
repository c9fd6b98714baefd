"""The engine: plans, losses, rates, the average, weights between two states, killed runs."""

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from src import encoder
from src.data import images
from src.model_a import fit as fit_module
from src.model_a import fitted as fitted_module
from src.model_a import head, training
from src.model_a.tower import make_tower
from tests.helpers import toy_training
from tests.helpers.recipes import small_recipe

FAST = small_recipe(epochs=3, batch_size=16, patience=9)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return encoder.load(
        toy_training.write_clip(tmp_path_factory.mktemp("clip") / "vit"), device="cpu"
    )


@pytest.fixture(scope="module")
def data(clip):
    return toy_training.data_for(clip)


def fit(clip, data, recipe, **options):
    return fit_module.fit(clip, data, np.arange(len(data.ids)), recipe=recipe, seed=3, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "tall"}, "head must be one of linear, paper, wide, got 'tall'"),
        ({"loss": "l1"}, "loss must be one of"),
        ({"ema": 1.0}, "ema must be within"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_a_recipe_refuses_values_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        replace(FAST, **change)


def test_rates_rise_then_fall_to_nearly_nothing():
    rates = [training.warmup_cosine(step, n_steps=20, warmup=0.2) for step in range(20)]
    assert (
        rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1])
        and np.all(np.diff(rates[3:]) < 0)
        and 0 < rates[-1] < 0.02
    )


def test_groups_have_two_rates_layer_decay_and_no_decay_on_norms(clip):
    recipe = replace(
        FAST,
        lr_vision=1.0,
        lr_fc=5.0,
        lr_fc2=7.0,
        layer_decay=0.5,
        trainable_blocks=2,
        weight_decay=0.1,
    )
    groups = training.parameter_groups(make_tower(clip, recipe), head.Head(24), recipe)
    assert {(g["name"], g["lr"]) for g in groups} == {
        ("tower", 1.0),
        ("tower", 0.5),
        ("tower", 0.25),
        ("head", 5.0),
        ("head", 7.0),
    }
    assert all(g["weight_decay"] == (0.1 if p.ndim > 1 else 0) for g in groups for p in g["params"])


def test_losses_by_hand():
    prediction = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert training.losses(prediction, target, FAST).tolist() == [0, 1]
    huber = training.losses(prediction, target, replace(FAST, loss="huber", loss_mix=1.0))
    assert huber[0] == 0 and huber[1].item() == pytest.approx(1 + np.sqrt(2) - 0.5)
    own = torch.eye(2)
    contrastive = training.losses(own, own, replace(FAST, loss="contrastive", loss_mix=1.0))
    assert contrastive[0].item() == pytest.approx(np.log(1 + np.exp(-20)), abs=1e-6)


def test_several_images_of_a_prompt_take_turns(data):
    stands_for = np.arange(60)
    stands_for[50:] = 7
    several = replace(data, stands_for=stands_for)
    recipe = replace(FAST, sample_duplicates=True)
    drawn = [
        set(training.epoch_plan(several, np.arange(50), recipe, seed=1, epoch=e).images)
        for e in range(40)
    ]
    assert all(len(d) == 50 and len(d & {7, *range(50, 60)}) == 1 for d in drawn)
    assert len(set.union(*drawn)) == 60, "every image has its turn"
    plain = training.epoch_plan(several, np.arange(50), FAST, seed=1, epoch=1)
    assert (
        sorted(plain.images) == list(range(50))
        and np.diff(plain.bounds).max() - np.diff(plain.bounds).min() <= 1
    )


def test_memory_maps_travel_as_their_files(data, tmp_path):
    raw = np.memmap(tmp_path / "raw.u8", np.uint8, mode="w+", shape=(63, *data.pixels.shape[1:]))
    raw[3:] = data.pixels
    raw.flush()
    np.save(tmp_path / "kept.npy", data.embeddings)
    order = np.random.default_rng(0).permutation(60)
    for pixels, expected in (
        (raw[3:], data.pixels),
        (images.Rows(raw, 3 + order), data.pixels[order]),
    ):
        sent = pickle.dumps(
            replace(data, pixels=pixels, activations=np.load(tmp_path / "kept.npy", mmap_mode="r"))
        )
        assert len(sent) < raw.nbytes + data.targets.nbytes
        arrived = pickle.loads(sent)
        assert (np.asarray(arrived.pixels[:]) == expected).all() and (
            arrived.activations == data.embeddings
        ).all()


def test_accumulated_batches_are_one_large_batch(clip, data):
    whole = fit(clip, data, replace(FAST, epochs=1, batch_size=54, clip_norm=0))
    parts = fit(clip, data, replace(FAST, epochs=1, batch_size=14, accumulate=4, clip_norm=0))
    assert parts.history[1]["score"] == pytest.approx(whole.history[1]["score"], abs=2e-3)


def test_kept_activations_train_the_same_model(clip, data):
    tower = make_tower(clip, FAST)
    with encoder.autocast(clip.device):
        kept = replace(data, activations=tower.frozen(clip.normalize(data.pixels)).numpy())
    assert fit(clip, kept, FAST).history[-1]["score"] == pytest.approx(
        fit(clip, data, FAST).history[-1]["score"], abs=1e-4
    )


OPTIONS = [
    {"head": "linear"},
    {"head": "wide", "ema": 0.9},
    {"ema": 0.9},
    {"tower": "frozen"},
    {"loss": "huber"},
    {"loss": "contrastive"},
    {"lora_rank": 2},
    {"augment_rotation": True},
    {"augment_flip": True},
    {"augment_crop": True},
    {"activation": "gelu"},
    {"head_init": "random"},
    {"grad_checkpointing": True},
    {"weight_by_clip_score": True},
    {"trainable_blocks": -1},
]


@pytest.mark.parametrize("change", OPTIONS, ids=str)
def test_every_option_trains_and_never_ends_below_its_start(clip, data, change):
    fitted = fit(
        clip,
        replace(data, weight=np.linspace(0.5, 1.5, 60, dtype=np.float32)),
        replace(FAST, epochs=2, **change),
    )
    assert len(fitted.history) == 3 and fitted.history[1]["loss"] > 0
    assert max(fitted.factors.values()) >= fitted.history[0]["score"] - 1e-6
    assert fitted.factors[fitted.factor] == max(fitted.factors.values())


def test_a_fine_tune_that_only_loses_ends_as_its_probe(clip, data):
    ruined = fit(clip, data, replace(FAST, lr_vision=3.0, lr_fc=3.0, interpolate=False))
    assert (
        ruined.factor == 0
        or max(e["score"] for e in ruined.history[1:]) > ruined.history[0]["score"]
    )
    assert ruined.factors[ruined.factor] >= ruined.history[0]["score"] - 1e-6


def test_the_average_lags_behind_and_between_is_linear():
    start = {"a": torch.zeros(2), "n": torch.tensor(0)}
    end = {"a": torch.ones(2), "n": torch.tensor(5)}
    middle = fitted_module.interpolate(start, end, 0.25)
    assert middle["a"].tolist() == [0.25, 0.25] and middle["n"] == 5


def test_a_loss_that_is_nan_stops_with_epoch_rate_and_ids(clip, data):
    broken = data.targets.copy()
    broken[0, 5] = np.nan
    inner, _ = fit_module.inner_split(data.group, np.arange(60), 3)
    broken[0, [i for i in range(60) if i not in inner]] = data.targets[0, 0]
    fitted, _ = fit_module.init_model(clip, data, inner, inner[:5], FAST, 3)
    trainer = training.Trainer(
        fitted, clip, replace(data, targets=broken), inner, recipe=FAST, seed=3, label="fold 0"
    )
    with pytest.raises(
        FloatingPointError,
        match=r"fold 0: the loss is nan in epoch 1, batch \d, at learning rates .*'p5'",
    ):
        list(trainer.steps())


def a_trainer(clip, data, targets=None):
    inner, held_out = fit_module.inner_split(data.group, np.arange(60), 3)
    fitted, _ = fit_module.init_model(clip, data, inner, held_out, FAST, 3)
    changed = data if targets is None else replace(data, targets=targets)
    return training.Trainer(fitted, clip, changed, inner, recipe=FAST, seed=3, label="fold 0")


def test_losses_read_together_give_the_same_epoch(clip, data):
    trainers = [a_trainer(clip, data) for _ in range(2)]
    trainers[1].read_every = 3  # as on a GPU: some batches, and the rest at the epoch's end
    for trainer in trainers:
        for _ in trainer.steps():
            pass
    assert trainers[0].total == trainers[1].total > 0
    states = [fitted_module.snapshot(trainer.fitted) for trainer in trainers]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_bad_loss_that_is_read_late_still_stops_and_is_not_kept(clip, data, tmp_path):
    broken = data.targets.copy()
    broken[0, 5] = np.nan
    trainer = a_trainer(clip, data, broken)
    if 5 not in trainer.rows:
        broken[0, trainer.rows[0]] = np.nan
    trainer.read_every = 100
    with pytest.raises(FloatingPointError, match=r"fold 0: the loss is nan in epoch 1, batch \d"):
        for _ in trainer.steps():
            pass
    with pytest.raises(FloatingPointError):
        trainer.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_out_of_memory_says_what_to_lower(clip, data, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "losses", full)
    with pytest.raises(
        torch.OutOfMemoryError, match="batch_size 16. Halve it and double accumulate"
    ):
        fit(clip, data, FAST)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_stopped_inside_an_epoch_and_resumed_it_ends_with_the_same_weights(
    clip, data, tmp_path, monkeypatch, ema
):
    recipe = replace(FAST, ema=ema, augment_rotation=True, augment_flip=True, augment_crop=True)
    undisturbed = fitted_module.snapshot(fit(clip, data, recipe))
    monkeypatch.setattr(fit_module, "CHECKPOINT_STEPS", 1)
    batches = iter(range(100))

    def stop(self, batch, go_on=training.Trainer._batch):
        if next(batches) in (2, 6):
            raise KeyboardInterrupt
        return go_on(self, batch)

    monkeypatch.setattr(training.Trainer, "_batch", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(clip, data, recipe, checkpoint=tmp_path / "run")
    resumed = fitted_module.snapshot(fit(clip, data, recipe, checkpoint=tmp_path / "run"))
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)
    torch.load(tmp_path / "run" / "state.pt", weights_only=True)


SCRIPT = """
import sys, numpy as np, torch
torch.set_num_threads(1)
from pathlib import Path
from src import encoder
from src.model_a import fit, folds
from tests.helpers import toy_training
from tests.helpers.recipes import small_recipe
fit.CHECKPOINT_STEPS = 1
clip = encoder.load(sys.argv[1], device="cpu")
data, folder = toy_training.data_for(clip), Path(sys.argv[2])
changes = dict.fromkeys(["augment_rotation", "augment_flip", "augment_crop"], True)
recipe = small_recipe(epochs=6, batch_size=8, patience=9, ema=0.9, **changes)
print("ready", flush=True)
rows = np.arange(60)
task = {"rows": rows[:50], "scored": rows[50:], "recipe": recipe, "seed": 0}
folds.train_fold(clip, data, data, base=folder / "fold", **task)
"""


def test_killed_at_random_moments_it_ends_as_an_undisturbed_run(tmp_path):
    name = toy_training.write_clip(tmp_path / "clip")
    kills = int(os.environ.get("KILLS", 2))
    rng = np.random.default_rng(int(os.environ.get("KILL_SEED", 0)))

    def process(folder):
        command = [sys.executable, "-c", SCRIPT, name, str(folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    assert process(tmp_path / "calm").wait(120) == 0
    for _ in range(kills):
        victim = process(tmp_path / "killed")
        victim.stdout.readline()
        time.sleep(rng.uniform(0.05, 1.0))
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert process(tmp_path / "killed").wait(120) == 0
    for file in ("fold.safetensors", "fold_oof.npy"):
        assert (tmp_path / "calm" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()


def test_parts_of_different_lengths_are_refused(data):
    with pytest.raises(ValueError, match=r"parts have different lengths: \[59, 60\]"):
        replace(data, group=data.group[1:])
