"""The vision tower in two parts: the frozen blocks, whose output is kept, and those that train.

Most of a tower's cost is in the blocks that never change. Where a tower is known to be a chain
(stem, blocks, tail), it is cut in front of the first block that trains or has adapters, and every
epoch starts from the kept activations. Any other tower runs whole.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import TypeGuard
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from src.encoder import Encoder
from src.encoder.towers import ForeignModule
from src.model_a.adapters import add_adapters
from src.model_a.chain import TAIL, Chain, block_names, blocks_of, chain_of, embed, tail_of
from src.model_a.cut_check import same_embeddings
from src.model_a.recipe import Recipe

WHOLE = -1  # trainable_blocks: every parameter, those of the stem too
# by the encoder's own tower and the place of the cut: whether its copies can be cut there
MEASURED_CUTS: WeakKeyDictionary[nn.Module, dict[int, bool]] = WeakKeyDictionary()


class Tower(nn.Module):
    """`frozen` maps pixels to activations without gradients; `forward` goes on to embeddings.

    Embeddings are unit rows (n, D) float32. `trainable_blocks` counts from the end; 0 trains
    nothing (`frozen` then gives the embeddings themselves), -1 everything. Kernels of depthwise
    convolutions train only with `train_depthwise`: they are few numbers, and on a CPU their
    gradient costs more than all the rest. `lora_rank` puts adapters on the last `lora_blocks` of
    the frozen blocks (-1: on all of them), and the tower is cut in front of the first one.
    `checkpointing` trades time for memory. Normalization layers keep their running statistics.

    `original` is the module that `visual` is a copy of: what was measured of one copy's cut holds
    for the next. Raises ValueError for more blocks than there are.
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
        original: nn.Module | None = None,
    ):
        super().__init__()
        self.visual = visual.eval()
        self.checkpointing = checkpointing
        self.block_names = block_names(visual)
        self.n_blocks = len(self.block_names)
        self.frozen_blocks = self._count_frozen(trainable_blocks)

        # adapters go into the last frozen blocks, so the cut moves in front of the first of these
        self._select_trained(trainable_blocks, train_depthwise)
        n_adapted = self._count_adapted(lora_blocks) if lora_rank else 0
        self.cut = self.frozen_blocks - n_adapted
        self.trains = trainable_blocks != 0 or n_adapted > 0
        if n_adapted:
            add_adapters(visual, blocks_of(visual)[self.cut : self.frozen_blocks], lora_rank)

        self.splits = not self.trains or (self.cut > 0 and self._can_be_cut(original))
        if checkpointing and not self.splits:
            whole: ForeignModule = visual
            whole.set_grad_checkpointing(True)

    def _count_frozen(self, trainable_blocks: int) -> int:
        if trainable_blocks > self.n_blocks or trainable_blocks < WHOLE:
            raise ValueError(
                f"trainable_blocks {trainable_blocks}, but the tower has {self.n_blocks} "
                "(-1 trains all of it)"
            )
        return 0 if trainable_blocks == WHOLE else self.n_blocks - trainable_blocks

    def _select_trained(self, trainable_blocks: int, train_depthwise: bool) -> None:
        """Set `requires_grad` of every parameter; adapters come later."""
        self.visual.requires_grad_(trainable_blocks == WHOLE)
        if trainable_blocks:
            for part in [*blocks_of(self.visual)[self.frozen_blocks :], *tail_of(self.visual)]:
                part.requires_grad_(True)

        if not train_depthwise:
            for module in self.visual.modules():
                if _is_depthwise(module):
                    module.weight.requires_grad_(False)

    def _count_adapted(self, lora_blocks: int) -> int:
        if not self.frozen_blocks:
            raise ValueError(
                "lora_rank is above 0, but no block is frozen: lower trainable_blocks, "
                "adapters are for frozen blocks"
            )
        if lora_blocks > self.frozen_blocks:
            raise ValueError(
                f"lora_blocks {lora_blocks}, but {self.frozen_blocks} of the {self.n_blocks} "
                "blocks are frozen (-1 adapts all of them)"
            )
        return self.frozen_blocks if lora_blocks == WHOLE else lora_blocks

    @torch.no_grad()
    def frozen(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, s, s) -> float32 activations in front of the cut; the pixels where not cut."""
        if not self.trains:
            return F.normalize(embed(self.visual, x).float(), dim=-1)
        return self._before_cut(x).float() if self.splits else x

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        if not self.trains:
            return activations

        # read from the disk they are contiguous; convolutions are faster on channels_last
        if activations.ndim == 4:
            activations = activations.contiguous(memory_format=torch.channels_last)
        embedding = self._after_cut(activations) if self.splits else embed(self.visual, activations)
        return F.normalize(embedding.float(), dim=-1)

    def named_parameters(self, *args, **kwargs) -> Iterator[tuple[str, nn.Parameter]]:
        # peft's attention puts its parameters back when it is asked for its modules, not before
        list(self.named_modules())
        return super().named_parameters(*args, **kwargs)

    def depth(self, name: str) -> int:
        """How many blocks lie behind the parameter `name`: 0 for the tail, n + 1 for the stem."""
        for i, prefix in enumerate(self.block_names):
            if name.removeprefix("visual.").startswith(prefix + "."):
                return self.n_blocks - i

        # neither in a block nor in the tail: in the stem
        in_tail = any(part in name.split(".") for part in TAIL)
        return 0 if in_tail else self.n_blocks + 1

    def _chain(self) -> Chain:
        chain = chain_of(self.visual)
        assert chain is not None  # _measure_cut: only a tower that is a chain is cut
        return chain

    def _before_cut(self, x: torch.Tensor) -> torch.Tensor:
        chain = self._chain()
        x = chain.stem(x)
        for block in chain.blocks[: self.cut]:
            x = block(x)
        return x

    def _after_cut(self, x: torch.Tensor) -> torch.Tensor:
        chain = self._chain()
        for block in chain.blocks[self.cut :]:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return chain.tail(x)

    def _can_be_cut(self, original: nn.Module | None) -> bool:
        """Whether the two parts give what the whole tower gives, as measured on several images."""
        measured = {} if original is None else MEASURED_CUTS.setdefault(original, {})
        if self.cut not in measured:
            measured[self.cut] = self._measure_cut()
        return measured[self.cut]

    def _measure_cut(self) -> bool:
        # activations are kept in float32, whatever the precision in use
        def two_parts(x: torch.Tensor) -> torch.Tensor:
            return self._after_cut(self._before_cut(x).float())

        return chain_of(self.visual) is not None and same_embeddings(self.visual, two_parts)


def make_tower(encoder: Encoder, recipe: Recipe) -> Tower:
    """A copy of the encoder's vision tower, cut and unfrozen as the recipe says."""
    frozen = recipe.tower == "frozen"
    tower = Tower(
        deepcopy(encoder.model.visual),
        0 if frozen else recipe.trainable_blocks,
        train_depthwise=recipe.train_depthwise,
        lora_rank=0 if frozen else recipe.lora_rank,
        lora_blocks=recipe.lora_blocks,
        checkpointing=recipe.grad_checkpointing,
        original=encoder.model.visual,
    )
    tower.to(encoder.device)
    strided_depthwise_in_float32(tower)
    if recipe.compile_tower:
        tower.compile()
    return tower


def plain_tower(encoder: Encoder, cut: int) -> Tower:
    """A copy of the encoder's own vision tower, cut in front of block `cut`.

    Its two parts give the CLIP's own embeddings.
    """
    visual = deepcopy(encoder.model.visual)
    return Tower(visual, len(blocks_of(visual)) - cut, original=encoder.model.visual)


# --- depthwise convolutions ---


def _is_depthwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def strided_depthwise_in_float32(tower: Tower) -> None:
    """Run strided depthwise convolutions behind the cut in float32, on a CPU.

    In bf16 oneDNN takes twenty times as long for their gradient, a third of a step.
    """
    for name in tower.block_names[tower.cut :]:
        for module in tower.visual.get_submodule(name).modules():
            if not _is_depthwise(module) or max(module.stride) == 1:
                continue
            if module.weight.device.type == "cpu":
                in_float32 = partial(_in_float32, module.forward)
                module.forward = in_float32  # type: ignore[method-assign]  # of this copy alone


def _in_float32(forward: Callable, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return forward(x.float())
