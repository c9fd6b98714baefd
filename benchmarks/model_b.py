"""Model B on the demo: what a larger store, tuning and each correction are worth, out-of-fold, with paired intervals.

    python benchmarks/model_b.py ladder --output output     the paper's constants, tuned, and each correction
    python benchmarks/model_b.py store --output output      text-only stores of 0, 5, 20 and 60 thousand prompts
    python benchmarks/model_b.py second --output output     a second CLIP, aligned with another seed: re-ranking, routes of its own

`--output` is that of a finished demo run. Prompts are encoded into a store of the benchmark's own (--cache) and not again later.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src import artifacts, demo, encoder, paths, statistics
from src.data import images, prompts, sources
from src.ensemble import blending
from src.metrics import cosines, l2_normalize
from src.model_b import datastore, query_map, routes
from src.model_b import weighting as weightings
from src.model_b.weighting import Neighbors, TunedWeights, Weighting

K_GRID = [10, 20, 50, 100, 200, 400]
WEIGHTINGS = [Weighting(dim=d) for d in (2, 4, 6, 8, 12, 16, 24, 32, 48)]
WEIGHTINGS += [Weighting(tau=t) for t in (0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3)]
GRIDS = {"k_grid": K_GRID, "weightings": WEIGHTINGS}
ROUTES = {
    "text": routes.Route("text"),
    "text, centered": routes.Route("", center=True),
    "text, hubs off": routes.Route("", hubs=1.0),
    "mapped text": routes.Route("", linear=True),
    "mapped text, centered": routes.Route("", linear=True, center=True),
    "mapped text, centered, hubs off": routes.Route("mapped", linear=True, center=True, hubs=1.0),
    "image": routes.Route("image", keys="image"),
    "image, mapped": routes.Route("", keys="image", linear=True, center=True),
}
USED = ("text", "mapped text, centered, hubs off", "image")


class Bench:
    """The demo's out-of-fold rows, and a store on disk that grows with what is measured."""

    def __init__(self, output: Path, folder: Path, clip: str):
        self.output, self.folder, self.clip = output, folder, encoder.load(clip)
        self.pairs = artifacts.load_table(output / paths.PAIRS)
        self.kept = self.pairs.filter("filter2")
        self.ids, self.fold, self.group = (
            self.kept[name].to_numpy() for name in ("id", "fold", "group")
        )
        self.truth, self.targets = (
            artifacts.load_embeddings(output / paths.TARGETS, ids)[1]
            for ids in (self.kept["id"].to_list(), self.pairs["id"].to_list())
        )
        self.disk = datastore.open_datastore(
            folder / "store", dtype="float16", sentence_model=prompts.EMBEDDED
        )
        self.similar = artifacts.load_json(output / "01_dedup" / paths.META)["group_similarity"]

    def pictures(self, clip: encoder.Encoder) -> np.ndarray:
        pixels, _ = images.cache(
            self.pairs.select("id", "image"),
            self.output / paths.CACHE,
            geometry=clip.geometry,
            name="pairs",
        )
        rows = encoder.image_embeddings(clip, pixels, self.folder, name=f"pairs.{clip.tag}")
        return rows[artifacts.indices_of_ids(pixels.ids, self.kept["id"].to_list(), "images")]

    def library(
        self, texts: list[str], clip: encoder.Encoder | None = None
    ) -> tuple[routes.Library, np.ndarray]:
        """The training prompts and `texts`, and what of them conflicts with each fold."""
        clip = clip or self.clip
        every = [*self.kept["prompt"], *texts]
        self.disk = datastore.add(
            self.disk,
            every,
            {datastore.VALUES: prompts.encode, clip.tag: lambda t: encoder.embed_texts(clip, t)},
            shard_rows=10_000,
        )
        place = datastore.rows_of_prompts(self.disk, every)
        keys, values = (
            datastore.ColumnView(self.disk.column(name), place)
            for name in (clip.tag, datastore.VALUES)
        )
        library = routes.Library(keys, values, self.pictures(clip))
        return library, routes.store_conflicts(
            library, self.targets, self.pairs["fold"].to_numpy(), self.similar
        )

    def search(
        self, route: routes.Route, library: routes.Library, conflicts: np.ndarray
    ) -> Neighbors:
        return routes.search_out_of_fold(
            route, library, self.fold, self.group, conflicts, max(K_GRID), "faiss"
        )

    def tune(self, lists: Neighbors, library: routes.Library) -> TunedWeights:
        return weightings.tune(*lists, library.values.take, self.truth, self.fold, **GRIDS)

    def said(
        self, name: str, prediction: np.ndarray, base: np.ndarray | None, note: str = ""
    ) -> np.ndarray:
        score = cosines(self.truth, prediction)
        change = (
            ""
            if base is None
            else f"  {statistics.paired_bootstrap(score, base, groups=self.group)}"
        )
        print(
            f"{name:34} {statistics.bootstrap(score, groups=self.group)}{change}  {note}",
            flush=True,
        )
        return score


