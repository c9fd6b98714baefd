"""From images to prompts: CLIP's two kinds of embeddings lie apart; hubs are near to all images.

Everything here is learned from the training folds alone: the centers of both kinds, a linear map
from images to prompts, and how near each prompt is to images in general.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from src import knn
from src.metrics import avg_cos, l2_normalize

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the ridge; unit rows, so of the order of 1
HUB_DEPTH = 50  # hubness is the mean similarity to this many nearest images


@dataclass(frozen=True)
class QueryMap:
    """What is done to an image's embedding before it looks up prompts. None leaves a step out.

    `matrix` (D, D') with `offset`, then less `center`. `key_center` is taken from every key
    (`knn.search`'s `center`).
    """

    matrix: np.ndarray | None = None
    offset: np.ndarray | None = None
    center: np.ndarray | None = None
    key_center: np.ndarray | None = None
    penalty: float | None = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(q, D) float32 unit rows -> (q, D') float32 unit rows."""
        if self.matrix is not None:
            images = images @ self.matrix + self.offset
        if self.center is not None:
            images = images - self.center
        return l2_normalize(images)


def learn(
    images: np.ndarray,
    texts: np.ndarray,
    group: np.ndarray,
    *,
    linear: bool,
    center: bool,
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
) -> QueryMap:
    """A map from images (n, D) to their own prompts (n, D'), unit rows aligned by row.

    `linear`: a ridge whose penalty is chosen on a held-out tenth, whole groups of it, by mean
    cosine. `center`: both kinds are moved to their means of these rows.
    """
    matrix = offset = penalty = None
    if linear:
        from sklearn.linear_model import Ridge

        penalty = _best_penalty(images, texts, group, seed, penalties)
        ridge = Ridge(penalty).fit(images.astype(np.float64), texts.astype(np.float64))
        matrix = ridge.coef_.T.astype(np.float32)
        offset = ridge.intercept_.astype(np.float32)

    if not center:
        return QueryMap(matrix, offset, penalty=penalty)

    # images and texts lie apart in CLIP's space: each kind is measured from its own center
    mapped = images if matrix is None else images @ matrix + offset
    return QueryMap(matrix, offset, mapped.mean(axis=0), texts.mean(axis=0), penalty)


def _best_penalty(
    images: np.ndarray,
    texts: np.ndarray,
    group: np.ndarray,
    seed: int,
    penalties: Sequence[float],
) -> float:
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GroupShuffleSplit

    # whole groups, or near-duplicates of the held-out rows would choose too small a penalty
    split = GroupShuffleSplit(1, test_size=0.1, random_state=seed).split(images, groups=group)
    fit_rows, held_out = next(split)

    def score(penalty: float) -> float:
        ridge = Ridge(penalty).fit(images[fit_rows], texts[fit_rows])
        predicted = ridge.predict(images[held_out]).astype(np.float32)
        return avg_cos(texts[held_out], predicted)

    return max(penalties, key=score)


def hubness(
    keys: np.ndarray, bank: np.ndarray, engine: str = "auto", *, depth: int = HUB_DEPTH
) -> np.ndarray:
    """(n,) float32: each key's mean similarity to its nearest `depth` images of `bank`, (n, D) and
    (m, D) unit rows.
    """
    similarity, _ = knn.search(bank, keys, min(depth, len(bank)), engine)
    return similarity.mean(axis=1)
