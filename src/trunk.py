"""One CLIP and the folds trained from it, for prediction: the blocks that no fold has changed run once a batch, not once a fold."""

from collections.abc import Mapping, Sequence
from copy import deepcopy

import numpy as np
import torch
from torch.nn import functional as F

from src import model_a
from src.encoder import Encoder, autocast
from src.metrics import unit

TOLERANCE = 1e-4  # of unit vectors, between running shared blocks once and running each tower whole


class Trunk:
    """Embeds a batch by the CLIP itself and by every fold of every member, sharing blocks where that changes nothing."""

    def __init__(self, clip: Encoder, members: Mapping[str, Sequence[model_a.Fitted]]):
        self.clip, self.members = clip, members
        self.plain = None
        fitted = [fold for folds in members.values() for fold in folds]
        if fitted:
            plain = deepcopy(fitted[0].tower)
            theirs, mine = clip.model.visual.state_dict(), plain.visual.state_dict()
            if theirs.keys() == mine.keys():  # adapters add tensors
                plain.visual.load_state_dict(theirs)
                self.plain = plain if self._agrees(plain) else None

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(n, s, s, 3) uint8 -> the CLIP's embeddings (n, D) and each member's prediction (n, 384), float32 unit rows."""
        return self._whole(pixels) if self.plain is None else self._shared(self.plain, pixels)

    @torch.inference_mode()
    def _whole(self, pixels: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        with autocast(self.clip.device):
            embedding = F.normalize(self.clip.model.encode_image(self._input(pixels)).float(), dim=-1)
        folds = {name: [model_a.predict_pixels(fold, self.clip, pixels) for fold in folds] for name, folds in self.members.items()}
        return embedding.cpu().numpy(), {name: unit(np.sum(rows, axis=0)) for name, rows in folds.items()}

    @torch.inference_mode()
    def _shared(self, plain: torch.nn.Module, pixels: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        with autocast(self.clip.device):
            activations = plain.frozen(self._input(pixels))
            embedding = plain(activations).float()
        found = {}
        for name, folds in self.members.items():
            total = sum(F.normalize(fold.forward(activations).float(), dim=-1) for fold in folds)
            found[name] = unit(total.cpu().numpy())
        return embedding.cpu().numpy(), found

    def _input(self, pixels: np.ndarray) -> torch.Tensor:
        return self.clip.normalise(pixels).contiguous(memory_format=torch.channels_last)

    def _agrees(self, plain: torch.nn.Module) -> bool:
        """Whether sharing gives what the whole towers give, on two pictures of noise: measured, not assumed."""
        size = self.clip.geometry.size
        pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
        (one, first), (other, second) = self._shared(plain, pixels), self._whole(pixels)
        apart = [np.abs(one - other).max(), *(np.abs(first[name] - second[name]).max() for name in first)]
        return max(apart) < TOLERANCE
