"""Model B: a picture's CLIP embedding looks up prompts, and the sentence embeddings of the nearest are averaged by distance.

A `Route` is one way to look up: by the prompts' CLIP text embeddings (zero-shot, the paper), or by the embeddings of the
training pictures that belong to them. Each route has its own K and weights; their predictions are summed by shares.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl

from src import artifacts, bridge, datastore, knn, paths
from src.bridge import Bridge
from src.datastore import Selection
from src.metrics import unit

KINDS = ("euclidean", "cosine")
KEYS = ("text", "image")
TEXT_ONLY = -1  # the fold of a store row that has no picture

Take = Callable[[np.ndarray], np.ndarray]  # rows of the store, any shape -> their values (..., d)
Lists = tuple[np.ndarray, np.ndarray]  # similarity, index: (q, k) each, as knn.search gives them


# --- equations 4 and 5 ---


def distance(similarity: np.ndarray, kind: str = "euclidean") -> np.ndarray:
    """Distance of unit vectors from their cosine: sqrt(max(2 - 2 s, 0)), or 1 - s; float64, in the shape of `similarity`."""
    if kind not in KINDS:
        raise ValueError(f"distance {kind!r} is not one of {KINDS}")
    apart = np.maximum(1 - similarity.astype(np.float64), 0)
    return np.sqrt(2 * apart) if kind == "euclidean" else apart


def weights(
    distance: np.ndarray, dim: float, delta: float, coef: float, *, inside: bool = False
) -> np.ndarray:
    """Equation 4, in the shape of `distance`: coef / (d^dim + delta), or with delta `inside` the exponent, as it is printed.

    Outside, delta bounds the weight of d = 0 at coef / delta. Inside, coef / d^(dim + delta), it does not: d = 0 weighs
    infinitely, and `fuse` takes the limit. ValueError when delta or coef is not positive, or a distance is negative or NaN.
    """
    if not (delta > 0 and coef > 0 and dim >= 0):
        raise ValueError(
            f"dim = {dim}, delta = {delta}, coef = {coef}: delta and coef must be positive, dim at least 0"
        )
    if not (distance >= 0).all():
        raise ValueError(
            f"{(~(distance >= 0)).sum()} of {distance.size} distances are negative or NaN"
        )
    with np.errstate(divide="ignore", over="ignore"):
        return coef / distance ** (dim + delta) if inside else coef / (distance**dim + delta)


@dataclass(frozen=True)
class Weighting:
    """What a neighbour weighs: equation 4 with all its constants, or, with `tau`, softmax(s / tau)."""

    dim: float = 6
    delta: float = 1e-4
    coef: float = 1e-3
    kind: str = "euclidean"
    inside: bool = False  # delta inside the exponent
    tau: float | None = None  # temperature; the other constants then have no effect

    def __call__(self, similarity: np.ndarray) -> np.ndarray:
        """(q, k) float64 weights of lists that stand best first; softmax up to a factor of each row."""
        if self.tau is None:
            return weights(
                distance(similarity, self.kind), self.dim, self.delta, self.coef, inside=self.inside
            )
        if not self.tau > 0:
            raise ValueError(f"tau = {self.tau} must be positive")
        similarity = similarity.astype(np.float64)
        return np.exp((similarity - similarity[:, :1]) / self.tau)

    def __str__(self) -> str:
        return f"dim {self.dim:g}" if self.tau is None else f"tau {self.tau:g}"


PRESETS = {  # K and the weights: as the paper prints equation 4, and as the notebook that it comes from has it
    "paper": (100, Weighting(dim=6, delta=1e-4, coef=1e-3, kind="euclidean", inside=True)),
    "public": (100, Weighting(dim=6, delta=1e-4, coef=1e-3, kind="cosine")),
}


def fuse(weight: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Equation 5, then unit length: mean over k of weight (q, k) times values (q, k, d), as (q, d) float32 unit rows.

    Where weights are infinite their rows share everything equally: the limit of distances that go to 0 together.
    """
    if values.ndim != 3 or weight.shape != values.shape[:2]:
        raise ValueError(
            f"weights of shape {weight.shape} do not fit values of shape {values.shape}"
        )
    return unit((_limit(weight).astype(np.float32)[:, None] @ values)[:, 0] / weight.shape[1])


