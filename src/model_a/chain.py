"""A vision tower as a chain: a stem, blocks, and a tail, which one after the other are its forward.

Towers come from open_clip, timm and transformers. Where their forward is not known to be
such a chain, there is none, and the tower runs whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from src.encoder.towers import ForeignModule

Part = Callable[[torch.Tensor], torch.Tensor]

# parts behind the blocks, by the names that the libraries give them
TAIL = (
    "conv_head",
    "bn2",
    "norm",
    "norm_pre",
    "fc_norm",
    "head",
    "ln_post",
    "proj",
    "attn_pool",
    "attn_pool_contrastive",
    "attnpool",
    "final_conv",
    "head_hidden_layer",
    "post_layernorm",
    "visual_projection",
)
# where towers keep their blocks
BLOCKS = ("blocks", "stages", "transformer.resblocks", "vision_model.encoder.layers", "layers")


@dataclass(frozen=True)
class Chain:
    """`tail(blocks[-1](... blocks[0](stem(x))))` is the tower's forward."""

    stem: Part
    blocks: list[Part]
    tail: Part


def embed(visual: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """(n, 3, s, s) -> the tower's embeddings (n, D), not of unit length.

    A CoCa's tower gives its tokens too, which are dropped.
    """
    output = visual(x)
    return output[0] if isinstance(output, tuple) else output


def chain_of(visual: ForeignModule) -> Chain | None:
    """The chain that a tower of this kind is; None for a tower of another kind."""
    # known by what they are made of: classes and names change more often between versions
    if hasattr(visual, "vision_model"):
        return Chain(visual.stem, visual.blocks(), visual.tail)
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        return _open_clip_vit(visual) if hasattr(visual, "_embeds") else None
    if hasattr(trunk, "conv_stem"):
        return _efficientnet(visual, trunk)
    if hasattr(trunk, "final_conv"):
        return _fastvit(visual, trunk)
    if hasattr(trunk, "stages") and hasattr(trunk, "stem"):
        return _convnext(visual, trunk)
    if hasattr(trunk, "_pos_embed"):
        return _timm_vit(visual, trunk)
    return None


def _open_clip_vit(visual: ForeignModule) -> Chain:
    """open_clip's own ViT: OpenAI's, LAION's, DataComp's."""

    def tail(x: torch.Tensor) -> torch.Tensor:
        pooled, _ = visual._pool(x)
        return pooled if visual.proj is None else pooled @ visual.proj

    return Chain(visual._embeds, list(visual.transformer.resblocks), tail)


def _efficientnet(visual: ForeignModule, trunk: ForeignModule) -> Chain:
    def tail(x: torch.Tensor) -> torch.Tensor:
        x = trunk.bn2(trunk.conv_head(x))
        return visual.head(trunk.forward_head(x))

    return Chain(nn.Sequential(trunk.conv_stem, trunk.bn1), list(trunk.blocks), tail)


def _convnext(visual: ForeignModule, trunk: ForeignModule) -> Chain:
    def tail(x: torch.Tensor) -> torch.Tensor:
        return visual.head(trunk.forward_head(trunk.norm_pre(x)))

    return Chain(trunk.stem, list(trunk.stages), tail)


def _fastvit(visual: ForeignModule, trunk: ForeignModule) -> Chain:
    """The towers of MobileCLIP."""

    def tail(x: torch.Tensor) -> torch.Tensor:
        return visual.head(trunk.forward_head(trunk.final_conv(x)))

    return Chain(trunk.stem, list(trunk.stages), tail)


def _timm_vit(visual: ForeignModule, trunk: ForeignModule) -> Chain:
    """timm's ViT, SigLIP and ViTamin; and EVA, PE-Core and DINOv3 with their rotary embedding."""

    def stem(x: torch.Tensor) -> torch.Tensor:
        x = trunk._pos_embed(trunk.patch_embed(x))
        return trunk.norm_pre(x[0] if isinstance(x, tuple) else x)

    def tail(x: torch.Tensor) -> torch.Tensor:
        return visual.head(trunk.forward_head(trunk.norm(x)))

    return Chain(stem, _blocks_with_rotary_embedding(trunk), tail)


def _blocks_with_rotary_embedding(trunk: ForeignModule) -> list[Part]:
    """The blocks; where the tower has a rotary embedding, each with its own already given.

    The tower makes it beside the patches and hands it to every block, so a block that is called
    alone would do without.
    """
    rope = getattr(trunk, "rope", None)
    if rope is None:
        return list(trunk.blocks)

    # a tower of one size has its embedding made; any other makes it for the size of its patches
    if hasattr(rope, "feat_shape") and not trunk.dynamic_img_size:
        embedding = rope.get_embed()
    else:
        embedding = rope.get_embed(shape=trunk.patch_embed.grid_size)

    # mixed: one a block, else one for all
    is_mixed = getattr(trunk, "rope_mixed", False)
    return [
        partial(block, rope=embedding[i] if is_mixed else embedding)
        for i, block in enumerate(trunk.blocks)
    ]


def block_names(visual: nn.Module) -> list[str]:
    """The names of the tower's blocks or stages, in order.

    Raises ValueError for a tower whose blocks are not known.
    """
    body: nn.Module = getattr(visual, "trunk", visual)
    prefix = "trunk." if hasattr(visual, "trunk") else ""

    modules: dict[str, ForeignModule] = dict(body.named_modules())
    for name in BLOCKS:
        if name in modules:
            return [f"{prefix}{name}.{i}" for i in range(len(modules[name]))]

    # ResNets number their stages from 1
    stages = [f"layer{i}" for i in range(1, 5) if hasattr(body, f"layer{i}")]
    if not stages:
        raise ValueError(
            f"no blocks found in a {type(body).__name__}: "
            "this tower can be used with tower: frozen only"
        )
    return [prefix + name for name in stages]


def blocks_of(visual: nn.Module) -> list[nn.Module]:
    """The tower's blocks or stages in order. Raises ValueError where they are not known."""
    return [visual.get_submodule(name) for name in block_names(visual)]


def tail_of(visual: nn.Module) -> list[nn.Module | nn.Parameter]:
    """The modules and parameters behind the blocks."""
    bodies = (visual, getattr(visual, "trunk", visual))
    parts = [getattr(body, name, None) for body in bodies for name in TAIL]
    return [part for part in parts if isinstance(part, nn.Module | nn.Parameter)]
