"""One CLIP and the folds trained from it, for prediction: the blocks that no fold has changed run once a batch, not once a fold."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from src.encoder import Encoder, autocast
from src.metrics import l2_normalize
from src.model_a import fit, training


class FoldEnsemble:
    """Embeds a batch by the CLIP itself and by every fold of every member.

    `plain` is the CLIP's own tower, cut where the first member's towers are cut; its activations serve the members in `shared`,
    whose towers were found to give the very same ones.
    """

    def __init__(self, clip: Encoder, members: Mapping[str, Sequence[training.FittedModel]]):
        self.clip, self.members = clip, members
        folds = next(iter(members.values()), ())
        self.plain = fit.plain_tower(clip, folds[0].tower.cut) if folds else None
        self.shared = {
            name
            for name, folds in members.items()
            if self.plain is not None and self._same_activations(folds)
        }

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(n, s, s, 3) uint8 -> the CLIP's embeddings (n, D) and each member's prediction (n, 384), float32 unit rows."""
        activations, embedding = self._embed(self.clip.normalise(pixels))
        found = {}
        for name, folds in self.members.items():
            if name in self.shared:
                rows = [
                    F.normalize(fold.forward(activations).float(), dim=-1).cpu().numpy()
                    for fold in folds
                ]
            else:
                rows = [fit.predict_pixels(fold, self.clip, pixels) for fold in folds]
            found[name] = l2_normalize(np.sum(rows, axis=0))
        return embedding.cpu().numpy(), found

    def _embed(self, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        with autocast(self.clip.device):
            if self.plain is None:
                return None, F.normalize(self.clip.model.encode_image(x).float(), dim=-1)
            activations = self.plain.frozen(x)
            return activations, self.plain(activations)

    @torch.inference_mode()
    def _same_activations(self, folds: Sequence[training.FittedModel]) -> bool:
        """Whether each fold's frozen blocks give exactly what the CLIP's give: measured on noise, not assumed."""
        with autocast(self.clip.device):
            expected = self.plain.frozen(self._noise())
            return all(torch.equal(fold.tower.frozen(self._noise()), expected) for fold in folds)

    def _noise(self) -> torch.Tensor:
        size = self.clip.geometry.size
        pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
        return self.clip.normalise(pixels).contiguous(memory_format=torch.channels_last)
