"""CLIPs, folds and checkpoints that do not load or fit: refused, and nothing in them runs."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from src import encoder
from src.model_a import fit, folds
from src.model_a.training import Trainer
from tests.helpers import toy_training
from tests.helpers.bad_files import Hostile, Spoil, cut, in_place, removed
from tests.helpers.recipes import small_recipe

WEIGHTS = "open_clip_model.safetensors"
BIN = "open_clip_pytorch_model.bin"
CONFIG = "open_clip_config.json"
PROJECTION = "visual.proj"
LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def tensors(name: str, change: Callable[[dict], object]) -> Spoil:
    """Change the tensors of the folder's file `name`, which may be a pattern."""

    def spoil(folder: Path) -> None:
        file = next(folder.glob(name))
        content = load_file(file)
        change(content)
        save_file(content, file)

    return spoil


def with_zeros(name: str, tensor: str, *shape: int) -> Spoil:
    """A tensor of zeros, also in the place of the one that is there."""
    return tensors(name, lambda content: content.update({tensor: torch.zeros(shape)}))


def with_number(name: str, tensor: str, number: float) -> Spoil:
    """The first number of a tensor exchanged."""
    return tensors(name, lambda content: content[tensor].view(-1)[:1].fill_(number))


def record(name: str, change: Callable[[dict], object]) -> Spoil:
    """Change what a JSON file holds."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return spoil


def config(change: Callable[[dict], object]) -> Spoil:
    return record(CONFIG, change)


def vision_tower(**values: object) -> Spoil:
    return config(lambda content: content["model_cfg"]["vision_cfg"].update(values))


def preprocessing(**values: object) -> Spoil:
    return config(lambda content: content["preprocess_cfg"].update(values))


def as_bin(content: object) -> Spoil:
    """Put `content` in the place of the weights: bytes as they are, all else pickled.

    A function makes its content from the folder.
    """

    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        made = content(folder) if callable(content) else content
        if isinstance(made, bytes):
            (folder / BIN).write_bytes(made)
        else:
            torch.save(made, folder / BIN)

    return spoil


def hostile(folder: Path) -> Hostile:
    return Hostile(folder / "owned")


NOT_LOADED = "could not be loaded"
NO_NUMBERS = "with mean and std"
CLIPS: dict[str, tuple[Spoil, str]] = {
    "weights_cut": (cut(WEIGHTS, 0.5), NOT_LOADED),
    "weights_of_0_bytes": (cut(WEIGHTS, 0), "open_clip_model.safetensors is an empty file"),
    "weights_of_4_bytes": (in_place(WEIGHTS, b"\x08\0\0\0"), NOT_LOADED),
    "weights_are_html": (
        in_place(WEIGHTS, b"<html>404</html>" * 9),
        "open_clip_model.safetensors is an HTML page, saved in place of the file",
    ),
    "weights_are_a_git_lfs_pointer": (
        in_place(WEIGHTS, LFS_POINTER),
        "open_clip_model.safetensors is a Git LFS pointer in place of the file: run `git lfs pull`",
    ),
    "bin_is_a_git_lfs_pointer": (
        as_bin(LFS_POINTER),
        "open_clip_pytorch_model.bin is a Git LFS pointer",
    ),
    "bin_is_a_training_checkpoint": (
        as_bin({"state_dict": {}, "arguments": Path("runs/1")}),
        "more than tensors, such as a training checkpoint: save the model's state_dict",
    ),
    "weights_with_a_huge_header": (in_place(WEIGHTS, b"\xff" * 7 + b"\x7f{}"), NOT_LOADED),
    "weights_pickled_as_safetensors": (
        lambda f: torch.save({"a": hostile(f)}, f / WEIGHTS),
        NOT_LOADED,
    ),
    "weights_gone": (removed(WEIGHTS), "holds no weights"),
    "tensor_missing": (tensors(WEIGHTS, lambda t: t.pop(PROJECTION)), "Missing key.*visual.proj"),
    "tensor_too_many": (with_zeros(WEIGHTS, "extra", 1), "Unexpected key.*extra"),
    "tensor_of_another_shape": (
        with_zeros(WEIGHTS, PROJECTION, 3, 3),
        "size mismatch for visual.proj",
    ),
    "no_tensors": (tensors(WEIGHTS, dict.clear), NOT_LOADED),
    "tensor_with_nan": (
        with_number(WEIGHTS, PROJECTION, float("nan")),
        "1 of its tensors hold NaN or infinity, e.g. visual.proj",
    ),
    "tensor_with_infinity": (with_number(WEIGHTS, PROJECTION, float("inf")), "NaN or infinity"),
    "bin_hostile": (
        as_bin(lambda f: {"state_dict": hostile(f)}),
        "could not be loaded .*more than tensors",
    ),
    "bin_hostile_plain_pickle": (as_bin(lambda f: pickle.dumps(hostile(f))), NOT_LOADED),
    "bin_empty": (as_bin({}), NOT_LOADED),
    "bin_of_a_list": (as_bin([1]), NOT_LOADED),
    "bin_of_garbage": (as_bin(b"garbage"), NOT_LOADED),
    "config_gone": (removed(CONFIG), "lacks open_clip_config.json"),
    "config_cut": (cut(CONFIG, 0.5), "open_clip_config.json cannot be read"),
    "config_of_0_bytes": (cut(CONFIG, 0), "open_clip_config.json cannot be read"),
    "config_is_a_list": (in_place(CONFIG, b"[1]"), "holds a list, wanted a JSON object"),
    "config_without_preprocessing": (config(lambda c: c.pop("preprocess_cfg")), NO_NUMBERS),
    "config_without_a_mean": (config(lambda c: c["preprocess_cfg"].pop("mean")), NO_NUMBERS),
    "config_without_a_model": (config(lambda c: c.pop("model_cfg")), NOT_LOADED),
    "config_without_a_vision_tower": (
        config(lambda c: c["model_cfg"].pop("vision_cfg")),
        NOT_LOADED,
    ),
    "config_with_an_unknown_key": (vision_tower(magic=1), "could not be loaded.*magic"),
    "config_of_another_width": (vision_tower(width=128), "size mismatch"),
    "config_width_is_a_word": (vision_tower(width="wide"), NOT_LOADED),
    "config_std_of_0": (preprocessing(std=[0, 1, 1]), "three numbers each, std above 0"),
    "config_mean_of_two": (preprocessing(mean=[0, 1]), "three numbers each"),
    "config_mean_of_words": (preprocessing(mean=["a", "b", "c"]), NOT_LOADED),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, encoder.Encoder]:
    """A folder with a small CLIP, a fold trained from it and a checkpoint; and that CLIP."""
    folder = tmp_path_factory.mktemp("weights")
    clip = encoder.load(toy_training.write_clip(folder / "clip"), device="cpu")
    training = toy_training.data_for(clip, 24)
    recipe = small_recipe(epochs=1, batch_size=16)
    rows = np.arange(24)
    folds.train_fold(
        clip,
        training,
        training,
        rows=rows,
        scored=rows[:6],
        recipe=recipe,
        seed=0,
        base=folder / "fold",
    )
    (folder / "checkpoint").mkdir()
    a_run(clip).save(folder / "checkpoint")
    return folder, clip


def a_run(clip: encoder.Encoder) -> Trainer:
    training = toy_training.data_for(clip, 24)
    recipe = small_recipe(epochs=1, batch_size=16)
    inner, held_out = fit.inner_split(training.group, np.arange(24), 0)
    fitted, _ = fit.init_model(clip, training, inner, held_out, recipe, 0)
    return Trainer(fitted, clip, training, inner, recipe=recipe, seed=0)


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_that_does_not_load_says_so_and_nothing_runs(trained, tmp_path, name):
    spoil, expected = CLIPS[name]
    shutil.copytree(trained[0] / "clip", tmp_path / "clip")
    spoil(tmp_path / "clip")
    with pytest.raises(
        (RuntimeError, FileNotFoundError, ValueError), match=re.compile(expected, re.DOTALL)
    ) as error:
        encoder.load(f"local-dir:{tmp_path / 'clip'}", device="cpu")
    assert str(tmp_path / "clip") in str(error.value) and not (tmp_path / "clip" / "owned").exists()


HEAD = "head.fc1.bias"
FOLD = "fold.safetensors"
RECORD = "fold.json"
FOLD_UNREADABLE = "fold.safetensors cannot be read"
ANOTHER_CLIP = "trained from another CLIP"
FOLDS: dict[str, tuple[Spoil, str]] = {
    "weights_cut": (cut(FOLD, 0.9), FOLD_UNREADABLE),
    "weights_of_0_bytes": (cut(FOLD, 0), FOLD_UNREADABLE),
    "weights_pickled": (lambda f: torch.save({"a": hostile(f)}, f / FOLD), FOLD_UNREADABLE),
    "tensor_missing": (tensors(FOLD, lambda t: t.pop(HEAD)), "do not fit .*head.fc1.bias"),
    "tensor_too_many": (with_zeros(FOLD, "extra", 1), "do not fit .*extra"),
    "tensor_of_another_shape": (
        with_zeros(FOLD, HEAD, 7),
        "do not fit .*head.fc1.bias .7,., wanted",
    ),
    "tensor_that_would_be_repeated": (
        with_zeros(FOLD, HEAD, 1),
        "do not fit .*head.fc1.bias .1,., wanted",
    ),
    "tensor_with_nan": (
        with_number(FOLD, HEAD, float("nan")),
        "1 of .* NaN or infinity, e.g. head.fc1.bias",
    ),
    "record_cut": (cut(RECORD, 0.5), "fold.json cannot be read"),
    "record_is_a_list": (in_place(RECORD, b"[]"), "fold.json cannot be read"),
    "record_without_a_clip": (record(RECORD, lambda r: r.pop("clip")), ANOTHER_CLIP),
    "record_of_another_clip": (record(RECORD, lambda r: r.update(clip="other")), ANOTHER_CLIP),
    "record_without_a_recipe": (
        record(RECORD, lambda r: r.pop("recipe")),
        "fold.json cannot be read: 'recipe'",
    ),
    "record_with_an_unknown_setting": (
        record(RECORD, lambda r: r["recipe"].update(magic=1)),
        "fold.json cannot be read: .*magic",
    ),
    "record_with_an_unknown_head": (
        record(RECORD, lambda r: r["recipe"].update(head="tall")),
        "fold.json cannot be read: head must be one of",
    ),
    "record_of_another_width": (record(RECORD, lambda r: r.update(width=7)), "do not fit"),
    "record_without_a_history": (
        record(RECORD, lambda r: r.pop("history")),
        "fold.json cannot be read: 'history'",
    ),
}


@pytest.mark.parametrize("name", FOLDS)
def test_a_fold_that_does_not_fit_is_refused_and_nothing_runs(trained, tmp_path, name):
    spoil, expected = FOLDS[name]
    for suffix in (".json", ".safetensors"):
        shutil.copy(trained[0] / f"fold{suffix}", tmp_path / f"fold{suffix}")
    folds.load_fold(tmp_path / "fold", trained[1])
    spoil(tmp_path)
    with pytest.raises(ValueError, match=expected):
        folds.load_fold(tmp_path / "fold", trained[1])
    assert not (tmp_path / "owned").exists()


STATE = "state.pt"
CHECKPOINT = "weights-*.safetensors"
STATE_UNREADABLE = "state.pt cannot be read"
CHECKPOINTS: dict[str, tuple[Spoil, str]] = {
    "state_hostile": (lambda f: torch.save({"weights": hostile(f)}, f / STATE), STATE_UNREADABLE),
    "state_hostile_plain_pickle": (
        lambda f: (f / STATE).write_bytes(pickle.dumps(hostile(f))),
        STATE_UNREADABLE,
    ),
    "state_cut": (cut(STATE, 0.5), STATE_UNREADABLE),
    "state_of_0_bytes": (cut(STATE, 0), STATE_UNREADABLE),
    "state_is_a_list": (lambda f: torch.save([1], f / STATE), STATE_UNREADABLE),
    "state_is_empty": (lambda f: torch.save({}, f / STATE), STATE_UNREADABLE),
    "weights_cut": (cut(CHECKPOINT, 0.5), "safetensors cannot be read"),
    "weights_gone": (removed(CHECKPOINT), "No such file"),
    "tensor_missing": (tensors(CHECKPOINT, lambda t: t.pop("now." + HEAD)), "do not fit"),
    "tensor_that_would_be_repeated": (with_zeros(CHECKPOINT, "now." + HEAD, 1), "do not fit"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_broken_checkpoint_is_refused_and_nothing_runs(trained, tmp_path, name):
    spoil, expected = CHECKPOINTS[name]
    shutil.copytree(trained[0] / "checkpoint", tmp_path / "checkpoint")
    spoil(tmp_path / "checkpoint")
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        a_run(trained[1]).load(tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint" / "owned").exists()