def _limit(weight: np.ndarray) -> np.ndarray:
    """Weights with each row's largest at 1; a row with infinite ones keeps these alone."""
    infinite = np.isinf(weight)
    exact = infinite.any(axis=1, keepdims=True)
    finite = np.where(infinite, 0, weight)
    return np.where(exact, infinite, finite / np.where(exact, 1, finite.max(axis=1, keepdims=True)))


def fuse_neighbours(
    similarity: np.ndarray,
    index: np.ndarray,
    take: Take,
    weighting: Weighting,
    *,
    k: int,
    rows: int = 256,
) -> np.ndarray:
    """Prediction (q, d) float32 unit rows from the first `k` neighbours; values are taken for `rows` queries at a time."""
    _check_lists(similarity, index, k)
    blocks = (slice(start, start + rows) for start in range(0, max(1, len(index)), rows))
    return np.concatenate(
        [fuse(weighting(similarity[block, :k]), take(index[block, :k])) for block in blocks]
    )


def _check_lists(similarity: np.ndarray, index: np.ndarray, k: int) -> None:
    if similarity.shape != index.shape or similarity.ndim != 2:
        raise ValueError(
            f"similarity has shape {similarity.shape}, index {index.shape}; both must be (q, K)"
        )
    if not 1 <= k <= index.shape[1]:
        raise ValueError(f"k = {k} is not within 1..{index.shape[1]}, the neighbours searched")


# --- K and the weights, out-of-fold ---


@dataclass(frozen=True)
class Tuned:
    """What `tune` found: the whole grid, the choice over all rows, the choice for each fold, the cross-fitted rows."""

    grid: pl.DataFrame  # k, weighting, avg_cos over all rows
    k: int
    weighting: Weighting
    choices: pl.DataFrame  # fold, k, weighting: chosen on the other folds
    prediction: np.ndarray  # (q, d) float32 unit rows; each fold by its own choice
    final: np.ndarray  # (q, d) float32 unit rows; all by the choice over all rows


def tune(
    similarity: np.ndarray,
    index: np.ndarray,
    take: Take,
    truth: np.ndarray,
    fold: np.ndarray,
    *,
    k_grid: Sequence[int],
    weightings: Sequence[Weighting],
) -> Tuned:
    """Score every (k, weighting) from one search, and predict each fold with the pair that is best on the other folds.

    `truth` (q, d) unit rows and `fold` (q,) int64 belong to the queries. At least two folds are needed.
    """
    folds = np.unique(fold)
    if len(folds) < 2:
        raise ValueError(
            f"choosing on the other folds needs at least 2 folds, got {folds.tolist()}"
        )
    for k in k_grid:
        _check_lists(similarity, index, k)
    pairs = list(product(sorted(k_grid), weightings))
    score = _grid_cosines(similarity, index, take, truth, sorted(k_grid), weightings)

    def predict(rows: np.ndarray, pair: tuple[int, Weighting]) -> np.ndarray:
        return fuse_neighbours(similarity[rows], index[rows], take, pair[1], k=pair[0])

    best, prediction, choices = pairs[int(score.mean(axis=0).argmax())], np.empty_like(truth), []
    for f in folds:
        pair = pairs[int(score[fold != f].mean(axis=0).argmax())]
        prediction[fold == f] = predict(fold == f, pair)
        choices.append((int(f), pair[0], str(pair[1])))
    same = all((k, name) == (best[0], str(best[1])) for _, k, name in choices)
    return Tuned(
        grid=pl.DataFrame(
            {
                "k": [k for k, _ in pairs],
                "weighting": [str(w) for _, w in pairs],
                "avg_cos": score.mean(axis=0),
            }
        ),
        k=best[0],
        weighting=best[1],
        choices=pl.DataFrame(
            choices, schema={"fold": pl.Int64, "k": pl.Int64, "weighting": pl.String}, orient="row"
        ),
        prediction=prediction,
        final=prediction if same else predict(np.ones(len(fold), bool), best),
    )