def demo_texts(bench: Bench, text: str) -> list[str]:
    """The demo's own text-only prompts that are no training prompt."""
    known = set(bench.pairs["prompt"])
    return [
        t for t in sources.read_text(text)["prompt"].unique(maintain_order=True) if t not in known
    ]


def ladder(bench: Bench, arguments: argparse.Namespace) -> None:
    library, conflicts = bench.library(demo_texts(bench, arguments.text))
    print(
        f"{len(bench.kept)} rows, store of {len(conflicts)} prompts; Avg-Cos out-of-fold, paired difference to tuned text\n"
    )
    lists = {name: bench.search(route, library, conflicts) for name, route in ROUTES.items()}
    tuned = {name: bench.tune(found, library) for name, found in lists.items()}
    base = cosines(bench.truth, tuned["text"].prediction)
    for name, (k, weighting) in weightings.PRESETS.items():
        fused = weightings.fuse_neighbors(*lists["text"], library.values.take, weighting, k=k)
        bench.said(f"text, {name} constants", fused, base)
    for name, found in tuned.items():
        bench.said(
            name,
            found.prediction,
            base,
            f"K = {found.k}, {found.weighting}; {', '.join(weightings.choices_at_edge(found, **GRIDS))}",
        )
    members = {name: tuned[name].prediction for name in USED}
    for left in (None, *USED):
        rest = {name: x for name, x in members.items() if name != left}
        fused, _ = blending.cross_fit_weights(bench.truth, rest, bench.fold, groups=bench.group)
        bench.said("three routes" if left is None else f"  without {left}", fused, base)
    for name, fused in residuals(bench, lists["image"]).items():
        bench.said(name, fused, base)


def residuals(
    bench: Bench, lists: Neighbors, k: int = 50, tau: float = 0.12
) -> dict[str, np.ndarray]:
    """A ridge on the image's embedding, and it plus the weighted mean of its neighbors' residuals: the values fitted.

    A neighbor's residual comes from a ridge that has seen neither it nor the query's fold; half and whole are added.
    """
    pictures, truth, fold = bench.pictures(bench.clip), bench.truth, bench.fold
    base, change = np.empty_like(truth), np.empty_like(truth)
    for f in np.unique(fold):
        mine, others = fold == f, np.flatnonzero(fold != f)
        base[mine] = Ridge(3.0).fit(pictures[others], truth[others]).predict(pictures[mine])
        rest = np.zeros_like(truth)
        for fit, out in GroupKFold(5).split(others, groups=bench.group[others]):
            fitted = Ridge(3.0).fit(pictures[others[fit]], truth[others[fit]])
            rest[others[out]] = truth[others[out]] - l2_normalize(
                fitted.predict(pictures[others[out]]).astype(np.float32)
            )
        weight = routes.weight_shares(Weighting(tau=tau)(lists[0][mine, :k]), 1.0).astype(
            np.float32
        )
        change[mine] = np.einsum("qk,qkd->qd", weight, rest[lists[1][mine, :k]])
    base = l2_normalize(base)
    return {
        "ridge": base,
        "ridge + 0.5 residual": l2_normalize(base + 0.5 * change),
        "ridge + residual": l2_normalize(base + change),
    }


