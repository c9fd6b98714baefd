"""Model B on a finished run: what a larger datastore, tuning and each correction are worth.

    python benchmarks/model_b.py ladder       the paper's constants, tuned, and each correction
    python benchmarks/model_b.py datastore    0, 8, 20 and 60 thousand text-only prompts: Model B,
                                              the ensemble with a weight of its own, and a plot
    python benchmarks/model_b.py conflicts    text-only prompts hidden above .6 to .9
    python benchmarks/model_b.py second       routes by a second CLIP (--second) beside the first's

Scores are Avg-Cos out-of-fold with paired 95 % intervals. `--output` is that of a finished run.
Prompts are encoded into a datastore of the benchmark's own (--cache), each once.
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.figure import Figure
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from timing import measure_parser

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src import artifacts, demo, encoder, paths, plots, statistics
from src.data import prompts, sources
from src.ensemble import blending
from src.knn import Neighbors
from src.metrics import cosines, l2_normalize
from src.model_b import datastore, inputs, isolation, routes
from src.model_b import weighting as weightings
from src.model_b.routes import Library, Route
from src.model_b.weighting import TunedWeights, Weighting

K_GRID = [10, 20, 50, 100, 200, 400]
WEIGHTINGS = [Weighting(dim=d) for d in (2, 4, 6, 8, 12, 16, 24, 32, 48)]
WEIGHTINGS += [Weighting(tau=t) for t in (0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3)]
GRIDS = {"k_grid": K_GRID, "weightings": WEIGHTINGS}
ROUTES = {
    "text": Route("text"),
    "text, centered": Route("", center=True),
    "text, hubs off": Route("", hubs=1.0),
    "mapped text": Route("", linear=True),
    "mapped text, centered": Route("", linear=True, center=True),
    "mapped text, centered, hubs off": Route("mapped", linear=True, center=True, hubs=1.0),
    "image": Route("image", keys="image"),
    "image, mapped": Route("", keys="image", linear=True, center=True),
}
CONFLICT = 0.85  # notebook 03's text_conflict_similarity
USED = ("text", "mapped text, centered, hubs off", "image")


class Bench:
    """A run's out-of-fold rows, and a datastore that grows with what is measured."""

    def __init__(self, output: Path, folder: Path, clip: str):
        self.output = output
        self.folder = folder
        self.clip = encoder.load(clip)

        self.pairs = artifacts.load_table(output / paths.PAIRS)
        self.kept = self.pairs.filter("filter2")
        self.fold = self.kept["fold"].to_numpy()
        self.group = self.kept["group"].to_numpy()

        targets = output / paths.TARGETS
        _, self.truth = artifacts.load_embeddings(targets, self.kept["id"].to_list())
        _, self.targets = artifacts.load_embeddings(targets, self.pairs["id"].to_list())
        self.stored = datastore.open_datastore(
            folder / "store", dtype="float16", sentence_model=prompts.EMBEDDED
        )

    def images(self, clip: encoder.Encoder) -> np.ndarray:
        """(n, D) embeddings of the kept rows' images."""
        cache = self.output / paths.CACHE
        ids, embeddings = inputs.image_embeddings([clip], self.pairs, cache, name="pairs")
        rows = artifacts.indices_of_ids(ids, self.kept["id"].to_list(), "images")
        return embeddings[clip.tag][rows]

    def library(self, texts: list[str], clip: encoder.Encoder | None = None) -> Library:
        """The training prompts, then `texts`, with keys by `clip`."""
        clip = clip or self.clip
        every_prompt = [*self.kept["prompt"], *texts]
        encoders = inputs.column_encoders([clip], prompts.EMBEDDED)
        self.stored = datastore.add(self.stored, every_prompt, encoders, shard_rows=10_000)
        rows = datastore.rows_of_prompts(self.stored, every_prompt)
        return inputs.open_libraries(self.stored, rows, {clip.tag: self.images(clip)})[clip.tag]

    def conflicts(self, library: Library, threshold: float = CONFLICT) -> np.ndarray:
        """(n, n_folds) bool: the library's prompts that are hidden from each fold."""
        fold = self.pairs["fold"].to_numpy()
        return isolation.run_conflicts(
            library.values, len(self.kept), self.targets, fold, threshold
        )

    def search(self, route: Route, library: Library, conflicts: np.ndarray) -> Neighbors:
        return routes.search_out_of_fold(
            route,
            library,
            fold=self.fold,
            group=self.group,
            conflicts=conflicts,
            k=max(K_GRID),
            engine="faiss",
        )

    def tune(self, neighbors: Neighbors, library: Library) -> TunedWeights:
        return weightings.tune(*neighbors, library.values.take, self.truth, self.fold, **GRIDS)

    def report(
        self, name: str, prediction: np.ndarray, base: np.ndarray | None, note: str = ""
    ) -> np.ndarray:
        """Print a prediction's score and its paired difference to the scores `base`; the scores."""
        score = cosines(self.truth, prediction)
        change = ""
        if base is not None:
            change = statistics.paired_bootstrap(score, base, groups=self.group)
        interval = statistics.bootstrap(score, groups=self.group)
        print(f"{name:34} {interval}  {change}  {note}", flush=True)
        return score


