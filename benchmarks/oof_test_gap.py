"""Out-of-fold and test compared like with like, on finished runs whose test truth is known.

    python benchmarks/oof_test_gap.py --runs output output/s43 output/s44

An out-of-fold row is predicted by one fold's models, a test image by the mean of all folds' and
with the whole store. The first table scores the test as it is submitted and as a fold would
see it: by one fold's Model A, by Model B with what that fold may see, mean over the folds. Below it
stands how near the prompts are that could be learned from, for both sets, and how much of what is
left of the gap that explains, by a line fitted on the out-of-fold rows.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src import artifacts, encoder, paths, statistics
from src.data import prompts, sources
from src.dedup import groups
from src.ensemble.blending import combine
from src.ensemble.slices import nearest_training_prompt
from src.metrics import cosines, l2_normalize
from src.model_b import inputs, isolation, model, routes
from src.model_b.model import ModelB
from src.model_b.weighting import fuse_neighbors
from src.paths import Stage, display_path
from src.submit.truth import nearest_to_training

TITLES = ("CLIP", "+ filter 1", "+ filter 2", "Model A")  # of paths.LADDER
DRAWS = 2000  # of the bootstrap of a gap


class Part(NamedTuple):
    """Scored rows: their targets (n, 384), the groups that are drawn as one, and their folds."""

    ids: list[str]
    truth: np.ndarray
    group: np.ndarray
    fold: np.ndarray | None = None


def parameters(output: Path, stage: Stage) -> dict[str, object]:
    """A stage's parameters as the run recorded them."""
    return artifacts.load_json(output / stage / paths.META)["state"]["parameter"]


def out_of_fold_part(output: Path) -> Part:
    """The rows that data filter 2 keeps."""
    kept = artifacts.load_table(output / paths.PAIRS).filter("filter2")
    ids = kept["id"].to_list()
    _, truth = artifacts.load_embeddings(output / paths.TARGETS, ids)
    return Part(ids, truth, kept["group"].to_numpy(), kept["fold"].to_numpy())


def test_part(output: Path, similarity: float) -> Part:
    """The test images, grouped at `similarity` as the training rows are."""
    known = sources.read_truth(parameters(output, Stage.SUBMIT)["test_truth"])
    truth = prompts.encode(known["prompt"].to_list())
    return Part(known["imgId"].to_list(), truth, groups(truth, similarity))


# --- a fold's own prediction of the test images ---


def model_b_by_fold(output: Path, fitted: ModelB, oof: Part, test: Part) -> list[np.ndarray]:
    """(n_test, 384) for each fold: Model B learned from the other folds, with what it may see.

    K, weights and shares are those of all rows.
    """
    stage = parameters(output, Stage.MODEL_B)
    pairs = artifacts.load_table(output / paths.PAIRS)
    _, every_target = artifacts.load_embeddings(output / paths.TARGETS, pairs["id"].to_list())

    library = next(iter(fitted.libraries.values()))
    conflicts = isolation.run_conflicts(
        library.values,
        len(oof.ids),
        every_target,
        pairs["fold"].to_numpy(),
        stage["text_conflict_similarity"],
    )
    run_fold = isolation.folds_of_run(oof.fold, len(conflicts))
    queries = test_queries(output, fitted, test)

    predictions = []
    for fold in np.unique(oof.fold):
        visible = isolation.visible_rows(run_fold, conflicts, int(fold))
        rows = np.flatnonzero(oof.fold != fold)
        predictions.append(predict_one_fold(fitted, queries, visible, rows, oof.group))
    return predictions


def test_queries(output: Path, fitted: ModelB, test: Part) -> dict[str, np.ndarray]:
    """The test images' embeddings by each CLIP that Model B looks up by, in the order of `test`."""
    names = artifacts.load_json(output / paths.MEMBERS_B)["clip"]
    clips = {column: encoder.load(names[column]) for column in fitted.libraries}
    table = artifacts.load_table(output / paths.TEST_IMAGES)
    ids, embeddings = inputs.image_embeddings(
        list(clips.values()), table, output / paths.CACHE, name="test"
    )
    order = artifacts.indices_of_ids(ids, test.ids, "test images")
    return {column: embeddings[clip.tag][order] for column, clip in clips.items()}


def predict_one_fold(
    fitted: ModelB,
    queries: dict[str, np.ndarray],
    visible: np.ndarray,
    rows: np.ndarray,
    group: np.ndarray,
) -> np.ndarray:
    """(q, 384) unit rows: as `ModelB.predict`, learned from `rows`, among `visible`."""
    total = 0
    for part in fitted.parts:
        clip = part.fitted.route.clip
        library = fitted.libraries[clip]
        route = routes.fit_route(part.fitted.route, library, rows, group)
        neighbors = route.search(library, queries[clip], part.k, "faiss", visible=visible)
        fused = fuse_neighbors(*neighbors, library.values.take, part.weighting, k=part.k)
        total = total + np.float32(part.share) * fused
    return l2_normalize(total)


# --- the two tables ---


