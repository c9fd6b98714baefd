"""One CLIP and the folds trained from it, for prediction.

The blocks that no fold has changed run once a batch, not once a fold.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from src.encoder import Encoder, autocast
from src.metrics import l2_normalize
from src.model_a.fit import predict_pixels, unit_mean
from src.model_a.fitted import FittedModel
from src.model_a.tower import Tower, plain_tower
from src.model_a.views import PLAIN, changes_of, unchanged


class FoldEnsemble:
    """Embeds a batch by the CLIP itself and by every fold of every member.

    `plain` is the CLIP's own tower, cut where the first member's towers are cut. Its activations
    serve the members in `shared`, whose towers were measured to give the very same ones. A
    prediction is the mean over the `views` of an image; the CLIP's embedding is that of the image
    as it is.
    """

    def __init__(
        self,
        clip: Encoder,
        members: Mapping[str, Sequence[FittedModel]],
        views: Sequence[str] = PLAIN,
    ):
        self.clip = clip
        self.members = members
        self.changes = changes_of(views)
        self.plain: Tower | None = None
        self.shared: set[str] = set()
        if members:
            first_folds = next(iter(members.values()))
            self.plain = plain_tower(clip, first_folds[0].tower.cut)
            self.shared = _sharing(clip, self.plain, members)

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(n, s, s, 3) uint8 -> the CLIP's embeddings and each member's prediction.

        Embeddings are (n, D) and predictions (n, 384), both float32 unit rows.
        """
        activations, embedding = self._embed(self.clip.normalize(pixels))

        # by member: for each view the predictions of every fold
        by_view: dict[str, list[list[np.ndarray]]] = {name: [] for name in self.members}
        for change in self.changes if self.members else []:
            view = pixels
            if change is not unchanged:
                view = change(pixels)
                activations = self._before_cut(view)
            for name, folds in self.members.items():
                by_view[name].append(self._predict(name, folds, view, activations))

        predictions = {}
        for name, views in by_view.items():
            of_folds = [unit_mean(rows) for rows in zip(*views, strict=True)]
            predictions[name] = l2_normalize(np.sum(of_folds, axis=0))
        return embedding.cpu().numpy(), predictions

    def _predict(
        self,
        name: str,
        folds: Sequence[FittedModel],
        pixels: np.ndarray,
        activations: torch.Tensor | None,
    ) -> list[np.ndarray]:
        """Each fold's unit rows for one view of the images."""
        # `shared` is empty where there are no activations
        if name not in self.shared or activations is None:
            return [predict_pixels(fold, self.clip, pixels) for fold in folds]
        return [
            F.normalize(fold.forward(activations).float(), dim=-1).cpu().numpy() for fold in folds
        ]

    def _before_cut(self, pixels: np.ndarray) -> torch.Tensor | None:
        """The shared activations of a view; None where no member takes them."""
        if self.plain is None or not self.shared:
            return None
        with autocast(self.clip.device):
            return self.plain.frozen(self.clip.normalize(pixels))

    def _embed(self, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Activations in front of the cut (None without a member), and the unit embeddings."""
        with autocast(self.clip.device):
            if self.plain is None:
                return None, F.normalize(self.clip.model.encode_image(x).float(), dim=-1)
            activations = self.plain.frozen(x)
            return activations, self.plain(activations)


@torch.inference_mode()
def _sharing(clip: Encoder, plain: Tower, members: Mapping[str, Sequence[FittedModel]]) -> set[str]:
    """The members each of whose folds' frozen blocks give exactly what `plain`'s give, on noise."""
    size = clip.geometry.size
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    x = clip.normalize(pixels)

    sharing = set()
    with autocast(clip.device):
        expected = plain.frozen(x)
        for name, folds in members.items():
            if all(torch.equal(fold.tower.frozen(x), expected) for fold in folds):
                sharing.add(name)
    return sharing