def _grid_cosines(similarity, index, take, truth, k_grid, weightings, rows=256) -> np.ndarray:
    """(q, len(k_grid) * len(weightings)) float64 cosines with the truth, k the slower axis; each neighbour is summed once."""
    score = np.empty((len(index), len(k_grid), len(weightings)))
    for start in range(0, len(index), rows):
        block = slice(start, start + rows)
        near = take(index[block, : k_grid[-1]])
        weight = np.stack(
            [_limit(w(similarity[block, : k_grid[-1]])) for w in weightings], axis=1
        ).astype(np.float32)
        fused = np.zeros((len(near), len(weightings), near.shape[2]), np.float32)
        for i, (before, k) in enumerate(zip([0, *k_grid], k_grid, strict=False)):
            fused += weight[:, :, before:k] @ near[:, before:k]
            along = np.einsum("qjd,qd->qj", fused, truth[block])
            score[block, i] = along / np.linalg.norm(fused, axis=2)
    return score.reshape(len(index), -1)


def at_edge(tuned: Tuned, k_grid: Sequence[int], weightings: Sequence[Weighting]) -> list[str]:
    """In words, which choices over all rows lie at an end of their grid, where a wider one might do better."""
    kind = (
        [w.tau for w in weightings if w.tau is not None]
        if tuned.weighting.tau is not None
        else [w.dim for w in weightings if w.tau is None]
    )
    chosen = tuned.weighting.dim if tuned.weighting.tau is None else tuned.weighting.tau
    found = [f"K = {tuned.k}"] if len(k_grid) > 1 and tuned.k in (min(k_grid), max(k_grid)) else []
    return found + (
        [str(tuned.weighting)] if len(kind) > 1 and chosen in (min(kind), max(kind)) else []
    )


# --- what a query may see ---


def allowed(store_fold: np.ndarray, conflicts: np.ndarray, fold: int) -> np.ndarray:
    """(n_store,) bool: the rows that a query of `fold` may see. The one place where a row is kept from its own kind.

    `store_fold` (n_store,) is TEXT_ONLY for a prompt without a picture; `conflicts` is (n_store, n_folds) bool.
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

    The first rows are the training pairs; `pictures` (n_train, D) float32 are their embeddings, also the queries out-of-fold.
    """

    texts: Selection
    values: Selection
    pictures: np.ndarray


def store_conflicts(
    library: Library, train: np.ndarray, fold: np.ndarray, threshold: float, *, rows: int = 2048
) -> np.ndarray:
    """`text_conflicts` of the whole store (n_store, n_folds), read `rows` at a time; a training row has its fold instead."""
    n_train, n = len(library.pictures), len(library.values.place)
    conflicts = np.zeros((n, int(fold.max()) + 1), bool)
    for start in range(n_train, n, rows):
        block = np.arange(start, min(start + rows, n))
        conflicts[block] = text_conflicts(library.values.take(block), train, fold, threshold)
    return conflicts


