"""A CLIP through open_clip: loading it by any name open_clip takes, and embedding in batches."""

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

from src.artifacts import BEGINNING, cached_embeddings, fingerprint, load_json, what_is
from src.data.images import ImagePreprocess, Pixels
from src.paths import display_path, resolve

LOCAL = "local-dir:"
SIZE = re.compile(r"@([1-9]\d*)$")  # behind a name: another input size, e.g. ViT-L-14/openai@336


@dataclass(frozen=True)
class Encoder:
    """A CLIP in evaluation mode with what its inputs must look like.

    `fingerprint` changes with the weights. Sent to another process it travels as its name and is
    loaded there.
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
        """Images in a pass: a small batch stays in a CPU's cache, a large one fills a GPU."""
        return 128 if self.device.type == "cuda" else 32

    @property
    def tag(self) -> str:
        """A short name that changes with the weights, for columns and files of this CLIP."""
        return f"clip_{fingerprint(self.fingerprint)[:12]}"

    def __reduce__(self) -> tuple:
        return _load_on, (self.name, self.device.type)

    def normalize(self, pixels: np.ndarray | torch.Tensor) -> torch.Tensor:
        """(n, s, s, 3) uint8 -> (n, 3, s, s) float32 on the device, in channels_last.

        With CLIP's own mean and standard deviation.
        """
        if isinstance(pixels, np.ndarray):
            pixels = torch.from_numpy(np.array(pixels))
        x = pixels.to(self.device).permute(0, 3, 1, 2).float()
        mean = torch.tensor(self.mean, device=self.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=self.device).view(1, 3, 1, 1)
        return ((x / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


# --- device and precision ---


def choose_device(device: str = "auto") -> torch.device:
    """`auto` is cuda where there is one, else the cpu.

    Raises ValueError for another name, and when cuda is asked for and missing.
    """
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
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.autocast("cuda", dtype=dtype)
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=multiplies_bf16())


def multiplies_bf16() -> bool:
    """Whether the CPU has instructions for bf16.

    With AVX-512 alone oneDNN offers it too, at less than half of fp32's speed.
    """
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    native = not avx512 or getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
    return native and torch.ops.mkldnn._is_mkldnn_bf16_supported()


# --- loading ---


def load(clip: str, *, device: str = "auto") -> Encoder:
    """The CLIP that open_clip knows as `clip`: `ViT-L-14/openai`, `hf-hub:...`, `local-dir:path`.

    A local path is relative to the repository's root. `@336` behind the name changes the input
    size; position embeddings are interpolated. Weights are data: what is pickled beyond tensors is
    refused. Raises FileNotFoundError naming what a local folder lacks, RuntimeError when a name
    cannot be loaded.
    """
    import open_clip

    plain, size = sized(clip)
    name, pretrained = _split_name(plain)
    target = choose_device(device)
    try:
        model = open_clip.create_model(
            name,
            pretrained=pretrained,
            device=target,
            pretrained_text=False,
            force_image_size=size,
            **_text_tower(plain),
        )
        tokenizer = open_clip.get_tokenizer(name)
        settings = open_clip.get_model_preprocess_cfg(model)
        _check_loaded(model, settings)
    except Exception as error:  # libraries raise what they like on broken weights or settings
        raise RuntimeError(_not_loaded(clip, error)) from error

    model = model.eval().requires_grad_(False)
    model.visual.to(memory_format=torch.channels_last)
    given = settings["size"][0] if isinstance(settings["size"], tuple | list) else settings["size"]
    return Encoder(
        model=model,
        tokenizer=tokenizer,
        geometry=ImagePreprocess(size or given, settings["interpolation"], settings["resize_mode"]),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        device=target,
        fingerprint=_fingerprint(plain, size),
        name=clip,
    )


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
    if clip.startswith(LOCAL):
        message = _stand_in(resolve(sized(clip)[0].removeprefix(LOCAL))) or message
        advice = "copy its files there again"
    return f"clip: {clip!r} could not be loaded ({message}); {advice}"


def _stand_in(folder: Path) -> str | None:
    """What a local CLIP's file of weights really is, where it is, say, a Git LFS pointer."""
    if not folder.is_dir():
        return None

    for file in sorted(folder.iterdir()):
        if file.suffix in (".safetensors", ".bin", ".pt", ".pth"):
            with open(file, "rb") as content:
                kind = what_is(content.read(BEGINNING))
            if kind:
                return f"{file.name} is {kind}"
    return None


def _check_loaded(model: torch.nn.Module, settings: dict) -> None:
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


def _load_on(clip: str, device: str) -> Encoder:
    return load(clip, device=device)


# --- names and folders ---


def sized(clip: str) -> tuple[str, int | None]:
    """A CLIP's name without its `@size`, and that size in pixels; None where there is none."""
    match = SIZE.search(clip)
    return (clip[: match.start()], int(match[1])) if match else (clip, None)


def _split_name(clip: str) -> tuple[str, str | None]:
    """The architecture and the pretrained tag as open_clip takes them."""
    if clip.startswith(LOCAL):
        return LOCAL + str(local_folder(clip)), None
    if ":" in clip or "/" not in clip:
        return clip, None
    name, tag = clip.split("/", 1)
    return name, tag


def local_folder(clip: str) -> Path:
    """The folder of a `local-dir:` CLIP.

    Raises FileNotFoundError when it, its config or its weights are missing, ValueError naming a
    config that is no JSON object.
    """
    folder = resolve(clip.removeprefix(LOCAL))
    if not folder.is_dir():
        raise FileNotFoundError(f"clip: there is no folder {display_path(folder)} (from {clip!r})")

    config = folder / "open_clip_config.json"
    settings = load_json(config).get("preprocess_cfg") if config.exists() else None
    if not isinstance(settings, dict) or not {"mean", "std"} <= settings.keys():
        raise FileNotFoundError(
            f"clip: {display_path(folder)} lacks open_clip_config.json with mean and std, "
            "which would be guesses"
        )

    if not any(folder.glob("open_clip_*model*.safetensors")) and not any(folder.glob("*.bin")):
        raise FileNotFoundError(
            f"clip: {display_path(folder)} holds no weights, e.g. open_clip_model.safetensors"
        )
    return folder


def _text_tower(clip: str) -> dict:
    """A local folder's config of its Hugging Face text tower: read there, not on the hub."""
    if not clip.startswith(LOCAL):
        return {}
    folder = local_folder(clip)
    if not (folder / "config.json").exists():
        return {}

    settings = load_json(folder / "open_clip_config.json")["model_cfg"].get("text_cfg", {})
    if "hf_model_name" not in settings:
        return {}
    return {"text_cfg": {**settings, "hf_model_name": str(folder)}}


def _fingerprint(clip: str, size: int | None) -> str:
    """Of a local CLIP its files' names and contents, so that a copy is the same CLIP.

    Of any other its name.
    """
    if not clip.startswith(LOCAL):
        return fingerprint(clip, size)
    files = sorted(local_folder(clip).iterdir())
    visible = [file for file in files if file.is_file() and not file.name.startswith(".")]
    return fingerprint([(file.name, _digest(file)) for file in visible], size)


def _digest(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "blake2b").hexdigest()


# --- embeddings ---


@torch.inference_mode()
def embed_images(encoder: Encoder, pixels: np.ndarray) -> np.ndarray:
    """(n, s, s, 3) uint8 -> (n, d) float32 unit rows, in order."""
    parts = []
    for start in tqdm(range(0, len(pixels), encoder.batch), desc="image embeddings", unit="batch"):
        with autocast(encoder.device):
            x = encoder.normalize(pixels[start : start + encoder.batch])
            parts.append(F.normalize(encoder.model.encode_image(x).float(), dim=-1).cpu())
    return torch.cat(parts).numpy()


@torch.inference_mode()
def embed_texts(encoder: Encoder, prompts: Sequence[str]) -> np.ndarray:
    """Prompts -> (n, d) float32 unit rows, in order.

    Text longer than the context is truncated; equal prompts run once.
    """
    # prompts of about one length together: less padding
    unique = sorted(set(prompts), key=lambda prompt: (len(prompt), prompt))
    batch_size = 2 * encoder.batch
    parts = []
    for start in tqdm(range(0, len(unique), batch_size), desc="text embeddings", unit="batch"):
        tokens = trimmed(encoder, encoder.tokenizer(unique[start : start + batch_size]))
        with autocast(encoder.device):
            embedding = encoder.model.encode_text(tokens.to(encoder.device))
            parts.append(F.normalize(embedding.float(), dim=-1).cpu())

    where = {prompt: i for i, prompt in enumerate(unique)}
    return torch.cat(parts).numpy()[[where[prompt] for prompt in prompts]]


def trimmed(encoder: Encoder, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens without the columns that are padding in every row.

    Only for Hugging Face text towers, which mask padding.
    """
    config = getattr(getattr(encoder.model, "text", None), "config", None)
    padding = getattr(config, "pad_token_id", None)
    if padding is None:
        return tokens
    longest = int((tokens != padding).sum(dim=1).max())
    return tokens[:, :longest]


def image_embeddings(
    encoder: Encoder, pixels: Pixels, folder: Path, *, name: str, compute: Callable | None = None
) -> np.ndarray:
    """(n, d) float32 unit rows in the order of `pixels.ids`, computed once for these images.

    `compute()` gives the same rows in a shorter way, where the caller has one.
    """
    key = {"pixels": pixels.key, "clip": encoder.fingerprint}
    file = folder / f"image_embeddings_{name}"
    compute = compute or (lambda: embed_images(encoder, pixels.array))
    return cached_embeddings(file, pixels.ids, key, compute)


def text_embeddings(
    encoder: Encoder, prompts: Sequence[str], folder: Path, *, name: str
) -> np.ndarray:
    """(n, d) float32 unit rows in the order of `prompts`, computed once for these prompts."""
    key = {"prompts": fingerprint(list(prompts)), "clip": encoder.fingerprint}
    file = folder / f"text_embeddings_{name}"
    ids = [str(i) for i in range(len(prompts))]
    return cached_embeddings(file, ids, key, lambda: embed_texts(encoder, prompts))


def describe(encoder: Encoder) -> str:
    """One line for a notebook's first output."""
    return (
        f"{type(encoder.model.visual).__name__}, {encoder.geometry.size} px, on {encoder.device} "
        f"({torch.get_num_threads()} of {os.cpu_count()} threads)"
    )
