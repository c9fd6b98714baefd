"""CLIPs, folds and checkpoints that do not load or do not fit: refused, and nothing in them runs."""

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
from tests.helpers.bad_files import Hostile, shorten
from tests.helpers.recipes import small_recipe


def change_tensors(file: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def change_config(folder: Path, change: Callable[[dict], object]) -> None:
    file = folder / "open_clip_config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def put(tensors: dict, name: str, value: float) -> None:
    tensors[name].view(-1)[0] = value


def as_bin(folder: Path, content: object) -> None:
    """Put `content` pickled in the place of the weights."""
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(content, folder / "open_clip_pytorch_model.bin")


PROJECTION = "visual.proj"
LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
CLIPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights_cut": (
        lambda f: shorten(f / "open_clip_model.safetensors", 0.5),
        "could not be loaded",
    ),
    "weights_of_0_bytes": (
        lambda f: shorten(f / "open_clip_model.safetensors", 0),
        "open_clip_model.safetensors is an empty file",
    ),
    "weights_of_4_bytes": (
        lambda f: (f / "open_clip_model.safetensors").write_bytes(b"\x08\0\0\0"),
        "could not be loaded",
    ),
    "weights_are_html": (
        lambda f: (f / "open_clip_model.safetensors").write_text("<html>404</html>" * 9),
        "open_clip_model.safetensors is an HTML page, saved in place of the file",
    ),
    "weights_are_a_git_lfs_pointer": (
        lambda f: (f / "open_clip_model.safetensors").write_text(LFS_POINTER),
        "open_clip_model.safetensors is a Git LFS pointer in place of the file: run `git lfs pull`",
    ),
    "bin_is_a_git_lfs_pointer": (
        lambda f: (as_bin(f, {}), (f / "open_clip_pytorch_model.bin").write_text(LFS_POINTER)),
        "open_clip_pytorch_model.bin is a Git LFS pointer",
    ),
    "bin_is_a_training_checkpoint": (
        lambda f: as_bin(f, {"state_dict": {}, "arguments": Path("runs/1")}),
        "more than tensors, such as a training checkpoint: save the model's state_dict",
    ),
    "weights_with_a_huge_header": (
        lambda f: (f / "open_clip_model.safetensors").write_bytes(b"\xff" * 7 + b"\x7f{}"),
        "could not be loaded",
    ),
    "weights_pickled_as_safetensors": (
        lambda f: torch.save({"a": Hostile(f / "owned")}, f / "open_clip_model.safetensors"),
        "could not be loaded",
    ),
    "weights_gone": (lambda f: (f / "open_clip_model.safetensors").unlink(), "holds no weights"),
    "tensor_missing": (
        lambda f: change_tensors(f / "open_clip_model.safetensors", lambda t: t.pop(PROJECTION)),
        "Missing key.*visual.proj",
    ),
    "tensor_too_many": (
        lambda f: change_tensors(
            f / "open_clip_model.safetensors", lambda t: t.update(extra=torch.zeros(1))
        ),
        "Unexpected key.*extra",
    ),
    "tensor_of_another_shape": (
        lambda f: change_tensors(
            f / "open_clip_model.safetensors", lambda t: t.update({PROJECTION: torch.zeros(3, 3)})
        ),
        "size mismatch for visual.proj",
    ),
    "no_tensors": (
        lambda f: change_tensors(f / "open_clip_model.safetensors", dict.clear),
        "could not be loaded",
    ),
    "tensor_with_nan": (
        lambda f: change_tensors(
            f / "open_clip_model.safetensors", lambda t: put(t, PROJECTION, float("nan"))
        ),
        "1 of its tensors hold NaN or infinity, e.g. visual.proj",
    ),
    "tensor_with_infinity": (
        lambda f: change_tensors(
            f / "open_clip_model.safetensors", lambda t: put(t, PROJECTION, float("inf"))
        ),
        "NaN or infinity",
    ),
    "bin_hostile": (
        lambda f: as_bin(f, {"state_dict": Hostile(f / "owned")}),
        "could not be loaded .*more than tensors",
    ),
    "bin_hostile_plain_pickle": (
        lambda f: (
            as_bin(f, {}),
            (f / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps(Hostile(f / "owned"))),
        ),
        "could not be loaded",
    ),
    "bin_empty": (lambda f: as_bin(f, {}), "could not be loaded"),
    "bin_of_a_list": (lambda f: as_bin(f, [1]), "could not be loaded"),
    "bin_of_garbage": (
        lambda f: (as_bin(f, {}), (f / "open_clip_pytorch_model.bin").write_bytes(b"garbage")),
        "could not be loaded",
    ),
    "config_gone": (
        lambda f: (f / "open_clip_config.json").unlink(),
        "lacks open_clip_config.json",
    ),
    "config_cut": (
        lambda f: shorten(f / "open_clip_config.json", 0.5),
        "open_clip_config.json cannot be read",
    ),
    "config_of_0_bytes": (
        lambda f: shorten(f / "open_clip_config.json", 0),
        "open_clip_config.json cannot be read",
    ),
    "config_is_a_list": (
        lambda f: (f / "open_clip_config.json").write_text("[1]"),
        "holds a list, wanted a JSON object",
    ),
    "config_without_preprocessing": (
        lambda f: change_config(f, lambda c: c.pop("preprocess_cfg")),
        "with mean and std",
    ),
    "config_without_a_mean": (
        lambda f: change_config(f, lambda c: c["preprocess_cfg"].pop("mean")),
        "with mean and std",
    ),
    "config_without_a_model": (
        lambda f: change_config(f, lambda c: c.pop("model_cfg")),
        "could not be loaded",
    ),
    "config_without_a_vision_tower": (
        lambda f: change_config(f, lambda c: c["model_cfg"].pop("vision_cfg")),
        "could not be loaded",
    ),
    "config_with_an_unknown_key": (
        lambda f: change_config(f, lambda c: c["model_cfg"]["vision_cfg"].update(magic=1)),
        "could not be loaded.*magic",
    ),
    "config_of_another_width": (
        lambda f: change_config(f, lambda c: c["model_cfg"]["vision_cfg"].update(width=128)),
        "size mismatch",
    ),
    "config_width_is_a_word": (
        lambda f: change_config(f, lambda c: c["model_cfg"]["vision_cfg"].update(width="wide")),
        "could not be loaded",
    ),
    "config_std_of_0": (
        lambda f: change_config(f, lambda c: c["preprocess_cfg"].update(std=[0, 1, 1])),
        "three numbers each, std above 0",
    ),
    "config_mean_of_two": (
        lambda f: change_config(f, lambda c: c["preprocess_cfg"].update(mean=[0, 1])),
        "three numbers each",
    ),
    "config_mean_of_words": (
        lambda f: change_config(f, lambda c: c["preprocess_cfg"].update(mean=["a", "b", "c"])),
        "could not be loaded",
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, encoder.Encoder]:
    """A folder with a small CLIP, a fold trained from it and a checkpoint; and that CLIP."""
    folder = tmp_path_factory.mktemp("weights")
    clip = encoder.load(toy_training.write_clip(folder / "clip"), device="cpu")
    training, recipe = (
        toy_training.data_for(clip, 24),
        small_recipe(epochs=1, batch_size=16),
    )
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
    training, recipe = (
        toy_training.data_for(clip, 24),
        small_recipe(epochs=1, batch_size=16),
    )
    inner, held_out = fit.inner_split(training.group, np.arange(24), 0)
    return Trainer(
        fit.init_model(clip, training, inner, held_out, recipe, 0)[0],
        clip,
        training,
        inner,
        recipe=recipe,
        seed=0,
    )


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


