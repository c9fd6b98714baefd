"""Encoders that open_clip does not build: a CLIP or SigLIP of transformers, a tower of timm.

Both look like open_clip's models: `visual` maps pixels to embeddings, `encode_image` and
`encode_text` give those that belong together.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

FAMILIES = ("clip", "siglip")  # model_type of the configs that are known

OLD_END = 2  # the end of a prompt in configs of CLIP written before it was corrected

# a module of open_clip, timm or transformers: which parts it has depends on its family
ForeignModule = Any


# --- transformers ---


class HuggingFaceVision(nn.Module):
    """The vision tower of a CLIPModel or SiglipModel, from pixels to embeddings (n, D).

    Images of another `size` in pixels than the model's own have its position embeddings
    interpolated. ValueError where the size is not a multiple of the patch size.
    """

    def __init__(self, model: ForeignModule, size: int):
        super().__init__()
        self.vision_model: ForeignModule = model.vision_model
        patch = model.config.vision_config.patch_size
        if size % patch:
            raise ValueError(f"{size} pixels are not a multiple of the patch size {patch}")
        self.visual_projection = getattr(model, "visual_projection", nn.Identity())
        self.is_clip = hasattr(model, "visual_projection")
        self.image_size = size
        self.checkpointing = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks():
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.tail(x)

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels to tokens."""
        x = self.vision_model.embeddings(x, interpolate_pos_encoding=True)
        return self.vision_model.pre_layrnorm(x) if self.is_clip else x

    def blocks(self) -> list[Callable[[torch.Tensor], torch.Tensor]]:
        """The layers; without a mask, since every token sees every other."""
        return [_Unmasked(layer) for layer in self.vision_model.encoder.layers]

    def tail(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens to the embedding."""
        # CLIP's embedding is its class token; SigLIP has none and pools by attention
        if self.is_clip:
            pooled = self.vision_model.post_layernorm(x[:, 0])
        else:
            pooled = self.vision_model.head(self.vision_model.post_layernorm(x))
        return self.visual_projection(pooled)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.checkpointing = enable


class _Unmasked:
    """A transformer layer called without an attention mask."""

    def __init__(self, layer: nn.Module):
        self.layer = layer

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        output = self.layer(x, attention_mask=None)
        return output[0] if isinstance(output, tuple) else output


class HuggingFaceClip(nn.Module):
    """A CLIPModel or SiglipModel of transformers."""

    def __init__(self, model: ForeignModule, size: int):
        super().__init__()
        self.visual = HuggingFaceVision(model, size)
        self.text_model: ForeignModule = model.text_model
        self.text_projection = getattr(model, "text_projection", nn.Identity())
        self.is_causal = model.config.model_type == "clip"

    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.text_projection(self.text_model(input_ids=tokens).pooler_output)

    def last_token(self, tokens: torch.Tensor) -> torch.Tensor | None:
        """(n,) int64: where CLIP takes a prompt's embedding from. SigLIP, whose tokens all see the
        padding, has no such place: None.
        """
        if not self.is_causal:
            return None
        end = self.text_model.config.eos_token_id
        # old configs have another number there: transformers looks for the highest token then
        ends = tokens if end == OLD_END else torch.eq(tokens, end).int()
        return ends.argmax(dim=1)


class HuggingFaceTokens:
    """Texts -> (n, context) int64 tokens, padded and truncated to the model's context."""

    def __init__(self, folder: Path, context: int):
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.context = context

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.context,
            return_tensors="pt",
        )
        return tokens.input_ids


def load_hugging_face(folder: Path, size: int) -> tuple[HuggingFaceClip, HuggingFaceTokens]:
    """The model, for images of `size` pixels, and the tokenizer of a Hugging Face folder.

    Raises what transformers raises, and ValueError for weights that do not fit the config.
    """
    from transformers import AutoModel

    model, loaded = AutoModel.from_pretrained(
        folder,
        local_files_only=True,
        use_safetensors=True,
        dtype=torch.float32,
        output_loading_info=True,
    )

    # transformers only warns of them, and leaves these tensors as they were drawn at random
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise ValueError(
            f"its weights lack {len(missing)} tensors of its config, e.g. {missing[0]}"
        )
    context = model.config.text_config.max_position_embeddings
    return HuggingFaceClip(model, size), HuggingFaceTokens(folder, context)


# --- timm ---


class TimmVision(nn.Module):
    """A tower of timm without a text tower; its embeddings are its pooled features (n, D)."""

    def __init__(self, trunk: ForeignModule, image_size: tuple[int, int]):
        super().__init__()
        self.trunk: ForeignModule = trunk
        self.head = nn.Identity()
        self.image_size = image_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(x))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.trunk.set_grad_checkpointing(enable)


class VisionOnly(nn.Module):
    """A model that embeds images alone."""

    def __init__(self, visual: nn.Module):
        super().__init__()
        self.visual = visual

    def encode_image(self, x: torch.Tensor) -> torch.Tensor:
        return self.visual(x)


def load_timm(name: str, size: int | None) -> tuple[VisionOnly, dict]:
    """timm's `name` with its pretrained weights, and how it wants its images.

    A `size` in pixels is another input size than that of its weights.
    """
    import timm

    options: dict[str, Any] = {} if size is None else {"img_size": size}
    try:
        trunk = timm.create_model(name, pretrained=True, num_classes=0, **options)
    except TypeError:
        # towers that take any size, such as convolutional ones, have no such option
        trunk = timm.create_model(name, pretrained=True, num_classes=0)

    settings = timm.data.resolve_data_config({}, model=trunk)
    side = size or settings["input_size"][-1]
    preprocess = {
        "size": side,
        "interpolation": settings["interpolation"],
        "resize_mode": "shortest",
        "mean": settings["mean"],
        "std": settings["std"],
    }
    return VisionOnly(TimmVision(trunk, (side, side))), preprocess