def growing_store(bench: Bench, arguments: argparse.Namespace) -> None:
    known = set(bench.pairs["prompt"])
    texts = demo_texts(bench, arguments.text)
    more = demo.extra_prompts(arguments.seed + 1, max(arguments.sizes), taken=known | set(texts))
    texts = [*texts, *more][: max(arguments.sizes)]
    print(
        f"{len(bench.kept)} rows, text route; paired difference to the store without text-only prompts\n"
    )
    base = None
    for n in arguments.sizes:
        library, conflicts = bench.library(texts[:n])
        lists = bench.search(ROUTES["text"], library, conflicts)
        out = int(conflicts.any(axis=1).sum())
        tuned = bench.tune(lists, library)
        score = bench.said(
            f"{n:,} text-only prompts",
            tuned.prediction,
            base,
            f"K = {tuned.k}, {tuned.weighting}; {out} near",
        )
        base = score if base is None else base


def second_clip(bench: Bench, arguments: argparse.Namespace) -> None:
    folder = bench.folder / "clip2"
    if not (folder / "open_clip_config.json").exists():
        stamp = artifacts.load_json(Path(arguments.text).parent / demo.STAMP)["sizes"]
        _, _, align, _ = demo.choose(
            stamp["seed"], stamp["train_scenes"], stamp["test_scenes"], stamp["align_scenes"], 1
        )
        small = stamp["clip_size"]
        pixels = np.stack(
            [
                np.asarray(demo.render(s, stamp["train_size"]).resize((small, small), 3))
                for s in align
            ]
        )
        demo.write_clip(
            folder,
            pixels,
            [demo.prompt(s) for s in align],
            epochs=stamp["align_epochs"],
            seed=arguments.seed + 1,
        )
    texts, other = demo_texts(bench, arguments.text), encoder.load(f"local-dir:{folder}")
    (library, conflicts), (library2, _) = bench.library(texts), bench.library(texts, other)
    mapped = ROUTES["mapped text, centered, hubs off"]
    lists = {
        f"{name}{n}": bench.search(route, lib, conflicts)
        for n, lib in ((1, library), (2, library2))
        for name, route in (("text", ROUTES["text"]), ("mapped", mapped))
    }
    tuned = {name: bench.tune(found, library) for name, found in lists.items()}
    base = {name: bench.said(name, tuned[name].prediction, None) for name in lists}
    for share in (0.25, 0.5):
        similarity, index = lists["text1"]
        second = np.einsum(
            "qd,qkd->qk", library2.pictures, library2.texts.take(index), optimize=True
        )
        found = bench.tune(query_map.rerank(similarity, index, second, share), library)
        bench.said(f"text1, re-ranked by 2 at {share}", found.prediction, base["text1"])
    for names in (("text1", "text2"), ("mapped1", "mapped2")):
        fused, _ = blending.cross_fit_weights(
            bench.truth, {n: tuned[n].prediction for n in names}, bench.fold, groups=bench.group
        )
        bench.said(" + ".join(names), fused, base[names[0]])


def main() -> None:
    measures = {"ladder": ladder, "store": growing_store, "second": second_clip}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measure", choices=measures)
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--cache", type=Path, default=Path("output/cache/benchmark"))
    parser.add_argument("--text", default="input/demo/text")
    parser.add_argument("--clip", default="local-dir:input/demo/clip")
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 5000, 20_000, 60_000])
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    measures[arguments.measure](
        Bench(paths.resolve(arguments.output), paths.resolve(arguments.cache), arguments.clip),
        arguments,
    )


if __name__ == "__main__":
    main()
