"""A CLIP through open_clip: loading it by any name open_clip takes, and embedding images and texts in batches."""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from src.artifacts import cached_embeddings, fingerprint, load_json
from src.data.images import ImagePreprocess, Pixels
from src.paths import display_path, resolve

LOCAL = "local-dir:"
SIZE = re.compile(
    r"@([1-9]\d*)$"
)  # behind a name: another input size in pixels, e.g. ViT-L-14/openai@336


@dataclass(frozen=True)
class Encoder:
    """A CLIP in evaluation mode with what its inputs must look like. `fingerprint` changes with the weights.

    Sent to another process it travels as its name and is loaded there.
    """

    model: torch.nn.Module
    tokenizer: object
    geometry: ImagePreprocess
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    fingerprint: str
    name: str

    @property
    def batch(self) -> int:
        """Images in a forward pass: a small batch stays in a CPU's cache, a large one fills a GPU."""
        return 128 if self.device.type == "cuda" else 32

    @property
    def tag(self) -> str:
        """A short name that changes with the weights: of its columns in Model B's store, of its files in the cache."""
        return f"clip_{fingerprint(self.fingerprint)[:12]}"

    def __reduce__(self) -> tuple:
        return _load_on, (self.name, self.device.type)

    def normalise(self, pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
        """(n, s, s, 3) uint8 -> (n, 3, s, s) float32 on the device, with CLIP's own mean and standard deviation."""
        x = (torch.from_numpy(np.array(pixels)) if isinstance(pixels, np.ndarray) else pixels).to(
            self.device
        )
        mean, std = (
            torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.mean, self.std)
        )
        return (x.permute(0, 3, 1, 2).float() / 255 - mean) / std


def choose_device(device: str = "auto") -> torch.device:
    """`auto` is cuda where there is one, else the cpu. Raises ValueError when cuda is asked for and missing."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device: cuda was asked for, but torch sees no CUDA device; use device: auto or cpu"
        )
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def autocast(device: torch.device) -> AbstractContextManager:
    """bf16 where the device computes it natively, fp16 on an older GPU, else fp32."""
    if device.type == "cuda":
        return torch.autocast(
            "cuda", dtype=torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        )
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=multiplies_bf16())


def multiplies_bf16() -> bool:
    """Whether the CPU has instructions for bf16. With AVX-512 alone oneDNN offers it too, at less than half of fp32's speed."""
    native = (
        torch.backends.cpu.get_cpu_capability() != "AVX512"
        or getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    )
    return native and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def load(clip: str, *, device: str = "auto") -> Encoder:
    """The CLIP that open_clip knows as `clip`: `ViT-L-14/openai`, `hf-hub:...` or `local-dir:path` (relative to the root).

    `@336` behind the name changes the input size; position embeddings are interpolated. Raises FileNotFoundError naming what a
    local folder lacks, RuntimeError when a name cannot be loaded. Weights are data: what is pickled beyond tensors is refused.
    """
    import open_clip

    plain, size = sized(clip)
    name, pretrained = _split_name(plain)
    try:
        model = open_clip.create_model(
            name,
            pretrained=pretrained,
            device=choose_device(device),
            pretrained_text=False,
            force_image_size=size,
            **_text_tower(plain),
        )
        tokenizer = open_clip.get_tokenizer(name)
        settings = open_clip.get_model_preprocess_cfg(model)
        _check_loaded(model, settings)
    except Exception as error:  # libraries raise what they like on broken weights or settings
        said = (
            str(error)
            if isinstance(error, OSError | RuntimeError | ValueError)
            else f"{type(error).__name__}: {error}"
        )
        advice = (
            "copy its files there again"
            if plain.startswith(LOCAL)
            else "without internet use local-dir:<folder>"
        )
        raise RuntimeError(f"clip: {clip!r} could not be loaded ({said}); {advice}") from error
    given = settings["size"][0] if isinstance(settings["size"], tuple | list) else settings["size"]
    model = model.eval().requires_grad_(False)
    model.visual.to(memory_format=torch.channels_last)
    geometry = ImagePreprocess(size or given, settings["interpolation"], settings["resize_mode"])
    return Encoder(
        model,
        tokenizer,
        geometry,
        tuple(settings["mean"]),
        tuple(settings["std"]),
        choose_device(device),
        _fingerprint(plain, size),
        clip,
    )


def _check_loaded(model: torch.nn.Module, settings: dict) -> None:
    """Raise ValueError for weights that are not finite, or a mean and std that are not three numbers each."""
    bad = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if bad:
        raise ValueError(f"{len(bad)} of its tensors hold NaN or infinity, e.g. {bad[0]}")
    mean, std = (np.array(settings[name], dtype=np.float64) for name in ("mean", "std"))
    if (
        mean.shape != (3,)
        or std.shape != (3,)
        or not np.isfinite(mean).all()
        or not (std > 0).all()
    ):
        raise ValueError(
            f"mean {settings['mean']} and std {settings['std']} must be three numbers each, std above 0"
        )


def _load_on(clip: str, device: str) -> Encoder:
    return load(clip, device=device)


def sized(clip: str) -> tuple[str, int | None]:
    """A CLIP's name without its `@size`, and that size in pixels; None where the name gives none."""
    found = SIZE.search(clip)
    return (clip[: found.start()], int(found[1])) if found else (clip, None)


