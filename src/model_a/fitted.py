"""A tower with its head, and their trained weights: kept, put back, and mixed."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from src.artifacts import readable
from src.encoder import autocast
from src.model_a.tower import Tower
from src.paths import display_path


@dataclass
class FittedModel:
    """A tower and a head, and how they were trained: one dict an epoch, epoch 0 being the start.

    `factor` is how far the weights went from the start (0) to the best epoch (1); `factors` has
    the score of each one tried.
    """

    tower: Tower
    head: nn.Module
    history: list[dict] = field(default_factory=list)
    factor: float = 1.0
    factors: dict[float, float] = field(default_factory=dict)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """(n, ...) activations -> (n, 384) float32 predictions, not of unit length.

        The tower runs under autocast, the head in float32.
        """
        with autocast(activations.device):
            embedding = self.tower(activations)
        return self.head(embedding)


def load_weights(file: Path, device: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name.

    Raises ValueError naming a file that is broken or holds NaN or infinity.
    """
    with readable(file):
        tensors = load_file(file, device=device)

    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if bad:
        raise ValueError(
            f"{display_path(file)}: {len(bad)} of {len(tensors)} tensors hold NaN or infinity, "
            f"e.g. {bad[0]}"
        )
    return tensors


def weights(fitted: FittedModel) -> dict[str, torch.Tensor]:
    """The tensors that training changes, by name; not copies.

    Trained parameters and the head's running statistics.
    """
    tower = {f"tower.{name}": p for name, p in fitted.tower.named_parameters() if p.requires_grad}
    head = fitted.head.state_dict(keep_vars=True)
    return tower | {f"head.{name}": p for name, p in head.items()}


def snapshot(fitted: FittedModel) -> dict[str, torch.Tensor]:
    """A copy of `weights`."""
    return {name: p.detach().clone() for name, p in weights(fitted).items()}


@torch.no_grad()
def restore(fitted: FittedModel, state: dict[str, torch.Tensor]) -> None:
    """Put a snapshot back.

    Raises ValueError naming the tensors that are missing, too many or of another shape.
    """
    current = weights(fitted)
    if current.keys() != state.keys():
        raise ValueError(
            "weights do not fit this tower and head, "
            f"e.g. {sorted(current.keys() ^ state.keys())[:3]}"
        )

    # copy_ would repeat a smaller tensor
    wrong = [name for name, p in current.items() if p.shape != state[name].shape]
    if wrong:
        shape = tuple(state[wrong[0]].shape)
        wanted = tuple(current[wrong[0]].shape)
        raise ValueError(
            f"weights do not fit this tower and head, e.g. {wrong[0]} {shape}, wanted {wanted}"
        )

    for name, p in current.items():
        p.copy_(state[name])


def interpolate(
    start: dict[str, torch.Tensor], end: dict[str, torch.Tensor], factor: float
) -> dict[str, torch.Tensor]:
    """WiSE-FT: (1 - factor) start + factor end, tensor by tensor; counters are those of the end."""
    mixed = dict(end)
    for name, tensor in end.items():
        if tensor.is_floating_point():
            mixed[name] = torch.lerp(start[name], tensor, factor)
    return mixed
