"""Text towers without the padding behind the longest prompt of a batch.

Most towers read 77 tokens whatever the prompt's length. Where what stands behind a prompt cannot
change its embedding, that part is left out: the time of a batch is then that of its longest prompt.
"""

from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from src.encoder.clip import Encoder
from src.encoder.towers import HuggingFaceClip

POOLED_AT_ONE_TOKEN = ("argmax", "eos")  # as open_clip calls it: at the prompt's end


def trimmed(encoder: Encoder, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens (n, context) without the columns behind the longest prompt, where these do nothing."""
    config = getattr(getattr(encoder.model, "text", None), "config", None)
    padding = getattr(config, "pad_token_id", None)
    # Hugging Face text towers in open_clip mask padding
    if padding is not None:
        longest = int((tokens != padding).sum(dim=1).max())
        return tokens[:, :longest]

    if isinstance(encoder.model, HuggingFaceClip):
        last = encoder.model.last_token(tokens)
        return tokens if last is None else tokens[:, : int(last.max()) + 1]

    causal = _causal_text(encoder.model)
    if causal is None:
        return tokens
    return tokens[:, : int(_last_token(causal[1], tokens).max()) + 1]


def encode_tokens(encoder: Encoder, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens as `trimmed` leaves them -> (n, D), not of unit length."""
    causal = _causal_text(encoder.model)
    if causal is None:
        return encoder.model.encode_text(tokens)

    # open_clip adds all positions and its whole mask, so both are cut to the tokens' length
    name, tower = causal
    length = tokens.shape[1]
    shorter = {
        f"{name}attn_mask": tower.attn_mask[:length, :length],
        f"{name}positional_embedding": tower.positional_embedding[:length],
    }
    return functional_call(_EncodesText(encoder.model), shorter, (tokens,))


class _EncodesText(nn.Module):
    """A CLIP whose forward is `encode_text`."""

    def __init__(self, clip: Any):
        super().__init__()
        self.clip = clip

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.clip.encode_text(tokens)


def _causal_text(clip: Any) -> tuple[str, Any] | None:
    """open_clip's text tower, where no token sees those behind it and the embedding is that of the
    prompt's last token; before it, its name in `_EncodesText`. None for any other tower.
    """
    name = "clip.text." if hasattr(clip, "text") else "clip."
    tower = getattr(clip, "text", clip)
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))

    # a class token behind the prompt sees all of it, padding too
    is_causal = getattr(tower, "attn_mask", None) is not None
    has_class_token = getattr(tower, "cls_emb", None) is not None
    if pool not in POOLED_AT_ONE_TOKEN or not is_causal or has_class_token:
        return None
    return name, tower


def _last_token(tower: Any, tokens: torch.Tensor) -> torch.Tensor:
    """(n,) int64: where the tower takes a prompt's embedding from, as open_clip finds it."""
    pool = getattr(tower, "pool_type", getattr(tower, "text_pool_type", None))
    if pool == "argmax":
        return tokens.argmax(dim=1)
    end: Any = getattr(tower, "eos_id", getattr(tower, "text_eos_id", None))
    return torch.eq(tokens, end).int().argmax(dim=1)
