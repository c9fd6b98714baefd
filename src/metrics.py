"""The score of the task (equation 8), and unit length, which every model and the blend need."""

import numpy as np


def l2_normalize(x: np.ndarray) -> np.ndarray:
    """Rows of `x` at length 1, (n, d) float32, in order.

    ValueError counts rows that are zero or not finite.
    """
    if x.ndim != 2:
        raise ValueError(f"unit length needs (n, d) rows, got shape {x.shape}")

    x = np.ascontiguousarray(x, dtype=np.float32)

    # in float64: the square of a small float32 would be zero
    length = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
    _refuse(~np.isfinite(length), "hold NaN or infinity")
    _refuse(length == 0, "are zero and have no direction")

    return (x / length[:, None]).astype(np.float32)


def cosines(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(n,) float32: the cosine of each row of `truth` with the same row of `prediction`.

    Rows may have any length but zero; ValueError names two shapes that differ.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has shape {truth.shape}, prediction {prediction.shape}")
    if len(truth) == 0:
        raise ValueError("no rows to score")

    return np.einsum("nd,nd->n", l2_normalize(truth), l2_normalize(prediction))


def avg_cos(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Equation 8: the mean over rows of the cosine of truth and prediction."""
    return float(cosines(truth, prediction).mean(dtype=np.float64))


def mean_prompt(truth: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """(n, d) float32 unit rows: for each row the mean of the other folds' `truth` (n, d), blind to
    the image.

    What every model must beat. ValueError when fewer than two of `fold` (n,) differ.
    """
    if len(fold) != len(truth):
        raise ValueError(f"{len(fold)} folds for {len(truth)} rows")
    folds, fold_number = np.unique(fold, return_inverse=True)
    if len(folds) < 2:
        raise ValueError(
            f"the mean of the other folds needs at least 2 folds, got {folds.tolist()}"
        )

    # one mean a fold, of all rows outside it
    means = np.stack([truth[fold != f].mean(axis=0) for f in folds])
    return l2_normalize(means)[fold_number]


def _refuse(bad: np.ndarray, why: str) -> None:
    if bad.any():
        raise ValueError(f"{bad.sum()} of {len(bad)} rows {why}, e.g. row {np.flatnonzero(bad)[0]}")
