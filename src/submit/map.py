"""A map of a result: two coordinates for each vector, so that like images lie side by side."""

import importlib.util

import numpy as np

from src.errors import UserError
from src.knn import resolve_engine

METHODS = ("auto", "umap", "pca")
BLOCK = 100_000  # rows that are projected at a time
UMAP_NEIGHBORS = 15


def coordinates(x: np.ndarray, method: str = "auto", *, seed: int = 0) -> tuple[np.ndarray, str]:
    """(n, 2) float32 coordinates of the unit rows `x` (n, d), and what made them.

    "auto" takes UMAP by cuML on a GPU, by umap-learn where it is installed, and PCA otherwise.
    UserError when "umap" is asked for and neither is there.
    """
    if method not in METHODS:
        raise UserError(f"map {method!r} is not one of {', '.join(METHODS)}")
    few = len(x) <= UMAP_NEIGHBORS
    if method == "pca" or (method == "auto" and few):
        return principal_components(x), "PCA"

    options: dict[str, int] = {}
    # a GPU where there is one, else the package for a CPU, else what needs neither
    if resolve_engine("auto")[0] == "cuml":
        from cuml.manifold import UMAP

        name = "UMAP by cuML"
    elif importlib.util.find_spec("umap") is not None:
        from umap import UMAP

        name = "UMAP by umap-learn"
        options = {"n_jobs": 1}  # a seed allows no more
    elif method == "auto":
        return principal_components(x), "PCA"
    else:
        raise UserError("map 'umap' needs cuML on a GPU, or the package umap-learn; 'pca' does not")

    neighbors = min(UMAP_NEIGHBORS, len(x) - 1)
    reducer = UMAP(n_neighbors=neighbors, metric="cosine", random_state=seed, **options)
    return np.asarray(reducer.fit_transform(np.asarray(x)), np.float32), name


def principal_components(x: np.ndarray) -> np.ndarray:
    """(n, 2) float32: the two directions in which the rows `x` (n, d) differ most, in blocks.

    Each direction's sign is fixed by its largest weight, so the map is the same on every machine.
    """
    blocks = [slice(start, start + BLOCK) for start in range(0, len(x), BLOCK)]
    # two passes in float64: the covariance of a million rows in one would lose digits
    mean = sum(x[block].sum(axis=0, dtype=np.float64) for block in blocks) / len(x)
    covariance = np.zeros((x.shape[1], x.shape[1]))
    for block in blocks:
        centered = x[block] - mean
        covariance += centered.T @ centered

    # eigenvalues come in rising order: the last two directions vary most
    _, directions = np.linalg.eigh(covariance)
    first_two = directions[:, [-1, -2]]
    largest = np.abs(first_two).argmax(axis=0)
    first_two *= np.sign(first_two[largest, [0, 1]])
    return np.concatenate([(x[block] - mean) @ first_two for block in blocks]).astype(np.float32)
