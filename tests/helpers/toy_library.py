"""Forty prompts with values of six numbers, keys of eight, and images near the keys."""

import numpy as np

from src.knn import Neighbors
from src.metrics import l2_normalize
from src.model_b import datastore
from src.model_b.routes import Library, Route

VALUES = l2_normalize(np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32))
take = VALUES.__getitem__

ROUTES = [
    Route("text"),
    Route("mapped", linear=True, center=True),
    Route("hubs", hubs=0.5),
    Route("image", keys="image"),
]


def library(n_train=30):
    """Keys and values of 40 prompts in two shards, in another order than the run's; images near
    their prompts' keys.
    """
    draw = np.random.default_rng(3)
    keys = l2_normalize(draw.standard_normal((40, 8)).astype(np.float32))
    place = draw.permutation(40)
    shards = [np.split(x[np.argsort(place)], [25]) for x in (keys, VALUES)]
    images = l2_normalize(
        keys[:n_train] + 0.3 * draw.standard_normal((n_train, 8)).astype(np.float32) + 1
    )
    return Library(
        datastore.ColumnView(shards[0], place), datastore.ColumnView(shards[1], place), images
    ), keys


def lists(q: int, k: int, seed: int = 1) -> Neighbors:
    """Random lists of `k` neighbors for `q` queries, best first."""
    draw = np.random.default_rng(seed)
    similarity = -np.sort(-draw.uniform(0.1, 0.9, (q, k)), axis=1).astype(np.float32)
    return similarity, np.stack([draw.permutation(len(VALUES))[:k] for _ in range(q)])
