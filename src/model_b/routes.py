"""Model B: an image's CLIP embedding looks up prompts, and the sentence embeddings of the nearest are averaged by distance.

A `Route` is one way to look up: by the prompts' CLIP text embeddings (zero-shot, the paper), or by the embeddings of the
training images that belong to them. Each route has its own K and weights; their predictions are summed by shares.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from src import artifacts, knn, paths
from src.metrics import l2_normalize
from src.model_b import datastore, query_map
from src.model_b.datastore import Selection
from src.model_b.query_map import QueryMap
from src.model_b.weighting import Neighbors, TunedWeights, Weighting, _limit, fuse_neighbours

KEYS = ("text", "image")
TEXT_ONLY = -1  # the fold of a store row that has no image


# --- what a query may see ---


def allowed(store_fold: np.ndarray, conflicts: np.ndarray, fold: int) -> np.ndarray:
    """(n_store,) bool: the rows that a query of `fold` may see. The one place where a row is kept from its own kind.

    `store_fold` (n_store,) is TEXT_ONLY for a prompt without an image; `conflicts` is (n_store, n_folds) bool.
    Not seen: rows of the fold itself, and so itself, its group and its duplicates (a group lies in one fold); and rows that
    conflict with the fold (for text-only prompts: `text_conflicts`).
    """
    if conflicts.shape[0] != len(store_fold) or not 0 <= fold < conflicts.shape[1]:
        raise ValueError(
            f"fold {fold}, {len(store_fold)} store rows, conflicts of shape {conflicts.shape}"
        )
    return (store_fold != fold) & ~conflicts[:, fold]


def text_conflicts(
    text: np.ndarray, train: np.ndarray, fold: np.ndarray, threshold: float
) -> np.ndarray:
    """(n_text, n_folds) bool: the text-only prompt is above `threshold` in cosine with some training row of that fold.

    `text` and `train` are unit sentence embeddings; `train` holds every readable row, kept by the filters or not.
    """
    if len(fold) != len(train):
        raise ValueError(f"{len(fold)} folds for {len(train)} training rows")
    conflicts = np.zeros((len(text), int(fold.max()) + 1), bool)
    for f in np.unique(fold):
        conflicts[:, f] = (text @ train[fold == f].T).max(axis=1) > threshold
    return conflicts


# --- routes ---


@dataclass(frozen=True)
class Library:
    """What can be looked up, for one CLIP: row i of `texts`, `values` and of the run's store is the same prompt.

    The first rows are the training pairs; `images` (n_train, D) float32 are their embeddings, also the queries out-of-fold.
    """

    texts: Selection
    values: Selection
    images: np.ndarray


def store_conflicts(
    library: Library, train: np.ndarray, fold: np.ndarray, threshold: float, *, rows: int = 2048
) -> np.ndarray:
    """`text_conflicts` of the whole store (n_store, n_folds), read `rows` at a time; a training row has its fold instead."""
    n_train, n = len(library.images), len(library.values.place)
    conflicts = np.zeros((n, int(fold.max()) + 1), bool)
    for start in range(n_train, n, rows):
        block = np.arange(start, min(start + rows, n))
        conflicts[block] = text_conflicts(library.values.take(block), train, fold, threshold)
    return conflicts


@dataclass(frozen=True)
class Route:
    """One way from an image to prompts. `linear`, `centre`: see `bridge.learn`; `hubs`: the part of `bridge.hubness` taken off."""

    name: str
    keys: str = "text"
    linear: bool = False
    centre: bool = False
    hubs: float = 0.0
    clip: str = "clip"

    def __post_init__(self):
        if self.keys not in KEYS:
            raise ValueError(f"route {self.name}: keys {self.keys!r} is not one of {KEYS}")
        if (
            not isinstance(self.name, str)
            or type(self.linear) is not bool
            or type(self.centre) is not bool
        ):
            raise ValueError(
                f"route {self.name!r}: its name must be text, linear and centre true or false"
            )
        if type(self.hubs) not in (int, float) or not 0 <= self.hubs < np.inf:
            raise ValueError(f"route {self.name}: hubs must be a number from 0, got {self.hubs!r}")


@dataclass(frozen=True)
class FittedRoute:
    """A route with what it learnt from the training rows `rows` (n,) int64."""

    route: Route
    bridge: QueryMap
    rows: np.ndarray

    def search(
        self,
        library: Library,
        images: np.ndarray,
        k: int,
        engine: str,
        *,
        seen: np.ndarray,
        cluster: object | None = None,
    ) -> Neighbors:
        """`images` (q, D) look up the `k` nearest of the store's rows `seen` (n,) bool: as `knn.search`, indices of the store."""
        queries, centre = self.bridge(images), self.bridge.key_centre
        if self.route.keys == "image":
            keys = self.bridge(library.images)
            return knn.search(keys, queries, k, engine, rows=seen[: len(keys)], cluster=cluster)
        similarity, index = library.texts.search(
            queries, k, engine, seen=seen, cluster=cluster, centre=centre
        )
        if not self.route.hubs or not len(index):
            return similarity, index
        candidates, where = np.unique(index, return_inverse=True)
        hub = self._hubness(library, candidates, engine)
        return query_map.reorder(
            similarity, index, -self.route.hubs * hub[where.reshape(index.shape)]
        )

    def _hubness(
        self, library: Library, candidates: np.ndarray, engine: str, *, rows: int = 8192
    ) -> np.ndarray:
        """`bridge.hubness` (n,) of the store's rows `candidates`, read `rows` at a time: they may be nearly all of the store."""
        bank, centre, found = self.bridge(library.images[self.rows]), self.bridge.key_centre, []
        for start in range(0, len(candidates), rows):
            keys = library.texts.take(candidates[start : start + rows])
            found.append(
                query_map.hubness(
                    keys if centre is None else l2_normalize(keys - centre), bank, engine
                )
            )
        return np.concatenate(found)