def change_record(folder: Path, change: Callable[[dict], object]) -> None:
    content = json.loads((folder / "fold.json").read_text())
    change(content)
    (folder / "fold.json").write_text(json.dumps(content))


HEAD = "head.fc1.bias"
FOLDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights_cut": (
        lambda f: shorten(f / "fold.safetensors", 0.9),
        "fold.safetensors cannot be read",
    ),
    "weights_of_0_bytes": (
        lambda f: shorten(f / "fold.safetensors", 0),
        "fold.safetensors cannot be read",
    ),
    "weights_pickled": (
        lambda f: torch.save({"a": Hostile(f / "owned")}, f / "fold.safetensors"),
        "fold.safetensors cannot be read",
    ),
    "tensor_missing": (
        lambda f: change_tensors(f / "fold.safetensors", lambda t: t.pop(HEAD)),
        "do not fit .*head.fc1.bias",
    ),
    "tensor_too_many": (
        lambda f: change_tensors(f / "fold.safetensors", lambda t: t.update(extra=torch.zeros(1))),
        "do not fit .*extra",
    ),
    "tensor_of_another_shape": (
        lambda f: change_tensors(
            f / "fold.safetensors", lambda t: t.update({HEAD: torch.zeros(7)})
        ),
        "do not fit .*head.fc1.bias .7,., wanted",
    ),
    "tensor_that_would_be_repeated": (
        lambda f: change_tensors(
            f / "fold.safetensors", lambda t: t.update({HEAD: torch.zeros(1)})
        ),
        "do not fit .*head.fc1.bias .1,., wanted",
    ),
    "tensor_with_nan": (
        lambda f: change_tensors(f / "fold.safetensors", lambda t: put(t, HEAD, float("nan"))),
        "1 of .* NaN or infinity, e.g. head.fc1.bias",
    ),
    "record_cut": (lambda f: shorten(f / "fold.json", 0.5), "fold.json cannot be read"),
    "record_is_a_list": (lambda f: (f / "fold.json").write_text("[]"), "fold.json cannot be read"),
    "record_without_a_clip": (
        lambda f: change_record(f, lambda r: r.pop("clip")),
        "trained from another CLIP",
    ),
    "record_of_another_clip": (
        lambda f: change_record(f, lambda r: r.update(clip="other")),
        "trained from another CLIP",
    ),
    "record_without_a_recipe": (
        lambda f: change_record(f, lambda r: r.pop("recipe")),
        "fold.json cannot be read: 'recipe'",
    ),
    "record_with_an_unknown_setting": (
        lambda f: change_record(f, lambda r: r["recipe"].update(magic=1)),
        "fold.json cannot be read: .*magic",
    ),
    "record_with_an_unknown_head": (
        lambda f: change_record(f, lambda r: r["recipe"].update(head="tall")),
        "fold.json cannot be read: head must be one of",
    ),
    "record_of_another_width": (
        lambda f: change_record(f, lambda r: r.update(width=7)),
        "do not fit",
    ),
    "record_without_a_history": (
        lambda f: change_record(f, lambda r: r.pop("history")),
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


def first(folder: Path) -> Path:
    return next(folder.glob("weights-*.safetensors"))


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "state_hostile": (
        lambda f: torch.save({"weights": Hostile(f / "owned")}, f / "state.pt"),
        "state.pt cannot be read",
    ),
    "state_hostile_plain_pickle": (
        lambda f: (f / "state.pt").write_bytes(pickle.dumps(Hostile(f / "owned"))),
        "state.pt cannot be read",
    ),
    "state_cut": (lambda f: shorten(f / "state.pt", 0.5), "state.pt cannot be read"),
    "state_of_0_bytes": (lambda f: shorten(f / "state.pt", 0), "state.pt cannot be read"),
    "state_is_a_list": (lambda f: torch.save([1], f / "state.pt"), "state.pt cannot be read"),
    "state_is_empty": (lambda f: torch.save({}, f / "state.pt"), "state.pt cannot be read"),
    "weights_cut": (lambda f: shorten(first(f), 0.5), "safetensors cannot be read"),
    "weights_gone": (lambda f: first(f).unlink(), "No such file"),
    "tensor_missing": (
        lambda f: change_tensors(first(f), lambda t: t.pop("now." + HEAD)),
        "do not fit",
    ),
    "tensor_that_would_be_repeated": (
        lambda f: change_tensors(first(f), lambda t: t.update({"now." + HEAD: torch.zeros(1)})),
        "do not fit",
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_broken_checkpoint_is_refused_and_nothing_runs(trained, tmp_path, name):
    spoil, expected = CHECKPOINTS[name]
    shutil.copytree(trained[0] / "checkpoint", tmp_path / "checkpoint")
    spoil(tmp_path / "checkpoint")
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        a_run(trained[1]).load(tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint" / "owned").exists()
