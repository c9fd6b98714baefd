"""A vision tower as a chain: a stem, blocks, and a tail, which one after the other are its forward.

Towers come from open_clip and timm. Where their forward is not known to be such a chain, there is
none, and the tower runs whole.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

# parts behind the blocks, by the names that open_clip and timm give them
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
    "attnpool",
    "head_hidden_layer",
)
# where towers keep their blocks
BLOCKS = ("blocks", "stages", "transformer.resblocks", "layers")


@dataclass(frozen=True)
class Chain:
    """`tail(blocks[-1](... blocks[0](stem(x))))` is the tower's forward."""

    stem: Callable[[torch.Tensor], torch.Tensor]
    blocks: list[Callable[[torch.Tensor], torch.Tensor]]
    tail: Callable[[torch.Tensor], torch.Tensor]


def chain_of(visual: nn.Module) -> Chain | None:
    """The chain that a tower of this kind is; None for a tower of another kind."""
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        return _open_clip_vit(visual) if hasattr(visual, "_embeds") else None
    if hasattr(trunk, "conv_stem"):
        return _efficientnet(visual, trunk)
    if hasattr(trunk, "stages") and hasattr(trunk, "stem"):
        return _convnext(visual, trunk)
    if hasattr(trunk, "_pos_embed"):
        return _timm_vit(visual, trunk)
    return None


def _open_clip_vit(visual: nn.Module) -> Chain:
    """open_clip's own ViT: OpenAI's, LAION's, DataComp's."""

    def tail(x: torch.Tensor) -> torch.Tensor:
        pooled, _ = visual._pool(x)
        return pooled if visual.proj is None else pooled @ visual.proj

    return Chain(visual._embeds, list(visual.transformer.resblocks), tail)


def _efficientnet(visual: nn.Module, trunk: nn.Module) -> Chain:
    def tail(x: torch.Tensor) -> torch.Tensor:
        x = trunk.bn2(trunk.conv_head(x))
        return visual.head(trunk.forward_head(x))

    return Chain(nn.Sequential(trunk.conv_stem, trunk.bn1), list(trunk.blocks), tail)


def _convnext(visual: nn.Module, trunk: nn.Module) -> Chain:
    def tail(x: torch.Tensor) -> torch.Tensor:
        return visual.head(trunk.forward_head(trunk.norm_pre(x)))

    return Chain(trunk.stem, list(trunk.stages), tail)


def _timm_vit(visual: nn.Module, trunk: nn.Module) -> Chain:
    """timm's ViT and SigLIP; EVA by way of its rotary embedding."""

    def stem(x: torch.Tensor) -> torch.Tensor:
        x = trunk._pos_embed(trunk.patch_embed(x))
        return trunk.norm_pre(x[0] if isinstance(x, tuple) else x)

    def tail(x: torch.Tensor) -> torch.Tensor:
        return visual.head(trunk.forward_head(trunk.norm(x)))

    return Chain(stem, list(trunk.blocks), tail)


def block_names(visual: nn.Module) -> list[str]:
    """The names of the tower's blocks or stages, in order.

    Raises ValueError for a tower whose blocks are not known.
    """
    body = getattr(visual, "trunk", visual)
    prefix = "trunk." if hasattr(visual, "trunk") else ""

    modules = dict(body.named_modules())
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
