"""From an image to prompts: CLIP's two kinds of embeddings lie apart, and some prompts are near to everything.

What is learnt here is learnt from the training folds alone: the centres of both kinds, a linear map from images to prompts,
and how near each prompt is to images in general.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupShuffleSplit

from src import knn
from src.metrics import avg_cos, l2_normalize

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the ridge; unit rows, so of the order of 1
HUB_DEPTH = 50  # images whose mean similarity says how much of a hub a prompt is


@dataclass(frozen=True)
class QueryMap:
    """What is done to an image's embedding before it looks up prompts: `matrix` (D, D') with `offset`, then less `centre`.

    `key_centre` is what is taken from every key (`knn.search`'s `centre`). None leaves a step out.
    """

    matrix: np.ndarray | None = None
    offset: np.ndarray | None = None
    centre: np.ndarray | None = None
    key_centre: np.ndarray | None = None
    penalty: float | None = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(q, D) float32 unit rows -> (q, D') float32 unit rows."""
        if self.matrix is not None:
            images = images @ self.matrix + self.offset
        return l2_normalize(images if self.centre is None else images - self.centre)


def learn(
    images: np.ndarray,
    texts: np.ndarray,
    group: np.ndarray,
    *,
    linear: bool,
    centre: bool,
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
) -> QueryMap:
    """A bridge from images (n, D) to their own prompts (n, D'), unit rows aligned by row.

    `linear`: a ridge whose penalty is chosen on a held-out tenth, whole groups of it, by mean cosine. `centre`: both kinds are
    moved to their means of these rows.
    """
    matrix = offset = penalty = None
    if linear:
        penalty = _penalty(images, texts, group, seed, penalties)
        fitted = Ridge(penalty).fit(images.astype(np.float64), texts.astype(np.float64))
        matrix, offset = fitted.coef_.T.astype(np.float32), fitted.intercept_.astype(np.float32)
    if not centre:
        return QueryMap(matrix, offset, penalty=penalty)
    moved = images if matrix is None else images @ matrix + offset
    return QueryMap(matrix, offset, moved.mean(axis=0), texts.mean(axis=0), penalty)


def _penalty(
    images: np.ndarray,
    texts: np.ndarray,
    group: np.ndarray,
    seed: int,
    penalties: Sequence[float],
) -> float:
    fit, held_out = next(
        GroupShuffleSplit(1, test_size=0.1, random_state=seed).split(images, groups=group)
    )

    def score(penalty: float) -> float:
        model = Ridge(penalty).fit(images[fit], texts[fit])
        return avg_cos(texts[held_out], model.predict(images[held_out]).astype(np.float32))

    return max(penalties, key=score)


def hubness(
    keys: np.ndarray, bank: np.ndarray, engine: str = "auto", *, depth: int = HUB_DEPTH
) -> np.ndarray:
    """(n,) float32: how near each key (n, D) is to images in general, its mean similarity to the nearest `depth` of a bank."""
    return knn.search(bank, keys, min(depth, len(bank)), engine)[0].mean(axis=1)


def reorder(
    similarity: np.ndarray, index: np.ndarray, change: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The same candidates with `change` (q, k) added to their similarity, again best first, ties by index."""
    return knn.merge(
        knn.nothing(len(index)), ((similarity + change).astype(np.float32), index), index.shape[1]
    )


def rerank(
    similarity: np.ndarray, index: np.ndarray, second: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """The candidates by `(1 - share)` of their similarity plus `share` of a second CLIP's, (q, k), each at its own spread.

    Two CLIPs' cosines have different ranges, so the second's are first brought to the mean and spread of the first's.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share} is not within 0..1")
    scaled = (second - second.mean()) / max(
        float(second.std()), 1e-12
    ) * similarity.std() + similarity.mean()
    return reorder(similarity, index, share * (scaled - similarity))
