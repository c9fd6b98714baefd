"""Embeddings of images and texts in batches, computed once."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from src.artifacts import cached_embeddings, fingerprint
from src.batches import prepared, read_together, to_device
from src.data.images import Pixels, Rows
from src.encoder.clip import Encoder, Tokenizer, autocast
from src.encoder.padding import encode_tokens, trimmed


@torch.inference_mode()
def embed_images(encoder: Encoder, pixels: np.ndarray | Rows) -> np.ndarray:
    """(n, s, s, 3) uint8 -> (n, d) float32 unit rows, in order."""

    def read(start: int) -> torch.Tensor:
        return torch.from_numpy(np.array(pixels[start : start + encoder.batch]))

    def embed(batch: torch.Tensor) -> torch.Tensor:
        with autocast(encoder.device):
            embedding = encoder.model.encode_image(encoder.normalize(batch))
        return F.normalize(embedding.float(), dim=-1)

    starts = tqdm(range(0, len(pixels), encoder.batch), desc="image embeddings", unit="batch")
    batches = prepared(read, starts, encoder.device)
    return read_together(embed(batch) for batch in batches).numpy()


def require_text(encoder: Encoder) -> Tokenizer:
    """The encoder's tokenizer. Raises ValueError for an encoder without a text tower."""
    if encoder.tokenizer is None:
        raise ValueError(
            f"clip: {encoder.name!r} has no text tower: it can be one of notebook 02's "
            "extra_clips, but not Model B's clip, and weight_by_clip_score cannot use it"
        )
    return encoder.tokenizer


@torch.inference_mode()
def embed_texts(encoder: Encoder, prompts: Sequence[str]) -> np.ndarray:
    """Prompts -> (n, d) float32 unit rows, in order.

    Text longer than the context is truncated; equal prompts run once. Raises ValueError for an
    encoder without a text tower.
    """
    tokenizer = require_text(encoder)

    # prompts of about one length together: less padding
    unique = sorted(set(prompts), key=lambda prompt: (len(prompt), prompt))
    batch_size = 2 * encoder.batch

    def tokenize(start: int) -> torch.Tensor:
        return trimmed(encoder, tokenizer(unique[start : start + batch_size]))

    def embed(tokens: torch.Tensor) -> torch.Tensor:
        with autocast(encoder.device):
            embedding = encode_tokens(encoder, to_device(tokens, encoder.device))
        return F.normalize(embedding.float(), dim=-1)

    starts = tqdm(range(0, len(unique), batch_size), desc="text embeddings", unit="batch")
    batches = prepared(tokenize, starts, encoder.device)
    embeddings = read_together(embed(tokens) for tokens in batches).numpy()

    # back into the order of the prompts that were given
    where = {prompt: i for i, prompt in enumerate(unique)}
    return embeddings[[where[prompt] for prompt in prompts]]


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