def fit_route(
    route: Route, library: Library, rows: np.ndarray, group: np.ndarray, *, seed: int = 0
) -> FittedRoute:
    """Learn what `route` needs from the training rows `rows` (n,) int64, of the groups `group` (n_train,)."""
    if not (route.linear or route.centre):
        return FittedRoute(route, QueryMap(), rows)
    images, texts = library.images[rows], library.texts.take(rows)
    return FittedRoute(
        route,
        query_map.learn(
            images, texts, group[rows], linear=route.linear, centre=route.centre, seed=seed
        ),
        rows,
    )


def search_out_of_fold(
    route: Route,
    library: Library,
    fold: np.ndarray,
    group: np.ndarray,
    conflicts: np.ndarray,
    k: int,
    engine: str = "auto",
    *,
    seed: int = 0,
    cluster: object | None = None,
) -> Neighbors:
    """Every training image looks up what its fold is `allowed`, by a route learnt from the other folds' rows.

    `fold`, `group` (n_train,), `conflicts` (n_store, n_folds). ValueError when a fold is allowed fewer than k rows.
    """
    store_fold = np.concatenate([fold, np.full(len(conflicts) - len(fold), TEXT_ONLY)])
    similarity, index = np.empty((len(fold), k), np.float32), np.empty((len(fold), k), np.int64)
    for f in np.unique(fold):
        seen = allowed(store_fold, conflicts, int(f))
        n_seen = int(seen[: len(fold)].sum() if route.keys == "image" else seen.sum())
        if n_seen < k:
            raise ValueError(
                f"fold {f} may see {n_seen} rows of the store by {route.keys} keys, fewer than k = {k}"
            )
        fitted = fit_route(route, library, np.flatnonzero(fold != f), group, seed=seed)
        mine = fold == f
        similarity[mine], index[mine] = fitted.search(
            library, library.images[mine], k, engine, seen=seen, cluster=cluster
        )
    return similarity, index


# --- the model ---


@dataclass(frozen=True)
class WeightedRoute:
    """A route as it predicts: what it learnt from all training rows, its K and weights, and its share of the sum."""

    fitted: FittedRoute
    k: int
    weighting: Weighting
    share: float