def scores(
    output: Path, fitted: ModelB, oof: Part, test: Part
) -> dict[str, tuple[np.ndarray, ...]]:
    """By model: cosines out-of-fold, on the test as submitted, and by one fold (mean of folds)."""
    folds = np.unique(oof.fold)
    table = {}
    single = {}
    for title, variant in zip(TITLES, paths.LADDER, strict=True):
        base = [output / paths.FOLD.format(variant=variant, fold=fold) for fold in folds]
        single[variant] = [
            artifacts.load_embeddings(one.with_name(f"{one.name}_test"), test.ids)[1]
            for one in base
        ]
        table[title] = (
            load(output / paths.OOF.format(variant=variant), oof),
            load(output / paths.TEST.format(variant=variant), test),
            mean_cosine(test, single[variant]),
        )

    single["model_b"] = model_b_by_fold(output, fitted, oof, test)
    table["Model B"] = (
        load(output / paths.OOF_B.format(member="model_b"), oof),
        load(output / paths.TEST_B.format(member="model_b"), test),
        mean_cosine(test, single["model_b"]),
    )

    # the ensemble of the two, by the weights over all rows
    alpha = artifacts.load_json(output / paths.BLEND)["alpha"]
    weights = {"a": alpha, "b": 1 - alpha}
    pairs = zip(single["model_a"], single["model_b"], strict=True)
    blended = [combine({"a": a, "b": b}, weights) for a, b in pairs]
    table["Ensemble"] = (
        load(output / paths.OOF_ENSEMBLE, oof),
        load(output / paths.SUBMISSION, test),
        mean_cosine(test, blended),
    )
    return table


def load(base: Path, part: Part) -> np.ndarray:
    """(n,) cosines of the stored predictions `base` with the truth."""
    return cosines(part.truth, artifacts.load_embeddings(base, part.ids)[1])


def mean_cosine(part: Part, predictions: list[np.ndarray]) -> np.ndarray:
    """(n,) the mean over `predictions` of their cosines with the truth."""
    return np.mean([cosines(part.truth, one) for one in predictions], axis=0)


def gap_interval(oof: np.ndarray, test: np.ndarray, groups: tuple) -> statistics.Interval:
    """Mean of `test` minus mean of `oof`, each drawn anew over its own of the `groups`."""
    change = resampled_means(test, groups[1], seed=1) - resampled_means(oof, groups[0], seed=0)
    low, high = np.percentile(change, [2.5, 97.5])
    return statistics.Interval(float(test.mean() - oof.mean()), float(low), float(high))


def resampled_means(values: np.ndarray, group: np.ndarray, *, seed: int) -> np.ndarray:
    """(DRAWS,) means of `values` (n,) over groups drawn with replacement."""
    number = np.unique(group, return_inverse=True)[1]
    total = np.bincount(number, weights=values)
    count = np.bincount(number)
    drawn = np.random.default_rng(seed).integers(len(total), size=(DRAWS, len(total)))
    return total[drawn].sum(axis=1) / count[drawn].sum(axis=1)


def show_similarity(
    output: Path,
    fitted: ModelB,
    oof: Part,
    test: Part,
    scored: tuple[np.ndarray, np.ndarray],
) -> None:
    """Print how near either set is to what it is predicted from, and the part of the gap of
    `scored`, cosines out-of-fold and of the test by one fold, that this explains.
    """
    near_oof = nearest_training_prompt(oof.truth, oof.fold)
    near_test = nearest_to_training(test.truth, oof.truth, oof.fold)
    link = parameters(output, Stage.DEDUP)["group_similarity"]
    print(
        f"nearest training prompt that a fold may see: out-of-fold {near_oof.mean():.4f}, "
        f"test {near_test.mean():.4f}; above {link}: {(near_oof > link).mean():.1%}, "
        f"{(near_test > link).mean():.1%}"
    )

    values = next(iter(fitted.libraries.values())).values
    text = values.take(np.arange(len(oof.ids), len(values.rows)))
    print(
        f"nearest text-only prompt: out-of-fold {(oof.truth @ text.T).max(axis=1).mean():.4f}, "
        f"test {(test.truth @ text.T).max(axis=1).mean():.4f}"
    )

    slope, _ = np.polyfit(near_oof, scored[0], 1)
    explained = float(slope * (near_test.mean() - near_oof.mean()))
    gap = float(scored[1].mean() - scored[0].mean())
    print(f"gap of the ensemble {gap:+.4f}; the nearest training prompt explains {explained:+.4f}")


def show(output: Path) -> dict[str, float]:
    """Print both tables of a run; the gap of each model, like with like."""
    oof = out_of_fold_part(output)
    test = test_part(output, parameters(output, Stage.DEDUP)["group_similarity"])
    print(f"\n{display_path(output)}: {len(oof.ids)} out-of-fold rows, {len(test.ids)} test images")
    print(f"{'':11}{'out-of-fold':26}{'test':8}{'by one fold':26}gap, like with like")

    gaps = {}
    fitted = model.load(output)
    table = scores(output, fitted, oof, test)
    for name, (out_of_fold, submitted, one_fold) in table.items():
        gap = gap_interval(out_of_fold, one_fold, (oof.group, test.group))
        gaps[name] = gap.mean
        oof_score = statistics.bootstrap(out_of_fold, groups=oof.group)
        test_score = statistics.bootstrap(one_fold, groups=test.group)
        print(f"{name:11}{oof_score!s:26}{submitted.mean():.4f}  {test_score!s:26}{gap}")
    show_similarity(output, fitted, oof, test, (table["Ensemble"][0], table["Ensemble"][2]))
    return gaps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", nargs="+", default=["output"], metavar="OUTPUT")
    options = parser.parse_args()

    gaps = [show(paths.resolve(run)) for run in options.runs]
    if len(gaps) > 1:
        print(f"\ngap, like with like, over {len(gaps)} runs: mean, standard deviation")
        for name in gaps[0]:
            values = [gap[name] for gap in gaps]
            print(f"{name:11}{np.mean(values):+.4f}, {np.std(values, ddof=1):.4f}")


if __name__ == "__main__":
    main()
