"""Loading a CLIP by its name: through open_clip, transformers or timm."""

import copyreg
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import torch
from torch import nn

from src.artifacts import fingerprint, load_json
from src.data.images import ImagePreprocess
from src.encoder.clip import ClipModel, Encoder, Tokenizer, choose_device
from src.encoder.folders import (
    LOCAL,
    TIMM,
    check_is_state_dict,
    family_of,
    folder_fingerprint,
    hugging_face_preprocess,
    is_local,
    local_folder,
    weight_files,
)
from src.encoder.towers import load_hugging_face, load_timm

SIZE = re.compile(r"@([1-9]\d*)$")  # behind a name: another input size, e.g. ViT-L-14/openai@336


def load(clip: str, *, device: str = "auto") -> Encoder:
    """The encoder named `clip`, in evaluation mode on the device.

    `ViT-L-14/openai` and `hf-hub:...` as open_clip takes them; `local-dir:path` for a folder of
    open_clip or a CLIP or SigLIP of transformers; `timm:name` and `timm:local-dir:path` for a tower
    without text. A local path is relative to the repository's root. `@336` behind the name changes
    the input size; position embeddings are interpolated. Weights are data: what is pickled beyond
    tensors is refused. Raises FileNotFoundError naming what a local folder lacks, ValueError for
    files that are not weights, RuntimeError when a name cannot be loaded.
    """
    plain, size = sized(clip)
    folder = local_folder(plain) if is_local(plain) else None
    target = choose_device(device)
    try:
        loaded, tokenizer, settings = _load(plain, size, folder)
        _check_loaded(loaded, settings)
    except Exception as error:  # libraries raise what they like on broken weights or settings
        raise RuntimeError(_not_loaded(clip, error)) from error

    # this model never trains: a fine-tune unfreezes copies of the tower
    model = cast(ClipModel, loaded.to(target).eval().requires_grad_(False))
    model.visual.to(memory_format=torch.channels_last)
    given = settings["size"][0] if isinstance(settings["size"], tuple | list) else settings["size"]
    key = fingerprint(plain, size) if folder is None else folder_fingerprint(folder, size)
    return Encoder(
        model=model,
        tokenizer=tokenizer,
        geometry=ImagePreprocess(size or given, settings["interpolation"], settings["resize_mode"]),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        device=target,
        fingerprint=key,
        name=clip,
    )


def _load_on(clip: str, device: str) -> Encoder:
    return load(clip, device=device)


# an encoder is sent to another process as its name
copyreg.pickle(Encoder, lambda encoder: (_load_on, (encoder.name, encoder.device.type)))


def sized(clip: str) -> tuple[str, int | None]:
    """A CLIP's name without its `@size`, and that size in pixels; None where there is none."""
    match = SIZE.search(clip)
    return (clip[: match.start()], int(match[1])) if match else (clip, None)


def _load(
    plain: str, size: int | None, folder: Path | None
) -> tuple[nn.Module, Tokenizer | None, dict]:
    """Model, tokenizer (None without a text tower) and how images are prepared."""
    if plain.startswith(TIMM):
        name = plain.removeprefix(TIMM) if folder is None else LOCAL + str(folder)
        images_only, settings = load_timm(name, size)
        return images_only, None, settings

    if folder is not None and family_of(folder) is not None:
        settings = hugging_face_preprocess(folder)
        model, tokenizer = load_hugging_face(folder, size or settings["size"])
        return model, tokenizer, settings
    return _load_open_clip(plain, size, folder)


def _load_open_clip(
    plain: str, size: int | None, folder: Path | None
) -> tuple[nn.Module, Tokenizer, dict]:
    import open_clip

    text_tower = {} if folder is None else _text_tower(folder)
    with _as_open_clip_reads(folder) as readable_folder:
        name, pretrained = _split_name(plain, readable_folder)
        model = open_clip.create_model(
            name,
            pretrained=pretrained,
            load_weights=True,
            pretrained_text=False,
            force_image_size=size,
            **text_tower,
        )
    settings = open_clip.get_model_preprocess_cfg(model)
    name, _ = _split_name(plain, folder)
    return model, open_clip.get_tokenizer(name), settings


@contextmanager
def _as_open_clip_reads(folder: Path | None) -> Iterator[Path | None]:
    """The folder; or, where its weights are a .pt, which open_clip does not look for, a folder of
    links to its files in which the weights are a .pth.

    Raises ValueError where the pickled weights that will be loaded are a training checkpoint.
    """
    files = [] if folder is None else weight_files(folder)
    if folder is None or any(file.suffix == ".safetensors" for file in files):
        yield folder
        return

    for file in files:
        check_is_state_dict(file)
    if any(file.suffix != ".pt" for file in files):
        yield folder
        return

    with TemporaryDirectory() as links:
        for file in folder.iterdir():
            (Path(links) / file.name).symlink_to(file.absolute())
        (Path(links) / "model.pth").symlink_to(files[0].absolute())
        yield Path(links)


def _split_name(clip: str, folder: Path | None) -> tuple[str, str | None]:
    """The architecture and the pretrained tag as open_clip takes them."""
    if folder is not None:
        return LOCAL + str(folder), None
    if ":" in clip or "/" not in clip:
        return clip, None
    name, tag = clip.split("/", 1)
    return name, tag


def _text_tower(folder: Path) -> dict:
    """A local folder's config of its Hugging Face text tower: read there, not on the hub."""
    if not (folder / "config.json").exists():
        return {}
    settings = load_json(folder / "open_clip_config.json")["model_cfg"].get("text_cfg", {})
    if "hf_model_name" not in settings:
        return {}
    return {"text_cfg": {**settings, "hf_model_name": str(folder)}}


def _not_loaded(clip: str, error: Exception) -> str:
    message = str(error)
    if not isinstance(error, OSError | RuntimeError | ValueError):
        message = f"{type(error).__name__}: {error}"

    # torch advises to load such a file unsafely, which runs whatever it contains
    if "weights_only" in message:
        message = (
            "its weights are a pickle of more than tensors, such as a training checkpoint: "
            "save the model's state_dict() alone, best as safetensors"
        )

    advice = "without internet use local-dir:<folder>"
    if LOCAL in clip:
        advice = "copy its files there again"
    return f"clip: {clip!r} could not be loaded ({message}); {advice}"


def _check_loaded(model: nn.Module, settings: dict) -> None:
    """Raise ValueError for weights that are not finite, or a mean and std that cannot be used."""
    bad = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if bad:
        raise ValueError(f"{len(bad)} of its tensors hold NaN or infinity, e.g. {bad[0]}")

    mean = np.array(settings["mean"], dtype=np.float64)
    std = np.array(settings["std"], dtype=np.float64)
    usable = mean.shape == (3,) and std.shape == (3,) and np.isfinite(mean).all()
    if not usable or not (std > 0).all():
        raise ValueError(
            f"mean {settings['mean']} and std {settings['std']} must be three numbers each, "
            "std above 0"
        )
