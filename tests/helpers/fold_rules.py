"""What a rule for folds is judged by: the rule that was used before, and a plain regression."""

import numpy as np

from src.dedup import similarity
from src.metrics import l2_normalize


def one_threshold_for_all(scan: similarity.PairScan, max_share: float) -> tuple[np.ndarray, float]:
    """The groups of the rule used before, and its threshold.

    The threshold rises for every row, and removed rows count.
    """
    itself = np.arange(scan.forest.n)
    for level in scan.forest.levels:
        label = scan.forest.components(level, (itself, scan.keeper))
        if np.bincount(label).max() <= max_share * len(label):
            break
    return label, level


def nearest_five(queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A simple regression by neighbors: the weighted mean of the five nearest rows' values."""
    similarities = queries @ keys.T
    nearest = np.argpartition(-similarities, 5, axis=1)[:, :5]
    weights = np.take_along_axis(similarities, nearest, axis=1) ** 4
    return l2_normalize((values[nearest] * weights[..., None]).sum(axis=1))
