"""What Model A gains from views, seeds, a final fit and each image augmentation; paired intervals.

    python benchmarks/model_a_views.py views final seeds augmentations --output output
        --truth input/demo/truth/prompts.csv

Needs the output of a whole run, and reads from it: the pairs of 01, the parameters of 02 and the
cache. Fits go to --work. Each line is one change against Model A as it was run, out-of-fold with a
bootstrap over groups, and on the test images, whose truth --truth names, over images. A final fit
has no out-of-fold rows.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from recipes import parameters

from src import artifacts, encoder, paths, statistics
from src.data import prompts, sources
from src.metrics import cosines, l2_normalize
from src.model_a import variants
from src.model_a.averaging import SINGLE, Averaging
from src.model_a.recipe import Recipe
from src.model_a.training_set import prediction_set, training_set
from src.model_a.variants import Variant

VIEWS = (
    ("center", "flip"),
    ("center", "zoom"),
    ("center", "corners"),
    ("center", "flip", "zoom", "corners"),
)
SEEDS = (2, 3)
AUGMENTATIONS = ("rotation", "flip", "crop")
KINDS = ("views", "seeds", "final", "augmentations")


@dataclass(frozen=True)
class Scores:
    """Cosines with the truth, row by row: out-of-fold (None for a final fit) and on test images."""

    oof: np.ndarray | None
    test: np.ndarray


class Bench:
    """Model A on a run's folds, with what is needed to score it."""

    def __init__(self, output: Path, truth: Path, work: Path):
        self.work = work
        recorded = artifacts.load_json(output / paths.Stage.MODEL_A / paths.META)["state"]
        values = parameters() | recorded["parameter"]
        self.seed = values["seed"]

        pairs = artifacts.load_table(output / paths.PAIRS)
        ids = pairs["id"].to_list()
        self.fold = pairs["fold"].to_numpy()
        self.kept = pairs["filter2"].to_numpy()
        self.group_of = dict(zip(ids, pairs["group"].to_list(), strict=True))
        _, targets = artifacts.load_embeddings(output / paths.TARGETS, ids)
        self.target_of = dict(zip(ids, targets, strict=True))

        clip = encoder.load(values["clip"], device="cpu")
        recipe = Recipe.from_parameters(values)
        test_images = artifacts.load_table(output / paths.TEST_IMAGES)
        train = training_set(
            clip, pairs, output, name=f"pairs.{clip.tag}", recipe=recipe, targets=targets[None]
        )
        test = prediction_set(clip, test_images, output, name=f"test.{clip.tag}", recipe=recipe)
        self.variant = Variant("model_a", clip, recipe, self.kept, train, test)

        known = sources.read_truth(truth)
        rows = artifacts.indices_of_ids(known["imgId"].to_list(), test.ids, str(truth))
        self.test_truth = prompts.encode(known["prompt"].gather(rows).to_list())

    def train(self, variant: Variant) -> list[dict]:
        """The records of the variant's folds."""
        return variants.train(variant, self.fold, self.work, scored=self.kept, seed=self.seed)

    def scores(self, averaging: Averaging, variant: Variant | None = None) -> Scores:
        """Of a variant that is trained."""
        variant = replace(variant or self.variant, averaging=averaging)
        ids, oof = variants.predictions(variant, self.fold, self.work, "oof")
        truth = np.stack([self.target_of[i] for i in ids])
        _, test = variants.predictions(variant, self.fold, self.work, "test")
        return Scores(cosines(truth, oof), cosines(self.test_truth, test))

    def groups(self) -> np.ndarray:
        """The group of each out-of-fold row, in the order of `scores`."""
        ids, _ = variants.predictions(self.variant, self.fold, self.work, "oof")
        return np.array([self.group_of[i] for i in ids])


def trials(bench: Bench, kinds: list[str]) -> Iterator[tuple[str, Scores]]:
    """Each change by name, with its scores; Model A as it was run comes first."""
    bench.train(bench.variant)
    yield "as it was run", bench.scores(SINGLE)
    if "views" in kinds:
        yield from _views(bench)
    if "seeds" in kinds:
        averaging = replace(SINGLE, seeds=max(SEEDS))
        bench.train(replace(bench.variant, averaging=averaging))
        for n in SEEDS:
            yield f"{n} seeds", bench.scores(replace(SINGLE, seeds=n))
    if "final" in kinds:
        yield from _final(bench)
    if "augmentations" in kinds:
        for name in AUGMENTATIONS:
            recipe = replace(bench.variant.recipe, **{f"augment_{name}": True})
            variant = replace(bench.variant, name=f"augment_{name}", recipe=recipe)
            bench.train(variant)
            yield f"training images: {name}", bench.scores(SINGLE, variant)


def _views(bench: Bench) -> Iterator[tuple[str, Scores]]:
    for names in VIEWS:
        averaging = replace(SINGLE, views=names)
        bench.train(replace(bench.variant, averaging=averaging))
        yield f"views: {', '.join(names)}", bench.scores(averaging)

    # the folds' predictions are those of the image as it is again
    bench.train(bench.variant)


def _final(bench: Bench) -> Iterator[tuple[str, Scores]]:
    """A final fit as one more fold, and by itself."""
    records = bench.train(bench.variant)
    averaging = replace(SINGLE, final_fit=True)
    variant = replace(bench.variant, averaging=averaging)
    variants.train_on_all(variant, bench.work, records, seed=bench.seed)
    yield "a final fit, as one more fold", replace(bench.scores(averaging), oof=None)

    (base,) = averaging.final_bases(bench.work, variant.name)
    file = base.with_name(base.name + "_test")
    _, alone = artifacts.load_embeddings(file, variant.test.ids)
    yield "a final fit alone", Scores(None, cosines(bench.test_truth, alone))

    _, folds = variants.predictions(bench.variant, bench.fold, bench.work, "test")
    half = cosines(bench.test_truth, l2_normalize(folds + alone))
    yield "a final fit, as all folds together", Scores(None, half)


def line(name: str, scores: Scores, plain: Scores, groups: np.ndarray, seconds: float) -> str:
    """One row of a Markdown table: the differences and their intervals."""
    cells = []
    for mine, its, of in ((scores.oof, plain.oof, groups), (scores.test, plain.test, None)):
        if mine is None or its is None:
            cells.append("")
        elif scores is plain:
            cells.append(str(statistics.bootstrap(mine, groups=of)))
        else:
            gain = statistics.paired_bootstrap(mine, its, groups=of)
            cells.append(f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]")
    return f"| {name} | {' | '.join(cells)} | {seconds:.0f} s |"


def measure(arguments: Mapping) -> None:
    """Print the table."""
    output = paths.resolve(arguments["output"])
    work = paths.resolve(arguments["work"] or output / "model_a_views")
    bench = Bench(output, paths.resolve(arguments["truth"]), work)
    print("| change to Model A | out-of-fold | test | time |")
    print("| --- | --- | --- | --- |", flush=True)

    plain = None
    start = time.perf_counter()
    for name, scores in trials(bench, arguments["kinds"]):
        plain = plain or scores
        seconds = time.perf_counter() - start
        print(line(name, scores, plain, bench.groups(), seconds), flush=True)
        start = time.perf_counter()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--output", default="output", help="of a whole run")
    parser.add_argument("--truth", required=True, help="the table imgId,prompt of the test images")
    parser.add_argument("--work", help="for the fits; a folder in the output by default")
    measure(vars(parser.parse_args()))