def demo_texts(bench: Bench, text: str) -> list[str]:
    """The demo's own text-only prompts that are no training prompt."""
    training = set(bench.pairs["prompt"])
    texts = sources.read_text(text)["prompt"].unique(maintain_order=True)
    return [t for t in texts if t not in training]


def demo_prompts(folder: Path) -> list[str]:
    """The training and test prompts of a demo."""
    files = (folder / "train" / "metadata.csv", folder / "truth" / "prompts.csv")
    return [text for file in files for text in pl.read_csv(file)["prompt"]]


def ladder(bench: Bench, arguments: argparse.Namespace) -> None:
    library = bench.library(demo_texts(bench, arguments.text))
    conflicts = bench.conflicts(library)
    print(f"{len(bench.kept)} rows, {len(conflicts)} prompts; difference to tuned text\n")

    lists = {name: bench.search(route, library, conflicts) for name, route in ROUTES.items()}
    tuned = {name: bench.tune(neighbors, library) for name, neighbors in lists.items()}
    base = cosines(bench.truth, tuned["text"].prediction)

    for name, (k, weighting) in weightings.PRESETS.items():
        fused = weightings.fuse_neighbors(*lists["text"], library.values.take, weighting, k=k)
        bench.report(f"text, {name} constants", fused, base)
    for name, choice in tuned.items():
        at_edge = ", ".join(weightings.choices_at_edge(choice, **GRIDS))
        note = f"K = {choice.k}, {choice.weighting}; {at_edge}"
        bench.report(name, choice.prediction, base, note)

    members = {name: tuned[name].prediction for name in USED}
    for left_out in (None, *USED):
        rest = {name: x for name, x in members.items() if name != left_out}
        fused, _ = blending.cross_fit_weights(bench.truth, rest, bench.fold, groups=bench.group)
        name = "three routes" if left_out is None else f"  without {left_out}"
        bench.report(name, fused, base)
    for name, fused in residuals(bench, lists["image"]).items():
        bench.report(name, fused, base)


def residuals(
    bench: Bench, neighbors: Neighbors, k: int = 50, tau: float = 0.12
) -> dict[str, np.ndarray]:
    """A ridge on the image's embedding, and it plus the weighted mean of its neighbors' residuals.

    A neighbor's residual comes from a ridge that was fitted on neither its fold's part nor the
    query's fold; half and the whole of it are added.
    """
    images = bench.images(bench.clip)
    truth = bench.truth
    similarity, index = neighbors
    base = np.empty_like(truth)
    change = np.empty_like(truth)
    for f in np.unique(bench.fold):
        in_fold = bench.fold == f
        others = np.flatnonzero(~in_fold)
        base[in_fold] = Ridge(3.0).fit(images[others], truth[others]).predict(images[in_fold])

        residual = np.zeros_like(truth)
        for fit, held_out in GroupKFold(5).split(others, groups=bench.group[others]):
            ridge = Ridge(3.0).fit(images[others[fit]], truth[others[fit]])
            predicted = ridge.predict(images[others[held_out]]).astype(np.float32)
            residual[others[held_out]] = truth[others[held_out]] - l2_normalize(predicted)

        weight = weightings.weight_shares(Weighting(tau=tau)(similarity[in_fold, :k]), 1.0)
        near = residual[index[in_fold, :k]]
        change[in_fold] = np.einsum("qk,qkd->qd", weight.astype(np.float32), near)

    base = l2_normalize(base)
    return {
        "ridge": base,
        "ridge + 0.5 residual": l2_normalize(base + 0.5 * change),
        "ridge + residual": l2_normalize(base + change),
    }


def growing_datastore(bench: Bench, arguments: argparse.Namespace) -> None:
    texts = demo_texts(bench, arguments.text)
    taken = {*bench.pairs["prompt"], *texts}
    near = demo.embed(demo_prompts(Path(arguments.text).parent))
    more = max(arguments.sizes) - len(texts)
    if more > 0:
        texts += demo.text_only(arguments.seed + 1, more, near, own=taken)
    _, model_a = artifacts.load_embeddings(
        bench.output / paths.OOF.format(variant="model_a"), bench.kept["id"].to_list()
    )
    print(f"{len(bench.kept)} rows, text route; difference to no text-only prompts")
    print("and, of the ensemble, to the better of Models A and B\n")

    score_a = bench.report("Model A", model_a, None)
    score_b = []
    score_ensemble = []
    for n in arguments.sizes:
        library = bench.library(texts[:n])
        conflicts = bench.conflicts(library)
        tuned = bench.tune(bench.search(ROUTES["text"], library, conflicts), library)
        hidden = int(conflicts.any(axis=1).sum())
        note = f"K = {tuned.k}, {tuned.weighting}; {hidden} hidden from some fold"
        base = score_b[0] if score_b else None
        score_b.append(bench.report(f"{n:,} text-only prompts", tuned.prediction, base, note))

        members = {"a": model_a, "b": tuned.prediction}
        fused, _ = blending.cross_fit_weights(bench.truth, members, bench.fold, groups=bench.group)
        better = max(score_a, score_b[-1], key=np.mean)
        weights = blending.fit_weights(bench.truth, members, groups=bench.group)
        note = f"weight of Model A {weights['a']:.2f}"
        score_ensemble.append(bench.report("  the ensemble", fused, better, note))

    if arguments.plot:
        figure = plot_sizes(bench, arguments.sizes, score_a, score_b, score_ensemble)
        plots.save(figure, arguments.plot)


