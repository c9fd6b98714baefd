"""Model B: the predictions of its routes, summed by shares, and its files."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl

from src import artifacts, paths
from src.knn import Neighbors
from src.metrics import l2_normalize
from src.model_b import datastore
from src.model_b.datastore import ColumnView
from src.model_b.query_map import QueryMap
from src.model_b.routes import FittedRoute, Library, Route, fit_route
from src.model_b.weighting import (
    TunedWeights,
    Weighting,
    fuse_neighbors,
    merge_weighted,
    weight_shares,
)

if TYPE_CHECKING:
    from distributed import Client


class Explained(NamedTuple):
    """Predictions and the neighbors behind them, of all routes together, the one with the most
    weight first.
    """

    prediction: np.ndarray  # (q, 384) float32 unit rows
    similarity: np.ndarray  # (q, depth) cosine of the image's and the prompt's CLIP embeddings
    # (q, depth) int64 rows of the run
    index: np.ndarray  # type: ignore[assignment]  # hides tuple.index, which nothing calls
    weight: np.ndarray  # (q, depth) parts of all weights, so a whole row sums to at most 1


@dataclass(frozen=True)
class WeightedRoute:
    """A route as it predicts: what it learned from all training rows, its K and weights, and its
    share of the sum.
    """

    fitted: FittedRoute
    k: int
    weighting: Weighting
    share: float


@dataclass(frozen=True)
class ModelB:
    """Everything that predicts new images. `prompts` has id, prompt, source; every index points
    into it.
    """

    prompts: pl.DataFrame
    libraries: Mapping[str, Library]  # by the name of the CLIP
    parts: tuple[WeightedRoute, ...]
    engine: str = "auto"
    cluster: "str | Client | None" = None
    depth: int = 100  # neighbors returned

    def predict(
        self, queries: np.ndarray | Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """CLIP embeddings of images (q, D) -> `prediction`, `similarity`, `index` of `Explained`.

        A dict gives the embeddings by more than one CLIP.
        """
        explained = self.explain(queries)
        return explained.prediction, explained.similarity, explained.index

    def explain(self, queries: np.ndarray | Mapping[str, np.ndarray]) -> Explained:
        """As `predict`, with the neighbors' `weight`. ValueError when a CLIP that a route looks up
        by is missing.
        """
        if isinstance(queries, np.ndarray):
            queries = {next(iter(self.libraries)): queries}

        # said before the first search
        missing = {part.fitted.route.clip for part in self.parts} - queries.keys()
        if missing:
            raise ValueError(
                f"Model B also looks up by the CLIPs {sorted(missing)}: "
                "give embeddings by each, as a dict"
            )

        # each route adds its prediction by its share; new images may see every row
        total: np.ndarray = np.zeros((), np.float32)
        indices = []
        weights = []
        all_visible = np.ones(len(self.prompts), bool)
        for part in self.parts:
            clip = part.fitted.route.clip
            library = self.libraries[clip]
            similarity, index = part.fitted.search(
                library,
                queries[clip],
                part.k,
                self.engine,
                visible=all_visible,
                cluster=self.cluster,
            )
            predicted = fuse_neighbors(
                similarity, index, library.values.take, part.weighting, k=part.k
            )
            total = total + np.float32(part.share) * predicted
            indices.append(index)
            weights.append(weight_shares(part.weighting(similarity), part.share))

        index, weight = merge_weighted(indices, weights, self.depth)
        similarity = self._clip_cosines(queries, index)
        return Explained(l2_normalize(total), similarity, index, weight)

    def _clip_cosines(self, queries: Mapping[str, np.ndarray], index: np.ndarray) -> np.ndarray:
        """(q, depth) float32: of the images and their neighbors' prompts, by the first CLIP of
        `queries`.
        """
        clip, images = next(iter(queries.items()))
        keys = self.libraries[clip].texts.take(index)
        return np.einsum("qd,qkd->qk", images, keys).astype(np.float32)

    def save(self, output: Path, avg_cos: float) -> None:
        """Write the choice and what the routes learned; the datastore's files are where the
        notebook put them.
        """
        parts: list[dict[str, Any]] = []
        for n, part in enumerate(self.parts):
            # None leaves a step of the map out, and is left out of the file
            learned = {
                name: array
                for name, array in vars(part.fitted.query_map).items()
                if isinstance(array, np.ndarray)
            }
            arrays: dict[str, Any] = {"rows": part.fitted.rows, **learned}
            with artifacts.atomic(output / paths.ROUTE_B.format(n=n)) as temporary:
                np.savez(temporary, **arrays)
            parts.append(
                {
                    "route": asdict(part.fitted.route),
                    "k": part.k,
                    "weighting": asdict(part.weighting),
                    "share": part.share,
                    "penalty": part.fitted.query_map.penalty,
                }
            )
        artifacts.save_json(output / paths.CHOICE_B, {"avg_cos": avg_cos, "parts": parts})


def fit_model(
    prompts: pl.DataFrame,
    libraries: Mapping[str, Library],
    routes: Sequence[Route],
    tuned: Mapping[str, TunedWeights],
    shares: Mapping[str, float],
    group: np.ndarray,
    *,
    seed: int = 0,
    engine: str = "auto",
    cluster: "str | Client | None" = None,
) -> ModelB:
    """The model of those `routes` that have a share, learned from all training rows; `tuned`,
    `shares` by their names.
    """
    parts = []
    for route in routes:
        if not shares[route.name] > 0:
            continue
        library = libraries[route.clip]
        every_row = np.arange(len(library.images))
        fitted = fit_route(route, library, every_row, group, seed=seed)
        choice = tuned[route.name]
        parts.append(WeightedRoute(fitted, choice.k, choice.weighting, shares[route.name]))

    # a CLIP that no part looks up by need not be loaded for new images
    used_clips = dict.fromkeys(part.fitted.route.clip for part in parts)
    used_libraries = {clip: libraries[clip] for clip in used_clips}
    return ModelB(prompts, used_libraries, tuple(parts), engine, cluster)


def merge_routes(
    lists: Mapping[str, Neighbors],
    tuned: Mapping[str, TunedWeights],
    shares: Mapping[str, float],
    depth: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The neighbors of all routes that have a share as one list: `index`, `weight` (q, depth),
    parts of all weights.
    """
    indices = []
    weights = []
    for name, share in shares.items():
        if share > 0:
            similarity, index = lists[name]
            k = tuned[name].k
            weight = tuned[name].weighting(similarity[:, :k])
            indices.append(index[:, :k])
            weights.append(weight_shares(weight, share))
    return merge_weighted(indices, weights, depth)


