"""Routes from an image to prompts: by CLIP text embeddings (the paper), or by training images.

Each `Route` has its own K and weights; `src.model_b.model` sums what they predict.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from src import knn
from src.knn import Neighbors
from src.metrics import l2_normalize
from src.model_b import query_map
from src.model_b.datastore import ColumnView
from src.model_b.isolation import folds_of_run, visible_rows
from src.model_b.query_map import QueryMap

if TYPE_CHECKING:
    from distributed import Client

KEYS = ("text", "image")
RENAMED = {"centre": "center"}  # keys of a route in older parameters files


@dataclass(frozen=True)
class Library:
    """What can be looked up by one CLIP: row i of `texts`, of `values` and of the run is the same
    prompt.

    The first rows are the training pairs; `images` (n_train, D) float32 are their embeddings, also
    the queries out-of-fold.
    """

    texts: ColumnView
    values: ColumnView
    images: np.ndarray


@dataclass(frozen=True)
class Route:
    """One way from an image to prompts.

    `keys` are CLIP's of the prompts ("text") or of the training images ("image"). `linear` and
    `center` are explained at `query_map.learn`; `hubs` is the part of `query_map.hubness` that is
    taken off a similarity.
    """

    name: str
    keys: str = "text"
    linear: bool = False
    center: bool = False
    hubs: float = 0.0
    clip: str = "clip"

    def __post_init__(self):
        if self.keys not in KEYS:
            raise ValueError(f"route {self.name}: keys {self.keys!r} is not one of {KEYS}")
        switches = (self.linear, self.center)
        if not isinstance(self.name, str) or not all(type(switch) is bool for switch in switches):
            raise ValueError(
                f"route {self.name!r}: its name must be text, linear and center true or false"
            )
        if type(self.hubs) not in (int, float) or not 0 <= self.hubs < np.inf:
            raise ValueError(
                f"route {self.name}: hubs must be a number of at least 0, got {self.hubs!r}"
            )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Route":
        """A route as parameters files and `choice.json` spell it. ValueError for a key that it does
        not have.
        """
        name = settings.get("name")
        for old, new in RENAMED.items():
            if old in settings:
                raise ValueError(f"route {name}: {old} was renamed to {new}")

        keys = [field.name for field in fields(cls)]
        unknown = sorted(set(settings) - set(keys))
        if unknown or name is None:
            raise ValueError(f"route {name}: unknown {unknown}; `name` is needed, of {keys}")
        return cls(**settings)

    @classmethod
    def from_parameters(cls, settings: Mapping[str, Any], clips: Sequence[str]) -> "Route":
        """A route of notebook 03's `routes`, where `clip` is a number: 1 for the first of `clips`,
        and 1 by default.
        """
        number = settings.get("clip", 1)
        if type(number) is not int or not 1 <= number <= len(clips):
            raise ValueError(
                f"{dict(settings)} names a CLIP that does not exist: "
                "clip is 1, those of extra_clips follow"
            )
        return cls.from_dict({**settings, "clip": clips[number - 1]})


def ablation_routes(clip: str) -> list[Route]:
    """The corrections of a text route one by one: centering alone, hubs alone, and the linear map
    without hubs.
    """
    return [
        Route("centered text", center=True, clip=clip),
        Route("text less hubs", hubs=1, clip=clip),
        Route("mapped text, hubs left in", linear=True, center=True, clip=clip),
    ]


@dataclass(frozen=True)
class FittedRoute:
    """A route with what it learned from the training rows `rows` (n,) int64."""

    route: Route
    query_map: QueryMap
    rows: np.ndarray

    def search(
        self,
        library: Library,
        images: np.ndarray,
        k: int,
        engine: str,
        *,
        visible: np.ndarray,
        cluster: "str | Client | None" = None,
    ) -> Neighbors:
        """`images` (q, D) look up their `k` nearest among the run's rows `visible` (n,) bool: as
        `knn.search`.
        """
        queries = self.query_map(images)
        if self.route.keys == "image":
            keys = self.query_map(library.images)
            visible = visible[: len(keys)]
            return knn.search(keys, queries, k, engine, rows=visible, cluster=cluster)

        similarity, index = library.texts.search(
            queries,
            k,
            engine,
            visible=visible,
            cluster=cluster,
            center=self.query_map.key_center,
        )
        if not self.route.hubs or not len(index):
            return similarity, index

        # the same candidates, in the order of what is left of their similarity
        candidates, position = np.unique(index, return_inverse=True)
        hubness = self._hubness(library, candidates, engine)[position.reshape(index.shape)]
        lowered = similarity - np.float32(self.route.hubs) * hubness
        return knn.best_first(lowered, index)

    def _hubness(
        self, library: Library, candidates: np.ndarray, engine: str, *, rows: int = 8192
    ) -> np.ndarray:
        """`query_map.hubness` (n,) of the run's rows `candidates`, read `rows` at a time: they may
        be nearly all.
        """
        bank = self.query_map(library.images[self.rows])
        center = self.query_map.key_center
        # blocks of keys: a wide search may name nearly every prompt as a candidate
        parts = []
        for start in range(0, len(candidates), rows):
            keys = library.texts.take(candidates[start : start + rows])
            if center is not None:
                keys = l2_normalize(keys - center)
            parts.append(query_map.hubness(keys, bank, engine))
        return np.concatenate(parts)


def fit_route(
    route: Route, library: Library, rows: np.ndarray, group: np.ndarray, *, seed: int = 0
) -> FittedRoute:
    """Learn what `route` needs from the training rows `rows` (n,) int64, of the groups `group`
    (n_train,).
    """
    if not (route.linear or route.center):
        return FittedRoute(route, QueryMap(), rows)

    learned = query_map.learn(
        library.images[rows],
        library.texts.take(rows),
        group[rows],
        linear=route.linear,
        center=route.center,
        seed=seed,
    )
    return FittedRoute(route, learned, rows)


def search_out_of_fold(
    route: Route,
    library: Library,
    *,
    fold: np.ndarray,
    group: np.ndarray,
    conflicts: np.ndarray,
    k: int,
    engine: str = "auto",
    seed: int = 0,
    cluster: "str | Client | None" = None,
) -> Neighbors:
    """Every training image looks up what is visible to its fold, by a route learned from the other
    folds' rows.

    `fold`, `group` (n_train,), `conflicts` (n, n_folds). ValueError when a fold may see fewer than
    k rows.
    """
    run_fold = folds_of_run(fold, len(conflicts))
    similarity = np.empty((len(fold), k), np.float32)
    index = np.empty((len(fold), k), np.int64)
    # a fold's images see nothing of their own fold, and no route that learned from it
    for f in np.unique(fold):
        in_fold = fold == f
        visible = visible_rows(run_fold, conflicts, int(f))
        keys_visible = visible[: len(fold)] if route.keys == "image" else visible
        n_visible = int(keys_visible.sum())
        if n_visible < k:
            raise ValueError(
                f"fold {f} has {n_visible} visible rows of the datastore by {route.keys} keys, "
                f"fewer than k = {k}"
            )

        fitted = fit_route(route, library, np.flatnonzero(~in_fold), group, seed=seed)
        similarity[in_fold], index[in_fold] = fitted.search(
            library, library.images[in_fold], k, engine, visible=visible, cluster=cluster
        )
    return similarity, index
