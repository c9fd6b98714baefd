"""The predictions of the test images against their true prompts, where these are known."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from src import artifacts, paths, plots
from src.data import images, prompts, sources
from src.ensemble import table1
from src.ensemble.blending import blend, combine
from src.ensemble.members import member_names
from src.metrics import cosines, l2_normalize
from src.model_a.averaging import recorded_averaging
from src.model_a.folds import collect_test
from src.statistics import Interval, bootstrap
from src.submit import truth

UNKNOWN = "no test_truth given: only the competition knows the score"
EXTREMES = 4  # images shown of the best and of the worst predicted


class Evaluation:
    """Test predictions (n, 384) scored against the prompts in `file`, joined by id.

    Without a file nothing is known: a sentence says so, and scores, tables and figures are None.
    """

    prompts: list[str] | None = None
    truth: np.ndarray | None = None  # (n, 384)
    cosines: np.ndarray | None = None  # (n,)
    score: Interval | None = None

    def __init__(
        self,
        file: str | None,
        ids: Sequence[str],
        prediction: np.ndarray,
        *,
        model: str,
        device: str,
        seed: int,
    ):
        self.seed = seed
        if file is None:
            return

        # the truth may list images in any order, and more of them than are predicted
        listed = sources.read_truth(file)
        index = artifacts.indices_of_ids(listed["imgId"].to_list(), ids, file)
        self.prompts = listed["prompt"].gather(index).to_list()
        self.truth = prompts.encode(self.prompts, model=model, device=device)
        self.cosines = cosines(self.truth, prediction)
        self.score = bootstrap(self.cosines, seed=seed)

    def gap(self, oof: Mapping[str, float]) -> float | None:
        """The test score minus the out-of-fold score."""
        return None if self.score is None else self.score.mean - oof["mean"]

    def explain_gap(self, output: Path, oof: Mapping[str, float], tolerance: float) -> str | None:
        """What the gap says of the folds that notebook 01 dealt, or its likely cause."""
        gap = self.gap(oof)
        if self.truth is None or gap is None:
            return None

        # the same measure as for a training row, so that the two means can be compared
        training = artifacts.load_table(output / paths.PAIRS, ["id", "fold"])
        _, targets = artifacts.load_embeddings(output / paths.TARGETS, training["id"].to_list())
        nearest = truth.nearest_to_training(self.truth, targets, training["fold"].to_numpy())
        recorded = artifacts.load_json(output / paths.Stage.DEDUP / paths.META)["folds"]
        return truth.explain_gap(gap, tolerance, recorded, nearest)

    def score_sentences(
        self, oof: Mapping[str, float], tolerance: float, reading: str | None
    ) -> str:
        """The test score beside the out-of-fold score and its interval, and what that says."""
        gap = self.gap(oof)
        if self.score is None or gap is None:
            return UNKNOWN

        # the wording follows from the numbers, so it is right on any data
        within = abs(gap) <= tolerance
        side = "within" if within else "outside"
        inside = "inside" if oof["low"] <= self.score.mean <= oof["high"] else "outside"
        test_width = self.score.high - self.score.low
        oof_width = oof["high"] - oof["low"]
        return (
            f"ensemble: test {self.score}, "
            f"out-of-fold {oof['mean']:.4f} [{oof['low']:.4f}, {oof['high']:.4f}]\n"
            f"test - out-of-fold = {gap:+.4f}, {side} {tolerance}: {reading}\n"
            f"the test score lies {inside} the out-of-fold interval; "
            f"the intervals are {test_width:.4f} (test) and {oof_width:.4f} wide"
        )

    def one_fold_sentence(self, predictions: Sequence[np.ndarray], oof: Mapping[str, float]) -> str:
        """The score of `by_one_fold`, mean over the folds, beside the out-of-fold score."""
        if self.truth is None or self.score is None:
            return UNKNOWN
        # the mean of the folds' scores, not the score of their mean
        scored = np.mean([cosines(self.truth, one) for one in predictions], axis=0)
        score = bootstrap(scored, seed=self.seed)
        return (
            f"by one fold's Model A at a time: test {score}, "
            f"test - out-of-fold = {score.mean - oof['mean']:+.4f}\n"
            f"the mean of the folds' predictions adds {self.score.mean - score.mean:+.4f}"
        )

    def score_table(self, predictions: Mapping[str, np.ndarray]) -> pl.DataFrame | None:
        """model, avg_cos, low, high of each prediction (n, 384) of the test images."""
        if self.truth is None:
            return None
        rows = []
        for name, prediction in predictions.items():
            score = bootstrap(cosines(self.truth, prediction), seed=self.seed)
            rows.append((name, score.mean, score.low, score.high))
        return pl.DataFrame(rows, schema=["model", "avg_cos", "low", "high"], orient="row")

    def confidence_sentences(self, confidence: np.ndarray) -> str:
        """How the confidence (n,) fits the cosines."""
        if self.cosines is None:
            return UNKNOWN
        correlation = np.corrcoef(confidence, self.cosines)[0, 1]
        # of an odd number of images the middle one counts as confident
        most_confident_first = self.cosines[np.argsort(-confidence, kind="stable")]
        half = -(-len(confidence) // 2)
        return (
            f"mean confidence {confidence.mean():.4f}, mean cosine {self.cosines.mean():.4f}; "
            f"they correlate at {correlation:.2f}\n"
            f"the confident half scores {most_confident_first[:half].mean():.4f}, "
            f"the other {most_confident_first[half:].mean():.4f}"
        )

    def calibration(self, confidence: np.ndarray, agreement: np.ndarray) -> Figure | None:
        """The cosine against the confidence and against the agreement of A and B, (n,) each."""
        if self.cosines is None:
            return None
        return plots.calibration(confidence, agreement, self.cosines)

    def extremes(self, references: pl.Series) -> Figure | None:
        """The best and the worst predicted images, with their true prompts."""
        if self.cosines is None or self.prompts is None:
            return None

        # best first, so the worst stand at the end
        order = np.argsort(-self.cosines)
        rows = np.concatenate([order[:EXTREMES], order[-EXTREMES:]]).tolist()
        titles = [f"{self.cosines[row]:.3f}: {self.prompts[row]}" for row in rows]
        return plots.image_grid([images.decode(references[row]) for row in rows], titles)

    def with_truth(self, gallery: pl.DataFrame, rows: np.ndarray) -> pl.DataFrame:
        """`gallery`, of the images `rows`, with the columns truth and cosine where known."""
        if self.cosines is None or self.prompts is None:
            return gallery

        truth = pl.Series([self.prompts[row] for row in rows], dtype=pl.String)
        return gallery.with_columns(truth=truth, cosine=pl.Series(self.cosines[rows]))


def predictions_by_title(
    output: Path,
    ids: Sequence[str],
    members: Mapping[str, np.ndarray],
    sides: tuple[Sequence[str], Sequence[str]],
    prediction: np.ndarray,
) -> dict[str, np.ndarray]:
    """Every row of Table 1 and of the ladder on the test images, (n, 384) each, by its title."""
    by_title = {table1.MEAN_PROMPT: np.repeat(_mean_of_training(output), len(ids), axis=0)}
    for title, variant in zip(table1.PAPER, paths.LADDER, strict=False):
        base = output / paths.TEST.format(variant=variant)
        by_title[title] = artifacts.load_embeddings(base, ids)[1]

    # Table 1 blends the first member of each side; the others stand alone, as in the ladder
    a = members[sides[0][0]]
    b = members[sides[1][0]]
    alpha = artifacts.load_json(output / paths.BLEND)["alpha"]
    by_title |= {"Model B": b, "Ensemble": blend(a, b, alpha)}
    main_members = (sides[0][0], sides[1][0])
    by_title |= {name: rows for name, rows in members.items() if name not in main_members}
    if len(members) > 2:
        by_title[table1.OF_ALL] = prediction
    return by_title


def _mean_of_training(output: Path) -> np.ndarray:
    """(1, d) float32: the mean target of all rows that data filter 2 kept, at unit length."""
    kept = artifacts.load_table(output / paths.PAIRS).filter("filter2")["id"].to_list()
    _, targets = artifacts.load_embeddings(output / paths.TARGETS, kept)
    return l2_normalize(targets.mean(axis=0, keepdims=True))


def by_one_fold(
    output: Path,
    ids: Sequence[str],
    members: Mapping[str, np.ndarray],
    weights: Mapping[str, float],
) -> list[np.ndarray]:
    """For each fold the blend (n, 384) by this fold's Model A alone, as out-of-fold rows have it.

    `members` have the mean over the folds; those that are not of Model A stay as they are.
    """
    of_a, _ = member_names(output)
    averaging = recorded_averaging(output)
    folds = artifacts.load_table(output / paths.TRAINED)["fold"].unique().sort()
    blends = []
    for fold in folds:
        of_fold = {}
        for name in of_a:
            found, rows = collect_test(averaging.fold_bases(output, name, fold))
            of_fold[name] = rows[artifacts.indices_of_ids(found, ids, f"{name}, fold {fold}")]
        blends.append(combine({**members, **of_fold}, weights))
    return blends


def save_scores(output: Path, test_scores: pl.DataFrame | None) -> None:
    """Write the scores of `Evaluation.score_table`, where the truth is known."""
    if test_scores is not None:
        artifacts.save_table(output / paths.TEST_SCORES, test_scores)


def beside_out_of_fold(output: Path, test_scores: pl.DataFrame | None) -> pl.DataFrame | None:
    """`test_scores` with the out-of-fold score of each model and the gap between the two."""
    if test_scores is None:
        return None
    oof = table1.load_all(output).select("model", out_of_fold="avg_cos")
    joined = test_scores.join(oof, on="model", how="left", maintain_order="left")
    return joined.with_columns(gap=pl.col("avg_cos") - pl.col("out_of_fold"))


def gallery_rows(confidence: np.ndarray, count: int) -> np.ndarray:
    """(count,) int64: rows from the most to the least confident, evenly spread over all."""
    order = np.argsort(-confidence, kind="stable")
    # ranks, evenly spaced and with both ends
    steps = np.linspace(0, len(order) - 1, min(count, len(order)))
    return order[steps.round().astype(int)]


def gallery_table(
    output: Path, test_images: pl.DataFrame, confidence: np.ndarray, rows: np.ndarray
) -> pl.DataFrame:
    """id, image, confidence and `prompts` of `rows`: the three prompts that weigh most in Model B,
    with their similarity.
    """
    nearest = artifacts.load_table(output / paths.NEIGHBORS)
    # each query has its list already sorted by weight
    nearest = nearest.filter(pl.col("rank") < 3).sort("rank")
    grouped = nearest.group_by("query").agg("similarity", "prompt")
    # a line for each of the three nearest prompts, with its similarity
    lines = {
        query: [f"{cosine:.2f} {prompt}" for cosine, prompt in zip(similarity, texts, strict=True)]
        for query, similarity, texts in grouped.iter_rows()
    }

    shown = test_images[rows].select("id", "image")
    shown_lines = [lines.get(identifier, []) for identifier in shown["id"]]
    return shown.with_columns(
        confidence=pl.Series(confidence[rows]),
        prompts=pl.Series(shown_lines, dtype=pl.List(pl.String)),
    )


def gallery_page(gallery: pl.DataFrame) -> Figure:
    """The images of a gallery with their confidence and their nearest prompts."""
    texts = [
        [f"{confidence:.2f} · {name}", *prompts]
        for name, confidence, prompts in gallery.select("id", "confidence", "prompts").rows()
    ]
    return plots.image_page([images.decode(image) for image in gallery["image"]], texts)