@dataclass(frozen=True)
class ModelB:
    """Everything that predicts new images. `store` has id, prompt, source; every index points into it."""

    store: pl.DataFrame
    libraries: dict[str, Library]  # by the name of the CLIP
    parts: tuple[WeightedRoute, ...]
    engine: str = "auto"
    cluster: object | None = None
    depth: int = 100  # neighbours returned

    def predict(
        self, queries: np.ndarray | dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """CLIP embeddings of images (q, D) -> prediction (q, 384) float32 unit rows; `similarity`, `index` (q, depth).

        The neighbours are those of all routes together, the one with the most weight first; `similarity` is the cosine of the
        image's and the prompt's CLIP embeddings. A dict gives the embeddings by more than one CLIP.
        """
        prediction, similarity, index, _ = self.explain(queries)
        return prediction, similarity, index

    def explain(
        self, queries: np.ndarray | dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """As `predict`, and the neighbours' `weight` (q, depth): their part of all weights, so a whole row sums to at most 1."""
        by_clip = queries if isinstance(queries, dict) else {next(iter(self.libraries)): queries}
        missing = {part.fitted.route.clip for part in self.parts} - by_clip.keys()
        if missing:
            raise ValueError(
                f"Model B also looks up by the CLIPs {sorted(missing)}: give embeddings by each, as a dict"
            )
        total, found = 0, []
        for part in self.parts:
            clip, everything = part.fitted.route.clip, np.ones(len(self.store), bool)
            library = self.libraries[clip]
            lists = part.fitted.search(
                library, by_clip[clip], part.k, self.engine, seen=everything, cluster=self.cluster
            )
            total = total + np.float32(part.share) * fuse_neighbours(
                *lists, library.values.take, part.weighting, k=part.k
            )
            found.append((lists[1], share_of_total(part.weighting(lists[0]), part.share)))
        index, weight = heaviest([i for i, _ in found], [w for _, w in found], self.depth)
        name, images = next(iter(by_clip.items()))
        similarity = np.einsum("qd,qkd->qk", images, self.libraries[name].texts.take(index)).astype(
            np.float32
        )
        return l2_normalize(total), similarity, index, weight

    def save(self, output: Path, avg_cos: float) -> None:
        """Write the choice and what the routes learnt; the store's own files are where the notebook put them."""
        choice = {"avg_cos": avg_cos, "parts": []}
        for n, part in enumerate(self.parts):
            learnt = {
                name: x for name, x in vars(part.fitted.bridge).items() if isinstance(x, np.ndarray)
            }
            with artifacts.atomic(output / paths.ROUTE_B.format(n=n)) as temporary:
                np.savez(temporary, rows=part.fitted.rows, **learnt)
            choice["parts"].append(
                {
                    "route": asdict(part.fitted.route),
                    "k": part.k,
                    "weighting": asdict(part.weighting),
                    "share": part.share,
                    "penalty": part.fitted.bridge.penalty,
                }
            )
        artifacts.save_json(output / paths.CHOICE_B, choice)


def heaviest(
    index: Sequence[np.ndarray], weight: Sequence[np.ndarray], depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lists of several routes as one: a prompt's weights summed, the heaviest `depth` first (all of them where there are fewer)."""
    index, weight = np.concatenate(index, axis=1), np.concatenate(weight, axis=1)
    order = np.argsort(index, axis=1, kind="stable")
    index, weight = (
        np.take_along_axis(index, order, axis=1),
        np.take_along_axis(weight, order, axis=1),
    )
    first = np.ones_like(index, bool)
    first[:, 1:] = index[:, 1:] != index[:, :-1]
    label = first.cumsum(axis=1) - 1
    summed = np.zeros_like(weight)
    np.add.at(summed, (np.arange(len(index))[:, None], label), weight)
    names = np.zeros_like(index)
    np.put_along_axis(names, label, index, axis=1)
    depth = min(depth, int(first.sum(axis=1).min(initial=index.shape[1])))
    order = np.lexsort((names, -summed), axis=1)[:, :depth]
    return np.take_along_axis(names, order, axis=1), np.take_along_axis(summed, order, axis=1)


def together(
    lists: Sequence[Neighbors], tuned: Sequence[TunedWeights], shares: Sequence[float], depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """The neighbours of several routes as one list: `index` and `weight` (q, depth), the part of all weights, heaviest first."""
    weight = [
        share_of_total(t.weighting(similarity[:, : t.k]), share)
        for (similarity, _), t, share in zip(lists, tuned, shares, strict=True)
    ]
    return heaviest(
        [index[:, : t.k] for (_, index), t in zip(lists, tuned, strict=True)], weight, depth
    )


def share_of_total(weight: np.ndarray, share: float) -> np.ndarray:
    """Weights (q, k) so that each row sums to `share`."""
    weight = _limit(weight)
    return share * weight / weight.sum(axis=1, keepdims=True)


def load(output: Path, engine: str = "auto", cluster: object | None = None) -> ModelB:
    """Model B as notebook 03 left it in `output`. Raises FileNotFoundError naming the stage when it has not run."""
    store = artifacts.load_table(output / paths.STORE)
    kept = datastore.open_store(output / paths.STORE_SHARDS)
    place = store["row"].to_numpy()
    parts, choice = [], artifacts.load_json(output / paths.CHOICE_B)
    for n, part in enumerate(choice["parts"]):
        with np.load(output / paths.ROUTE_B.format(n=n)) as file:
            learnt = dict(file)
        fitted = FittedRoute(
            Route(**part["route"]),
            QueryMap(**{k: v for k, v in learnt.items() if k != "rows"}, penalty=part["penalty"]),
            learnt["rows"],
        )
        parts.append(
            WeightedRoute(fitted, part["k"], Weighting(**part["weighting"]), part["share"])
        )
    names = list(dict.fromkeys(part.fitted.route.clip for part in parts))
    values = Selection(kept.column(datastore.VALUES), place)
    libraries = {
        name: Library(
            Selection(kept.column(name), place),
            values,
            artifacts.load_embeddings(output / paths.STORE_IMAGES.format(clip=name))[1],
        )
        for name in names
    }
    return ModelB(store.drop("row"), libraries, tuple(parts), engine, cluster)


def files(output: Path) -> list[Path]:
    """What `load` reads below `output`, files and one folder. ValueError when a part of the store lies outside of it."""
    kept = datastore.open_store(output / paths.STORE_SHARDS)
    outside = [shard["name"] for shard in kept.shards if "files" in shard]
    if outside:
        raise ValueError(
            f"{len(outside)} precomputed shards of Model B's store lie outside {paths.display_path(output)}: {outside[:3]}"
        )
    patterns = (paths.ROUTE_B.format(n="*"), paths.STORE_IMAGES.format(clip="*") + ".*")
    found = [file for pattern in patterns for file in sorted(output.glob(pattern))]
    return [output / paths.STORE, output / paths.CHOICE_B, output / paths.STORE_SHARDS, *found]
