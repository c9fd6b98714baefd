"""The vision tower in two parts: the frozen blocks, whose output can be kept, and the blocks that train.

Most of a tower's cost is in the blocks that never change. Where a tower is known to be a chain (stem, blocks, tail), it is cut in
front of the first block that trains or has adapters, and every epoch starts from the kept activations. Any other tower runs whole.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

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
CHAINS = ("blocks", "stages", "transformer.resblocks", "layers")  # where towers keep their blocks
WHOLE = -1  # trainable_blocks: every parameter, those of the stem too
ADAPTER = "lora_"  # what peft calls its parameters


class Tower(nn.Module):
    """`frozen` maps pixels to activations without gradients; `forward` goes on to unit image embeddings, (n, D) float32.

    `trainable_blocks` counts from the end, 0 trains nothing (`frozen` then gives the embeddings themselves), -1 everything.
    Kernels of depthwise convolutions train only with `train_depthwise`: they are few numbers, and on a CPU their gradient costs
    more than all the rest. `lora_rank` puts peft's adapters on the last `lora_blocks` of the frozen blocks (-1: on all of them),
    and the tower is cut in front of the first one. `checkpointing` trades time for memory. Normalisation layers keep their
    running statistics. Raises ValueError for more blocks than there are.
    """

    def __init__(
        self,
        visual: nn.Module,
        trainable_blocks: int,
        *,
        train_depthwise: bool = False,
        lora_rank: int = 0,
        lora_blocks: int = WHOLE,
        checkpointing: bool = False,
    ):
        super().__init__()
        blocks, self.block_names = blocks_of(visual), _block_names(visual)
        if trainable_blocks > len(blocks) or trainable_blocks < WHOLE:
            raise ValueError(
                f"trainable_blocks {trainable_blocks}, but the tower has {len(blocks)} (-1 trains all of it)"
            )
        self.visual, self.checkpointing = (
            visual.requires_grad_(trainable_blocks == WHOLE).eval(),
            checkpointing,
        )
        self.frozen_blocks = 0 if trainable_blocks == WHOLE else len(blocks) - trainable_blocks
        self.n_blocks = len(blocks)
        if trainable_blocks:
            _unfreeze([*blocks[self.frozen_blocks :], *_tail(visual)])
        if not train_depthwise:
            _freeze_depthwise(visual)
        n_adapted = self._count_adapted(lora_blocks) if lora_rank else 0
        self.cut, self.trains = (
            self.frozen_blocks - n_adapted,
            trainable_blocks != 0 or n_adapted > 0,
        )
        if n_adapted:
            add_adapters(visual, blocks[self.cut : self.frozen_blocks], lora_rank)
        self.splits = not self.trains or (self.cut > 0 and self._is_a_chain())
        if checkpointing and not self.splits:
            visual.set_grad_checkpointing(True)

    def _count_adapted(self, lora_blocks: int) -> int:
        if not self.frozen_blocks:
            raise ValueError(
                "lora_rank is above 0, but no block is frozen: lower trainable_blocks, adapters are for frozen blocks"
            )
        if lora_blocks > self.frozen_blocks:
            raise ValueError(
                f"lora_blocks {lora_blocks}, but {self.frozen_blocks} of the {self.n_blocks} blocks are frozen "
                "(-1 adapts all of them)"
            )
        return self.frozen_blocks if lora_blocks == WHOLE else lora_blocks

    @torch.no_grad()
    def frozen(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, s, s) -> float32 activations in front of the cut; the pixels themselves where it is not cut."""
        if not self.trains:
            return F.normalize(self.visual(x).float(), dim=-1)
        return self._before(x).float() if self.splits else x

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        if not self.trains:
            return activations
        if activations.ndim == 4:
            activations = activations.contiguous(memory_format=torch.channels_last)
        embedding = self._after(activations) if self.splits else self.visual(activations)
        return F.normalize(embedding.float(), dim=-1)

    def named_parameters(self, *args, **kwargs):
        list(
            self.named_modules()
        )  # peft's attention puts its parameters back when it is asked for its modules, not before
        return super().named_parameters(*args, **kwargs)

    def depth(self, name: str) -> int:
        """How many blocks lie behind the parameter `name`: 0 for the tail, 1 for the last block, n + 1 for the stem."""
        for i, prefix in enumerate(self.block_names):
            if name.removeprefix("visual.").startswith(prefix + "."):
                return self.n_blocks - i
        return 0 if any(part in name.split(".") for part in TAIL) else self.n_blocks + 1

    def _before(self, x: torch.Tensor) -> torch.Tensor:
        stem, blocks, _ = chain(self.visual)
        x = stem(x)
        for block in blocks[: self.cut]:
            x = block(x)
        return x

    def _after(self, x: torch.Tensor) -> torch.Tensor:
        _, blocks, tail = chain(self.visual)
        for block in blocks[self.cut :]:
            saves = self.checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if saves else block(x)
        return tail(x)

    @torch.no_grad()
    def _is_a_chain(self) -> bool:
        """Whether the two parts give on one image what the whole tower gives: a variant that is no chain stays whole."""
        if chain(self.visual) is None:
            return False
        size = self.visual.image_size
        x = torch.linspace(
            -1, 1, 3 * size[0] * size[1], device=next(self.visual.parameters()).device
        ).view(1, 3, *size)
        return torch.allclose(self._after(self._before(x)), self.visual(x), rtol=1e-3, atol=1e-4)


