"""A `local-dir:` CLIP: its config, its weights, and why either is refused."""

import hashlib
from pathlib import Path

import torch

from src.artifacts import BEGINNING, fingerprint, load_json, what_is
from src.encoder.towers import FAMILIES
from src.paths import display_path, resolve

LOCAL = "local-dir:"
TIMM = "timm:"  # before a name or a local-dir: a tower of timm, without text
WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.pt")
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers in preprocessor_config.json


def is_local(clip: str) -> bool:
    """Whether a CLIP's name is that of a folder: `local-dir:path` or `timm:local-dir:path`."""
    return clip.removeprefix(TIMM).startswith(LOCAL)


def local_folder(clip: str) -> Path:
    """The folder of a local CLIP. timm itself checks what its towers need.

    Raises FileNotFoundError when it, its config or its weights are missing, ValueError naming a
    config that is not a JSON object, or files that are not weights.
    """
    folder = resolve(clip.removeprefix(TIMM).removeprefix(LOCAL))
    if not folder.is_dir():
        raise FileNotFoundError(f"clip: there is no folder {display_path(folder)} (from {clip!r})")
    if clip.startswith(TIMM):
        return folder

    if family_of(folder) is None:
        config = folder / "open_clip_config.json"
        settings = load_json(config).get("preprocess_cfg") if config.exists() else None
        if not isinstance(settings, dict) or not {"mean", "std"} <= settings.keys():
            raise FileNotFoundError(
                f"clip: {display_path(folder)} lacks open_clip_config.json with mean and std, "
                "which would have to be guessed"
            )

    files = weight_files(folder)
    if not files:
        raise FileNotFoundError(
            f"clip: {display_path(folder)} holds no weights, e.g. open_clip_model.safetensors"
        )
    for file in files:
        _check_weights(file)
    return folder


def family_of(folder: Path) -> str | None:
    """`clip` or `siglip` for a folder of transformers; None for one of open_clip."""
    config = folder / "config.json"
    if (folder / "open_clip_config.json").exists() or not config.exists():
        return None
    family = load_json(config).get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"clip: {display_path(config)} describes a {family!r}; known are {', '.join(FAMILIES)} "
            "of transformers, and folders with an open_clip_config.json"
        )
    return family


def weight_files(folder: Path) -> list[Path]:
    """The files that may hold weights, sorted by name."""
    return sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))


def _check_weights(file: Path) -> None:
    """Raise ValueError for a file that stands in for weights, such as a Git LFS pointer."""
    with open(file, "rb") as content:
        kind = what_is(content.read(BEGINNING))
    if kind:
        raise ValueError(f"clip: {display_path(file)} is {kind}")


def check_is_state_dict(file: Path) -> None:
    """Raise ValueError for a training checkpoint that open_clip would not take for weights.

    Weights are tensors by name, or a `state_dict` of them.
    """
    content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} holds a {type(content).__name__}, not tensors by name")

    other = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise ValueError(
            f"{file.name} is a training checkpoint, not weights: {', '.join(other[:5])} are not "
            "tensors; save the model's own state_dict"
        )


def hugging_face_preprocess(folder: Path) -> dict:
    """How the folder's model wants its images, under open_clip's names.

    Raises FileNotFoundError where preprocessor_config.json is missing: it would be a guess.
    """
    file = folder / "preprocessor_config.json"
    if not file.exists():
        raise FileNotFoundError(
            f"clip: {display_path(folder)} lacks preprocessor_config.json with mean, std and size"
        )
    settings = load_json(file)
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings["size"]
    if isinstance(size, dict):
        size = size.get("height", size.get("shortest_edge"))
    return {
        "size": size,
        "interpolation": INTERPOLATIONS.get(settings.get("resample", 3), "bicubic"),
        "resize_mode": "shortest" if settings.get("do_center_crop") else "squash",
        "mean": settings["image_mean"],
        "std": settings["image_std"],
    }


def folder_fingerprint(folder: Path, size: int | None) -> str:
    """A digest of the files' names and contents, so that a copy counts as the same CLIP."""
    files = sorted(folder.iterdir())
    visible = [file for file in files if file.is_file() and not file.name.startswith(".")]
    return fingerprint([(file.name, _digest(file)) for file in visible], size)


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "blake2b").hexdigest()