def plot_sizes(
    bench: Bench,
    sizes: list[int],
    score_a: np.ndarray,
    score_b: list[np.ndarray],
    score_ensemble: list[np.ndarray],
) -> Figure:
    """Left the scores against the number of text-only prompts, right the ensemble's gain."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    thousands = np.array(sizes) / 1000
    left.axhline(score_a.mean(), color=plots.BLUE, label="Model A")
    for scores, color, name in (
        (score_b, plots.ORANGE, "Model B"),
        (score_ensemble, plots.GREEN, "Ensemble"),
    ):
        left.plot(thousands, [score.mean() for score in scores], "o-", color=color, label=name)
    left.set(xlabel="thousand text-only prompts", title="Avg-Cos out-of-fold")
    left.legend()

    gains = []
    for b, ensemble in zip(score_b, score_ensemble, strict=True):
        better = max(score_a, b, key=np.mean)
        gains.append(statistics.paired_bootstrap(ensemble, better, groups=bench.group))
    mean = np.array([gain.mean for gain in gains])
    ends = [mean - [gain.low for gain in gains], [gain.high for gain in gains] - mean]
    right.errorbar(thousands, mean, ends, fmt="o-", color=plots.GREEN, capsize=3)
    right.set(
        xlabel="thousand text-only prompts",
        title="Ensemble over the better model, 95 %",
        ylim=(0, None),
    )
    return figure


def conflict_rules(bench: Bench, arguments: argparse.Namespace) -> None:
    """The text route by what is hidden from a fold; `group_similarity` was the rule before."""
    library = bench.library(demo_texts(bench, arguments.text))
    dedup_meta = artifacts.load_json(bench.output / "01_dedup" / paths.META)
    print(f"{len(bench.kept)} rows, text route; difference to hiding above {CONFLICT}\n")

    base = None
    for threshold in (CONFLICT, dedup_meta["group_similarity"], 0.9, 0.6):
        conflicts = bench.conflicts(library, threshold)
        tuned = bench.tune(bench.search(ROUTES["text"], library, conflicts), library)
        note = f"K = {tuned.k}, {tuned.weighting}; hidden by fold {conflicts.sum(axis=0).tolist()}"
        score = bench.report(f"hidden above {threshold}", tuned.prediction, base, note)
        base = score if base is None else base


def second_clip(bench: Bench, arguments: argparse.Namespace) -> None:
    if not arguments.second:
        sys.exit("second: name the other CLIP with --second, e.g. local-dir:input/demo/clip@96")
    texts = demo_texts(bench, arguments.text)
    first = bench.library(texts)
    second = bench.library(texts, encoder.load(arguments.second))
    conflicts = bench.conflicts(first)

    routes_tried = {"text": ROUTES["text"], "mapped": ROUTES["mapped text, centered, hubs off"]}
    tuned = {}
    scores = {}
    for name, route in routes_tried.items():
        for number, library in ((1, first), (2, second)):
            label = f"{name} by {number}"
            tuned[label] = bench.tune(bench.search(route, library, conflicts), library)
            scores[label] = bench.report(label, tuned[label].prediction, None)
    for name in routes_tried:
        pair = {f"{name} by {n}": tuned[f"{name} by {n}"].prediction for n in (1, 2)}
        fused, _ = blending.cross_fit_weights(bench.truth, pair, bench.fold, groups=bench.group)
        bench.report(" + ".join(pair), fused, scores[f"{name} by 1"])


def main() -> None:
    measures = {
        "ladder": ladder,
        "datastore": growing_datastore,
        "conflicts": conflict_rules,
        "second": second_clip,
    }
    parser = measure_parser(__doc__, measures)
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--cache", type=Path, default=Path("output/cache/benchmark"))
    parser.add_argument("--text", default="input/demo/text")
    parser.add_argument("--clip", default="local-dir:input/demo/clip")
    parser.add_argument("--second", help="a second CLIP, as notebook 03's extra_clips name it")
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 8000, 20_000, 60_000])
    parser.add_argument("--plot", type=Path, help="datastore: the PNG to write")
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    output = paths.resolve(arguments.output)
    bench = Bench(output, paths.resolve(arguments.cache), arguments.clip)
    measures[arguments.measure](bench, arguments)


if __name__ == "__main__":
    main()