def chain(visual: nn.Module) -> tuple[Callable, list[Callable], Callable] | None:
    """Stem, blocks and tail of a tower, which one after the other are its forward; None for a tower of another kind."""
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        return _open_clip_chain(visual) if hasattr(visual, "_embeds") else None
    if hasattr(trunk, "conv_stem"):  # timm's EfficientNets
        stem = nn.Sequential(trunk.conv_stem, trunk.bn1)
        return (
            stem,
            list(trunk.blocks),
            lambda x: visual.head(trunk.forward_head(trunk.bn2(trunk.conv_head(x)))),
        )
    if hasattr(trunk, "stages") and hasattr(trunk, "stem"):  # ConvNeXt
        return (
            trunk.stem,
            list(trunk.stages),
            lambda x: visual.head(trunk.forward_head(trunk.norm_pre(x))),
        )
    if hasattr(trunk, "_pos_embed"):  # timm's ViT, SigLIP; EVA by way of its rotary embedding
        return _timm_chain(visual, trunk)
    return None


def _open_clip_chain(visual: nn.Module) -> tuple[Callable, list[Callable], Callable]:
    def tail(x: torch.Tensor) -> torch.Tensor:
        pooled, _ = visual._pool(x)
        return pooled if visual.proj is None else pooled @ visual.proj

    return visual._embeds, list(visual.transformer.resblocks), tail


def _timm_chain(visual: nn.Module, trunk: nn.Module) -> tuple[Callable, list[Callable], Callable]:
    def stem(x: torch.Tensor) -> torch.Tensor:
        x = trunk._pos_embed(trunk.patch_embed(x))
        return trunk.norm_pre(x[0] if isinstance(x, tuple) else x)

    return stem, list(trunk.blocks), lambda x: visual.head(trunk.forward_head(trunk.norm(x)))


def blocks_of(visual: nn.Module) -> list[nn.Module]:
    """The tower's blocks or stages in order. Raises ValueError for a tower whose blocks are not known."""
    return [visual.get_submodule(name) for name in _block_names(visual)]


def _block_names(visual: nn.Module) -> list[str]:
    body, before = (visual.trunk, "trunk.") if hasattr(visual, "trunk") else (visual, "")
    for name in CHAINS:
        found = dict(body.named_modules()).get(name)
        if found is not None:
            return [f"{before}{name}.{i}" for i in range(len(found))]
    layers = [f"{before}layer{i}" for i in range(1, 5) if hasattr(body, f"layer{i}")]  # ResNets
    if not layers:
        raise ValueError(
            f"no blocks found in a {type(body).__name__}: this tower can be used with tower: frozen only"
        )
    return layers


def _tail(visual: nn.Module) -> list[nn.Module | nn.Parameter]:
    parts = [
        getattr(body, name, None)
        for body in (visual, getattr(visual, "trunk", visual))
        for name in TAIL
    ]
    return [part for part in parts if isinstance(part, nn.Module | nn.Parameter)]


def _unfreeze(parts: list[nn.Module | nn.Parameter]) -> None:
    for part in parts:
        part.requires_grad_(True)


def _freeze_depthwise(visual: nn.Module) -> None:
    for module in visual.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.weight.requires_grad_(False)


def strided_depthwise_in_float32(tower: Tower) -> None:
    """Behind the cut, on a CPU: the gradient of such a convolution takes oneDNN twenty times as long in bf16, a third of a step."""
    for name in tower.block_names[tower.cut :]:
        for module in tower.visual.get_submodule(name).modules():
            strided = (
                isinstance(module, nn.Conv2d)
                and module.groups == module.in_channels > 1
                and max(module.stride) > 1
            )
            if strided and module.weight.device.type == "cpu":
                module.forward = partial(_in_float32, module.forward)


def _in_float32(forward: Callable, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float())


def add_adapters(visual: nn.Module, blocks: list[nn.Module], rank: int) -> None:
    """peft's LoRA on every linear layer, attention and pointwise convolution of `blocks`, which stay frozen themselves."""
    from peft import LoraConfig, inject_adapter_in_model

    inside = {id(module) for block in blocks for module in block.modules()}
    attention = [module for module in visual.modules() if isinstance(module, nn.MultiheadAttention)]
    hidden = {id(module) for parent in attention for module in parent.modules()} - {
        id(parent) for parent in attention
    }
    hidden |= {
        id(parent.qkv) for parent in visual.modules() if getattr(parent, "q_bias", None) is not None
    }  # EVA reads its weight
    names = [
        name
        for name, module in visual.named_modules()
        if id(module) in inside and id(module) not in hidden and _adaptable(module)
    ]
    trained = {name for name, p in visual.named_parameters() if p.requires_grad}
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), visual)
    for name, p in visual.named_parameters():  # peft freezes all that is not its own
        p.requires_grad_(ADAPTER in name or name in trained)


def _adaptable(module: nn.Module) -> bool:
    pointwise = (
        isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
    )
    return isinstance(module, nn.Linear | nn.MultiheadAttention) or pointwise