def load(output: Path, engine: str = "auto", cluster: "str | Client | None" = None) -> ModelB:
    """Model B as notebook 03 left it in `output`. Raises FileNotFoundError naming the stage when it
    has not run.
    """
    prompts = artifacts.load_table(output / paths.STORE)
    stored = datastore.open_datastore(output / paths.STORE_SHARDS)
    choice = artifacts.load_json(output / paths.CHOICE_B)
    parts = tuple(_load_part(output, n, part) for n, part in enumerate(choice["parts"]))

    # the run's rows lie anywhere in the shards, which other runs have filled too
    rows = prompts["row"].to_numpy()
    values = ColumnView(stored.column(datastore.VALUES), rows)
    libraries = {}
    for clip in dict.fromkeys(part.fitted.route.clip for part in parts):
        _, images = artifacts.load_embeddings(output / paths.STORE_IMAGES.format(clip=clip))
        libraries[clip] = Library(ColumnView(stored.column(clip), rows), values, images)
    return ModelB(prompts.drop("row"), libraries, parts, engine, cluster)


def _load_part(output: Path, n: int, part: dict) -> WeightedRoute:
    route = Route.from_dict(part["route"])
    with np.load(output / paths.ROUTE_B.format(n=n)) as file:
        learned = dict(file)
    rows = learned.pop("rows")
    fitted = FittedRoute(route, QueryMap(**learned, penalty=part["penalty"]), rows)
    return WeightedRoute(fitted, part["k"], Weighting(**part["weighting"]), part["share"])


def files(output: Path) -> list[Path]:
    """What `load` reads below `output`, files and one folder. ValueError when a part of the
    datastore lies elsewhere.
    """
    stored = datastore.open_datastore(output / paths.STORE_SHARDS)
    outside = [shard["name"] for shard in stored.shards if "files" in shard]
    if outside:
        raise ValueError(
            f"{len(outside)} precomputed shards of Model B's datastore lie outside "
            f"{paths.display_path(output)}: {outside[:3]}"
        )

    patterns = (paths.ROUTE_B.format(n="*"), paths.STORE_IMAGES.format(clip="*") + ".*")
    learned = [file for pattern in patterns for file in sorted(output.glob(pattern))]
    return [output / paths.STORE, output / paths.CHOICE_B, output / paths.STORE_SHARDS, *learned]
