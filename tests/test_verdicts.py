"""What the notebooks print about their results: verdicts in one sentence, decisions in two."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from src import plots, statistics
from src.dedup import filters, folds, similarity
from src.ensemble import slices
from src.model_a import augmentation, text_augmentation, variants
from src.model_a.recipe import baseline_recipe, recipe_differences
from src.model_b.weighting import Weighting, choice_sentences
from src.runner import params
from src.statistics import Interval
from tests.helpers.recipes import NOTEBOOK, small_recipe

# foxes at 0 and 20 degrees, one just beside each, and an owl
ANGLES = np.deg2rad([0, 20, 2, 23, 120])
ROWS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1).astype(np.float32)
PROMPTS = ["a fox", "a red fox", "one fox", "a vixen", "an owl"]


@pytest.fixture
def scan():
    return similarity.scan_pairs(ROWS, 0.9, curve=[0.85, 0.9, 0.95], link=0.9)


def test_a_verdict_line_says_what_changed_by_how_much_and_whether_it_helps():
    line = statistics.verdict_line("Model A over clip", Interval(0.01, 0.002, 0.018))
    assert line == "Model A over clip: 0.0100 [0.0020, 0.0180], helps"


# --- 01 ---


def test_the_threshold_is_judged_by_the_rows_beside_it(scan):
    assert filters.threshold_sentences(scan, 0.9, 5) == (
        "The cosine filter keeps 2 of 5 rows at 0.9. It would keep 2 at 0.85 and 3 at 0.95."
    )


def test_the_threshold_stands_alone_where_the_curve_ends():
    scan = similarity.scan_pairs(ROWS, 0.9, curve=[0.5], link=0.9)
    assert filters.threshold_sentences(scan, 0.9, 5).endswith("keeps 2 of 5 rows at 0.9.")


def test_pairs_just_merged_are_those_nearest_to_the_threshold_each_before_its_keeper(scan):
    removed = np.flatnonzero(~scan.stays)
    merged = filters.just_merged(scan, removed, PROMPTS, count=1)
    assert merged == [(3, "removed at 0.921: a vixen"), (0, "replaced by: a fox")]
    assert len(filters.just_merged(scan, removed, PROMPTS, count=9)) == 2 * len(removed)
    assert filters.just_merged(scan, removed[:0], PROMPTS, count=4) == []


def test_rows_near_a_held_out_prompt():
    near = filters.near_any(ROWS, ROWS[[4]], 0.9)
    assert near.tolist() == [False, False, False, False, True]
    assert filters.near_any(ROWS, ROWS[:0], 0.9).tolist() == [False] * 5


@pytest.mark.parametrize(
    ("kept_above", "said"),
    [
        ([0, 0], "The folds do not leak: no scored row is above 0.7 with another fold."),
        ([1, 2], "3 of 9 scored rows are above 0.7 with another fold"),
    ],
)
def test_the_leak_table_in_a_sentence(kept_above, said):
    leaks = pl.DataFrame({"fold": [0, 1], "kept_above": kept_above})
    assert folds.leak_sentence(leaks, 9, 0.7).startswith(said)


# --- 02 ---


def test_only_the_settings_that_differ_are_listed():
    values = {name: value.default for name, value in params.declared(NOTEBOOK).items()}
    rows = recipe_differences(baseline_recipe(values), small_recipe())
    assert {"setting": "head", "CLIP variants": "linear", "Model A": "paper"} in rows
    assert all(row["CLIP variants"] != row["Model A"] for row in rows)
    assert recipe_differences(small_recipe(), small_recipe()) == []


def test_examples_of_augmentation_begin_with_the_image_itself(rng):
    image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    image.flags.writeable = False
    shown = augmentation.examples(image, 3)
    assert len(shown) == 4 and all(one.shape == image.shape for one in shown)
    assert np.array_equal(shown[0], image)
    assert not any(np.array_equal(one, image) for one in shown[1:])


def test_fits_that_stay_at_their_start_are_counted():
    fits = [
        {"factor": 0.0, "factors": {"0.0": 0.5, "1.0": 0.4}},
        {"factor": 0.5, "factors": {"0.0": 0.5, "0.5": 0.53, "1.0": 0.52}},
    ]
    assert variants.interpolation_sentences(fits) == (
        "Of 2 fits of Model A 1 stay at their start, and 1 move towards their best epoch. "
        "On the inner validation split they gain 0.0150 in the mean."
    )


def test_a_trial_that_equals_the_plain_one_is_inconclusive():
    groups = np.arange(20)
    plain = np.linspace(0.5, 0.6, 20)
    same = text_augmentation.trial_verdict("images", plain, plain, groups=groups, seed=0)
    assert same == "images: inconclusive, neither trial improved on its start"
    better = text_augmentation.trial_verdict("images", plain + 0.1, plain, groups=groups, seed=0)
    assert better == "images: 0.1000 [0.1000, 0.1000], helps"


# --- 03 ---


@pytest.mark.parametrize(
    ("k", "dim", "said"),
    [
        (5, 4, "Best over all rows: K = 5, dim 4. Both lie inside their grids."),
        (9, 4, "At the edge of its grid, where a wider one might do better: K = 9."),
        (5, 6, "At the edge of its grid, where a wider one might do better: dim 6."),
    ],
)
def test_a_choice_says_whether_a_wider_grid_might_do_better(k, dim, said):
    tuned = SimpleNamespace(k=k, weighting=Weighting(dim=dim))
    weightings = [Weighting(dim=d) for d in (2, 4, 6)]
    assert choice_sentences(tuned, [1, 5, 9], weightings).endswith(said)


# --- 04 ---


def test_the_worst_rows_are_compared_with_all():
    nearest = np.linspace(0, 1, 9)
    confidence = np.linspace(0.5, 0.9, 9)
    failures = pl.DataFrame({"nearest": [0.1, 0.5], "confidence": [0.5, 0.6]})
    assert slices.failure_sentences(failures, nearest, confidence) == (
        "Of the 2 worst images 1 have no training prompt above 0.25, as a quarter of all rows. "
        "2 were given less than the median confidence."
    )


def test_described_rows_are_numbered_as_the_images(tmp_path):
    table = tmp_path / "facts.csv"
    table.write_text("file_name,style\nowl.png,ink\nfox.png,oil\n")
    images = pl.Series([str(tmp_path / name) for name in ("fox.png", "cat.png", "owl.png")])
    for image in images:
        (tmp_path / image).write_bytes(b"")
    described = slices.described_rows(str(table), ["style"], images)
    assert described.select("row", "style").rows() == [(0, "oil"), (2, "ink")]


def test_bars_show_each_mean_with_its_interval():
    figure = plots.bars({"A": Interval(0.5, 0.4, 0.7), "B": Interval(0.6, 0.55, 0.65)}, title="t")
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.5, 0.6])
    ends = [segment[:, 0].tolist() for segment in axes.collections[0].get_segments()]
    assert ends == [pytest.approx([0.4, 0.7]), pytest.approx([0.55, 0.65])]