@dataclass(frozen=True)
class Route:
    """One way from a picture to prompts. `linear`, `centre`: see `bridge.learn`; `hubs`: the part of `bridge.hubness` taken off."""

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
class Fitted:
    """A route with what it learnt from the training rows `rows` (n,) int64."""

    route: Route
    bridge: Bridge
    rows: np.ndarray

    def search(
        self,
        library: Library,
        pictures: np.ndarray,
        k: int,
        engine: str,
        *,
        seen: np.ndarray,
        cluster: object | None = None,
    ) -> Lists:
        """`pictures` (q, D) look up the `k` nearest of the store's rows `seen` (n,) bool: as `knn.search`, indices of the store."""
        queries, centre = self.bridge(pictures), self.bridge.key_centre
        if self.route.keys == "image":
            keys = self.bridge(library.pictures)
            return knn.search(keys, queries, k, engine, rows=seen[: len(keys)], cluster=cluster)
        similarity, index = library.texts.search(
            queries, k, engine, seen=seen, cluster=cluster, centre=centre
        )
        if not self.route.hubs or not len(index):
            return similarity, index
        candidates, where = np.unique(index, return_inverse=True)
        hub = self._hubness(library, candidates, engine)
        return bridge.reorder(similarity, index, -self.route.hubs * hub[where.reshape(index.shape)])

    def _hubness(
        self, library: Library, candidates: np.ndarray, engine: str, *, rows: int = 8192
    ) -> np.ndarray:
        """`bridge.hubness` (n,) of the store's rows `candidates`, read `rows` at a time: they may be nearly all of the store."""
        bank, centre, found = self.bridge(library.pictures[self.rows]), self.bridge.key_centre, []
        for start in range(0, len(candidates), rows):
            keys = library.texts.take(candidates[start : start + rows])
            found.append(
                bridge.hubness(keys if centre is None else unit(keys - centre), bank, engine)
            )
        return np.concatenate(found)


def fit_route(
    route: Route, library: Library, rows: np.ndarray, group: np.ndarray, *, seed: int = 0
) -> Fitted:
    """Learn what `route` needs from the training rows `rows` (n,) int64, of the groups `group` (n_train,)."""
    if not (route.linear or route.centre):
        return Fitted(route, Bridge(), rows)
    pictures, texts = library.pictures[rows], library.texts.take(rows)
    return Fitted(
        route,
        bridge.learn(
            pictures, texts, group[rows], linear=route.linear, centre=route.centre, seed=seed
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
) -> Lists:
    """Every training picture looks up what its fold is `allowed`, by a route learnt from the other folds' rows.

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
            library, library.pictures[mine], k, engine, seen=seen, cluster=cluster
        )
    return similarity, index


# --- the model ---


@dataclass(frozen=True)
class Part:
    """A route as it predicts: what it learnt from all training rows, its K and weights, and its share of the sum."""

    fitted: Fitted
    k: int
    weighting: Weighting
    share: float


@dataclass(frozen=True)
class ModelB:
    """Everything that predicts new pictures. `store` has id, prompt, source; every index points into it."""

    store: pl.DataFrame
    libraries: dict[str, Library]  # by the name of the CLIP
    parts: tuple[Part, ...]
    engine: str = "auto"
    cluster: object | None = None
    depth: int = 100  # neighbours returned

    def predict(
        self, queries: np.ndarray | dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """CLIP embeddings of pictures (q, D) -> prediction (q, 384) float32 unit rows; `similarity`, `index` (q, depth).

        The neighbours are those of all routes together, the one with the most weight first; `similarity` is the cosine of the
        picture's and the prompt's CLIP embeddings. A dict gives the embeddings by more than one CLIP.
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
            found.append((lists[1], part_of_all(part.weighting(lists[0]), part.share)))
        index, weight = heaviest([i for i, _ in found], [w for _, w in found], self.depth)
        name, pictures = next(iter(by_clip.items()))
        similarity = np.einsum(
            "qd,qkd->qk", pictures, self.libraries[name].texts.take(index)
        ).astype(np.float32)
        return unit(total), similarity, index, weight

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
    lists: Sequence[Lists], tuned: Sequence[Tuned], shares: Sequence[float], depth: int
) -> tuple[np.ndarray, np.ndarray]:
    """The neighbours of several routes as one list: `index` and `weight` (q, depth), the part of all weights, heaviest first."""
    weight = [
        part_of_all(t.weighting(similarity[:, : t.k]), share)
        for (similarity, _), t, share in zip(lists, tuned, shares, strict=True)
    ]
    return heaviest(
        [index[:, : t.k] for (_, index), t in zip(lists, tuned, strict=True)], weight, depth
    )


