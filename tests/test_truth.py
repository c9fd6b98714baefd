"""Why a test score differs from the out-of-fold one, from what notebook 01 recorded."""

import numpy as np
import polars as pl
import pytest

from src import artifacts, paths
from src.dedup import folds, similarity
from src.metrics import l2_normalize
from src.submit import evaluation, truth


def facts(**changes) -> dict:
    """Folds as notebook 01 records them: honest, 900 scored rows."""
    return {
        "given": False,
        "group_similarity": 0.7,
        "cosine_threshold": 0.85,
        "thresholds": [{"similarity": 0.7, "groups": 300, "rows": 1000, "share": 1.0, "kept": 900}],
        "rows_above_cosine_threshold": 0,
        "kept": 900,
        "leaking": 0,
        "nearest_mean": 0.6,
        "nearest_sd": 0.1,
        **changes,
    }


SAME = np.full(400, 0.6, np.float32)


def test_a_gap_within_the_tolerance_needs_no_cause():
    said = truth.explain_gap(-0.019, 0.02, facts(leaking=500), SAME)
    assert said == "the out-of-fold score predicted the test score"


def test_leaking_folds_are_named_with_their_rows_and_their_similarity():
    split = [*facts()["thresholds"], {"similarity": 0.94, "groups": 9, "rows": 90, "share": 0.1}]
    said = truth.explain_gap(-0.05, 0.02, facts(leaking=45, thresholds=split), SAME)
    assert said == (
        "likely cause: the folds leak: 45 of 900 scored rows are above 0.7 with another fold, "
        "since groups were too large and were split, at up to 0.94"
    )
    said = truth.explain_gap(-0.05, 0.02, facts(leaking=45, given=True), SAME)
    assert said.endswith("since fold_file deals near-duplicates to different folds")


def test_test_prompts_further_from_or_nearer_to_the_training_prompts_are_named():
    further = truth.explain_gap(-0.05, 0.02, facts(), SAME - 0.1)
    assert "test prompts are further from the training prompts" in further
    assert "(mean of the highest similarity 0.500) than out-of-fold prompts are (0.600)" in further
    assert "nearer to" in truth.explain_gap(0.05, 0.02, facts(), SAME + 0.1)
    both = truth.explain_gap(-0.05, 0.02, facts(leaking=45), SAME - 0.1)
    assert "the folds leak" in both and "further from" in both


def test_a_cause_that_would_raise_the_score_does_not_explain_a_lower_one():
    for gap, nearest in ((-0.05, SAME + 0.1), (0.05, SAME - 0.1), (-0.05, SAME + 0.005)):
        said = truth.explain_gap(gap, 0.02, facts(), nearest)
        assert said.startswith("neither leaking folds (0 of 900 scored rows) nor")
    assert "leaking folds (45 of 900" in truth.explain_gap(0.05, 0.02, facts(leaking=45), SAME)


def test_test_prompts_are_compared_with_what_each_fold_s_model_learns_from(rng):
    targets = l2_normalize(rng.standard_normal((60, 8)).astype(np.float32))
    prompts = l2_normalize(rng.standard_normal((20, 8)).astype(np.float32))
    fold = np.arange(60) % 3
    nearest = truth.nearest_to_training(prompts, targets, fold)
    expected = [(prompts @ targets[fold != number].T).max(axis=1) for number in range(3)]
    assert nearest == pytest.approx(np.mean(expected, axis=0), abs=1e-6)


def test_the_recorded_facts_explain_a_gap_from_end_to_end(rng):
    centers = rng.standard_normal((100, 16))
    x = np.repeat(centers, 3, axis=0) + 0.3 * rng.standard_normal((300, 16))
    x = l2_normalize(x.astype(np.float32))
    scan = similarity.scan_pairs(x, 0.999, link=0.7)
    fold = np.arange(300) % 3  # each of three near-duplicates in another fold
    recorded = folds.fold_facts(
        folds.balanced_groups(scan, max_share=1),
        similarity.nearest_across(x, fold),
        scan.stays,
        group_similarity=0.7,
        cosine_threshold=0.999,
        given=True,
    )
    far = l2_normalize(rng.standard_normal((50, 16)).astype(np.float32))
    said = truth.explain_gap(-0.1, 0.02, recorded, truth.nearest_to_training(far, x, fold))
    assert "of 300 scored rows are above 0.7" in said and "further from" in said


def test_one_fold_at_a_time_takes_the_place_of_the_mean_of_folds(tmp_path):
    """Ann and Ben, two folds: only Model A's part of the blend is that of the fold."""
    ids = ["ann", "ben"]
    along_x = np.array([[1, 0, 0], [1, 0, 0]], np.float32)
    along_y = np.array([[0, 1, 0], [0, 1, 0]], np.float32)
    along_z = np.array([[0, 0, 1], [0, 0, 1]], np.float32)
    for fold, rows in enumerate((along_x, along_y)):
        base = tmp_path / paths.FOLD.format(variant="model_a", fold=fold)
        artifacts.save_embeddings(base.with_name(f"{base.name}_test"), ids, rows)
    trained = pl.DataFrame({"variant": ["model_a"] * 2, "fold": [0, 1]})
    artifacts.save_table(tmp_path / paths.TRAINED, trained)

    mean = l2_normalize(along_x + along_y)
    members = {"model_a": mean, "model_b": along_z}
    weights = {"model_a": 3 / 7, "model_b": 4 / 7}
    single = evaluation.by_one_fold(tmp_path, ids, members, weights)
    assert single[0] == pytest.approx(np.tile([0.6, 0, 0.8], (2, 1)), abs=1e-6)
    assert single[1] == pytest.approx(np.tile([0, 0.6, 0.8], (2, 1)), abs=1e-6)