def _split_name(clip: str) -> tuple[str, str | None]:
    if clip.startswith(LOCAL):
        return LOCAL + str(local_folder(clip)), None
    if ":" in clip or "/" not in clip:
        return clip, None
    return tuple(clip.split("/", 1))


def local_folder(clip: str) -> Path:
    """The folder of a `local-dir:` CLIP. Raises FileNotFoundError when it, its config or its weights are missing.

    ValueError names a config that is no JSON object.
    """
    folder = resolve(clip.removeprefix(LOCAL))
    if not folder.is_dir():
        raise FileNotFoundError(f"clip: there is no folder {display_path(folder)} (from {clip!r})")
    config = folder / "open_clip_config.json"
    settings = load_json(config).get("preprocess_cfg") if config.exists() else None
    if not isinstance(settings, dict) or not {"mean", "std"} <= settings.keys():
        raise FileNotFoundError(
            f"clip: {display_path(folder)} lacks open_clip_config.json with mean and std, which would be guesses"
        )
    if not any(folder.glob("open_clip_*model*.safetensors")) and not any(folder.glob("*.bin")):
        raise FileNotFoundError(
            f"clip: {display_path(folder)} holds no weights, e.g. open_clip_model.safetensors"
        )
    return folder


def _text_tower(clip: str) -> dict:
    """For a local folder that carries its Hugging Face text tower's config: read it there, not from the hub."""
    folder = local_folder(clip) if clip.startswith(LOCAL) else None
    if folder is None or not (folder / "config.json").exists():
        return {}
    settings = load_json(folder / "open_clip_config.json")["model_cfg"].get("text_cfg", {})
    return (
        {"text_cfg": {**settings, "hf_model_name": str(folder)}}
        if "hf_model_name" in settings
        else {}
    )


def _fingerprint(clip: str, size: int | None) -> str:
    """Of a local CLIP its files' names and contents, so that a copy elsewhere is the same CLIP; of any other its name."""
    if not clip.startswith(LOCAL):
        return fingerprint(clip, size)
    files = sorted(
        file
        for file in local_folder(clip).iterdir()
        if file.is_file() and not file.name.startswith(".")
    )
    return fingerprint([(file.name, _digest(file)) for file in files], size)


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "blake2b").hexdigest()


@torch.inference_mode()
def embed_images(encoder: Encoder, pixels: np.ndarray) -> np.ndarray:
    """(n, s, s, 3) uint8 -> (n, d) float32 unit rows, in order."""
    parts = []
    for start in tqdm(range(0, len(pixels), encoder.batch), desc="image embeddings", unit="batch"):
        with autocast(encoder.device):
            x = encoder.normalise(pixels[start : start + encoder.batch]).contiguous(
                memory_format=torch.channels_last
            )
            parts.append(F.normalize(encoder.model.encode_image(x).float(), dim=-1).cpu())
    return torch.cat(parts).numpy()


@torch.inference_mode()
def embed_texts(encoder: Encoder, prompts: Sequence[str]) -> np.ndarray:
    """Prompts -> (n, d) float32 unit rows, in order; text longer than the context is truncated; equal prompts run once."""
    batch_size = 2 * encoder.batch
    unique = sorted(
        set(prompts), key=lambda prompt: (len(prompt), prompt)
    )  # alike lengths together: less padding
    parts = []
    for start in tqdm(range(0, len(unique), batch_size), desc="text embeddings", unit="batch"):
        tokens = trimmed(encoder, encoder.tokenizer(unique[start : start + batch_size])).to(
            encoder.device
        )
        with autocast(encoder.device):
            parts.append(F.normalize(encoder.model.encode_text(tokens).float(), dim=-1).cpu())
    where = {prompt: i for i, prompt in enumerate(unique)}
    return torch.cat(parts).numpy()[[where[prompt] for prompt in prompts]]


def trimmed(encoder: Encoder, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens without the columns that are padding in every row, for Hugging Face text towers, which mask padding."""
    padding = getattr(getattr(encoder.model, "text", None), "config", None)
    if getattr(padding, "pad_token_id", None) is None:
        return tokens
    return tokens[:, : int((tokens != padding.pad_token_id).sum(dim=1).max())]


def image_embeddings(
    encoder: Encoder, pixels: Pixels, folder: Path, *, name: str, compute: Callable | None = None
) -> np.ndarray:
    """(n, d) float32 unit rows in the order of `pixels.ids`, computed once for these images and this CLIP.

    `compute()` gives the same rows in a shorter way, where the caller has one.
    """
    key = {"pixels": pixels.key, "clip": encoder.fingerprint}
    return cached_embeddings(
        folder / f"image_embeddings_{name}",
        pixels.ids,
        key,
        compute or (lambda: embed_images(encoder, pixels.array)),
    )


def text_embeddings(
    encoder: Encoder, prompts: Sequence[str], folder: Path, *, name: str
) -> np.ndarray:
    """(n, d) float32 unit rows in the order of `prompts`, computed once for these prompts and this CLIP."""
    key = {"prompts": fingerprint(list(prompts)), "clip": encoder.fingerprint}
    return cached_embeddings(
        folder / f"text_embeddings_{name}",
        [str(i) for i in range(len(prompts))],
        key,
        lambda: embed_texts(encoder, prompts),
    )


def describe(encoder: Encoder) -> str:
    """One line for a notebook's first output."""
    return (
        f"{type(encoder.model.visual).__name__}, {encoder.geometry.size} px, on {encoder.device} "
        f"({torch.get_num_threads()} of {os.cpu_count()} threads)"
    )