def part_of_all(weight: np.ndarray, share: float) -> np.ndarray:
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
        fitted = Fitted(
            Route(**part["route"]),
            Bridge(**{k: v for k, v in learnt.items() if k != "rows"}, penalty=part["penalty"]),
            learnt["rows"],
        )
        parts.append(Part(fitted, part["k"], Weighting(**part["weighting"]), part["share"]))
    names = list(dict.fromkeys(part.fitted.route.clip for part in parts))
    values = Selection(kept.column(datastore.VALUES), place)
    libraries = {
        name: Library(
            Selection(kept.column(name), place),
            values,
            artifacts.load_embeddings(output / paths.STORE_PICTURES.format(clip=name))[1],
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
            f"{len(outside)} precomputed shards of Model B's store lie outside {paths.shown(output)}: {outside[:3]}"
        )
    patterns = (paths.ROUTE_B.format(n="*"), paths.STORE_PICTURES.format(clip="*") + ".*")
    found = [file for pattern in patterns for file in sorted(output.glob(pattern))]
    return [output / paths.STORE, output / paths.CHOICE_B, output / paths.STORE_SHARDS, *found]


# --- words ---


def neighbours(
    queries: Sequence[str],
    store: pl.DataFrame,
    similarity: np.ndarray,
    index: np.ndarray,
    weight: np.ndarray,
) -> pl.DataFrame:
    """Lists as a table `query, rank, neighbour, prompt, similarity, weight`; rank from 0."""
    flat, k = index.ravel(), index.shape[1]
    return pl.DataFrame(
        {
            "query": np.repeat(np.asarray(queries, dtype=object), k).tolist(),
            "rank": np.tile(np.arange(k), len(index)),
            "neighbour": store["id"].gather(flat),
            "prompt": store["prompt"].gather(flat),
            "similarity": similarity.ravel(),
            "weight": weight.ravel(),
        }
    )


def nearest_allowed(
    truth: np.ndarray,
    values: Selection,
    fold: np.ndarray,
    seen: dict[int, np.ndarray],
    engine: str = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """For each query the allowed prompt that is nearest to its truth: cosine (q,) float32 and row (q,) int64 of the store."""
    cosine, row = np.empty(len(truth), np.float32), np.empty(len(truth), np.int64)
    for f, mask in seen.items():
        similarity, index = values.search(truth[fold == f], 1, engine, seen=mask)
        cosine[fold == f], row[fold == f] = similarity[:, 0], index[:, 0]
    return cosine, row


def reasons(
    lists: Lists,
    take: Take,
    truth: np.ndarray,
    best_value: np.ndarray,
    best_row: np.ndarray,
    rows: Sequence[int],
    *,
    near: int = 10,
) -> list[str]:
    """A sentence on why each of the queries `rows` went wrong, from its list of neighbours.

    `best_row`, `best_value` (q,): see `nearest_allowed`. In order: the store holds nothing near the truth; the first neighbour
    is a hub; what is near is ranked low; or it is outvoted.
    """
    index, typical = lists[1], float(np.median(best_value))
    counts = np.bincount(index[:, :near].ravel(), minlength=int(best_row.max()) + 1)
    usual, said = np.median(counts[counts > 0]), []
    for r in rows:
        rank = np.flatnonzero(index[r] == best_row[r])
        place = f"number {rank[0] + 1}" if len(rank) else f"not among the first {index.shape[1]}"
        first, best = index[r, 0], f"the nearest allowed prompt ({best_value[r]:.2f})"
        if best_value[r] < typical - 0.05:
            said.append(f"nothing near in the store: {best} is far, {typical:.2f} is usual")
        elif counts[first] > 5 * usual and first != best_row[r]:
            said.append(
                f"a hub: the first neighbour is among the first {near} of {counts[first]} queries, {usual:.0f} is usual"
            )
        elif not len(rank) or rank[0] >= near:
            reached = float(take(index[r, :1])[0] @ truth[r])
            said.append(f"ranked low: {best} is {place}, the first has {reached:.2f}")
        else:
            said.append(f"outvoted: {best} is {place}, the others pull away")
    return said
