"""Groups and folds: exact on a toy of named rows, and honest on a set that used to flatter."""

import numpy as np
import polars as pl
import pytest
from sklearn.model_selection import GroupKFold

from src import statistics
from src.dedup import folds, similarity
from src.metrics import cosines, l2_normalize
from tests.helpers.fold_rules import nearest_five, one_threshold_for_all


def rows_at(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def clustered(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((n // 3, 16))[rng.integers(n // 3, size=n)]
    return l2_normalize((centers + 0.3 * rng.standard_normal((n, 16))).astype(np.float32))


def chain(steps: int, degrees: float, start: float = 0) -> np.ndarray:
    """Rows on a circle, each `degrees` from the next: one component at the cosine of that."""
    return rows_at(*(start + degrees * step for step in range(steps)))


# --- groups ---


def test_groups_are_chains_of_similar_rows():
    assert folds.groups(rows_at(0, 20, 40, 180), 0.9).tolist() == [0, 0, 0, 1]


def test_a_component_of_the_allowed_size_is_not_split():
    scan = similarity.scan_pairs(rows_at(0, 20, 180, 270), 0.99, link=0.9)
    groups = folds.balanced_groups(scan, max_share=0.5)
    assert groups.label.tolist() == [0, 0, 1, 2] and len(groups) == 3
    assert (groups.threshold == np.float32(0.9)).all()


def test_a_component_that_is_too_large_is_split_inside_itself_and_others_stay():
    # a chain of ten at cos 21.9 degrees = .928, and two pairs at cos 25 degrees = .906
    rows = np.concatenate([chain(10, 21.9), rows_at(250, 275, 300 + 5, 330 + 5 - 5)])
    scan = similarity.scan_pairs(rows, 0.99, link=0.9)
    whole = folds.balanced_groups(scan, max_share=1)
    assert [np.sum(whole.label == g) for g in range(len(whole))] == [10, 2, 2]

    groups = folds.balanced_groups(scan, max_share=0.3)
    assert groups.threshold == pytest.approx([0.94] * 10 + [0.9] * 4)
    assert len(set(groups.label[:10])) == 10, "no pair of the chain is above .94"
    assert groups.label[10] == groups.label[11] != groups.label[12] == groups.label[13]
    table = folds.threshold_table(groups, scan.stays)
    assert table.rows() == [
        (0.9, 2, 4, pytest.approx(4 / 14), 4),
        (0.94, 10, 10, pytest.approx(10 / 14), 10),
    ]


def test_each_part_is_split_only_as_far_as_it_is_too_large():
    # three tight rows, a gap of cos .928, three tight rows, a gap of cos .906, one row
    rows = rows_at(0, 5, 10, 31.9, 36.9, 41.9, 66.9)
    scan = similarity.scan_pairs(rows, 0.999, link=0.9)
    groups = folds.balanced_groups(scan, max_share=0.5)
    assert groups.label.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert groups.threshold == pytest.approx([0.94] * 6 + [0.92])


def test_no_row_is_nearer_to_another_group_than_its_own_was_formed_at():
    x = clustered(900, seed=3)
    x = l2_normalize(x + 0.9 * x[0])  # one large component
    scan = similarity.scan_pairs(x, 0.97, link=0.7)
    groups = folds.balanced_groups(scan, max_share=0.05)
    kept = np.bincount(groups.label, weights=scan.stays)
    assert kept.max() <= 0.05 * scan.stays.sum() and len(set(groups.threshold)) > 3
    nearest = similarity.nearest_across(x, groups.label)
    assert (nearest <= groups.threshold + folds.ROUNDING).all()
    assert (nearest > 0.7).any(), "splitting leaks, and the threshold says how far"
    assert all(groups.label[row] == groups.label[scan.keeper[row]] for row in range(900))


def test_size_counts_the_rows_that_filter_2_keeps():
    # two prompts at cos 21.9 degrees = .928 with 25 copies each, and four rows of other prompts
    copies = np.repeat(rows_at(0, 21.9), 25, axis=0)
    rows = np.concatenate([copies, rows_at(90, 115, 180, 270)])
    scan = similarity.scan_pairs(rows, 0.95, link=0.9)
    assert scan.stays.sum() == 6
    groups = folds.balanced_groups(scan, max_share=0.4)
    assert groups.label.tolist() == [0] * 50 + [1, 1, 2, 3], "2 of 6 kept rows, 50 of 54 rows"
    assert (groups.threshold == np.float32(0.9)).all()


def test_what_equal_images_tie_together_is_not_split_and_said_loudly():
    rows = rows_at(0, 90, 180, 270)
    scan = similarity.scan_pairs(rows, 0.85, link=0.7)
    links = folds.same_value_pairs(["a", "a", "a", "b"])
    groups = folds.balanced_groups(scan, max_share=0.5, links=links)
    assert groups.label.tolist() == [0, 0, 0, 1]
    assert (groups.threshold == np.float32(0.7)).all(), "no threshold would divide it"
    said = folds.grouping_warning(groups, scan.stays, cosine_threshold=0.85, max_share=0.5)
    assert said.startswith("WARNING: 1 groups hold more than 50% of the 4 kept rows, the largest 3")


def test_rows_grouped_above_the_cosine_threshold_are_said_loudly_and_only_they():
    rows = np.concatenate([chain(10, 21.9), rows_at(280)])
    scan = similarity.scan_pairs(rows, 0.99, link=0.7)
    groups = folds.balanced_groups(scan, max_share=0.3)
    said = folds.grouping_warning(groups, scan.stays, cosine_threshold=0.85, max_share=0.3)
    assert "WARNING: 10 of 11 rows (10 of 11 kept) are grouped at up to 0.94, above" in said
    assert folds.grouping_warning(groups, scan.stays, cosine_threshold=0.95, max_share=0.3) == ""


def test_equal_prompts_and_equal_images_share_a_group():
    scan = similarity.scan_pairs(rows_at(0, 90, 180, 270), 0.85, link=0.7)
    links = folds.same_value_pairs(
        ["fox", "owl", "fox", "cat"], ["1.png", "2.png", "3.png", "2.png"]
    )
    assert folds.balanced_groups(scan, max_share=1, links=links).label.tolist() == [0, 1, 0, 1]
    assert [part.dtype for part in folds.same_value_pairs([])] == [np.int64, np.int64], (
        "no rows have no pairs, but pairs of numbers"
    )


# --- a set that used to flatter ---

THEMES = 400
HELD_OUT_THEMES = 60


def themed(rng: np.random.Generator, n_themes: int, common: np.ndarray) -> np.ndarray:
    """Eight unit rows to a theme: similarity .75 to .8 within it, below .5 to other themes."""
    centers = l2_normalize(rng.standard_normal((n_themes, len(common))) + common)
    centers = np.repeat(centers, 8, axis=0)
    own = rng.standard_normal(centers.shape)
    own -= np.einsum("nd,nd->n", own, centers)[:, None] * centers
    return (np.sqrt(0.775) * centers + np.sqrt(0.225) * l2_normalize(own)).astype(np.float32)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_out_of_fold_agrees_with_held_out_themes_where_one_prompt_has_a_thousand_copies(seed):
    rng = np.random.default_rng(seed)
    common = 0.6 * rng.standard_normal(384)
    copies = np.repeat(themed(rng, 1, common)[:1], 1000, axis=0)
    targets = np.concatenate([copies, themed(rng, THEMES, common)[:3000]])
    held_out = themed(rng, HELD_OUT_THEMES, common)
    images = l2_normalize(targets + 0.06 * rng.standard_normal(targets.shape)).astype(np.float32)
    noise = 0.06 * rng.standard_normal(held_out.shape)
    held_out_images = l2_normalize(held_out + noise).astype(np.float32)

    scan = similarity.scan_pairs(targets, 0.85, link=0.7)
    kept = np.flatnonzero(scan.stays)
    assert len(kept) == 3001, "a thousand copies are one kept row, and no theme is a duplicate"

    def scores(fold: np.ndarray, label: np.ndarray) -> tuple[statistics.Interval, ...]:
        """Avg-Cos out-of-fold, and of the same three models on the held-out themes."""
        inside = np.empty(len(kept), np.float32)
        outside = np.zeros(len(held_out), np.float32)
        for number in range(3):
            mine = fold[kept] == number
            learned = kept[~mine]
            rows = images[kept[mine]]
            predicted = nearest_five(rows, images[learned], targets[learned])
            inside[mine] = cosines(targets[kept[mine]], predicted)
            predicted = nearest_five(held_out_images, images[learned], targets[learned])
            outside += cosines(held_out, predicted) / 3
        theme = np.repeat(np.arange(HELD_OUT_THEMES), 8)
        return (
            statistics.bootstrap(inside, groups=label[kept]),
            statistics.bootstrap(outside, groups=theme),
        )

    before, _ = one_threshold_for_all(scan, 0.1)
    out_of_fold, held = scores(folds.folds(before, 3), before)
    assert out_of_fold.low > held.high + 0.3, f"{out_of_fold} out-of-fold, {held} held out"

    groups = folds.balanced_groups(scan, max_share=0.1)
    assert (groups.threshold == np.float32(0.7)).all() and len(groups) == THEMES - 24
    fold = folds.folds(groups.label, 3, scan.stays)
    assert np.ptp(np.bincount(fold[kept])) <= 8, "the copies do not fill a fold"
    out_of_fold, held = scores(fold, groups.label)
    assert out_of_fold.low <= held.high and held.low <= out_of_fold.high, f"{out_of_fold}, {held}"


# --- folds ---


def test_folds_never_split_a_group_and_a_planted_leak_is_seen():
    x = clustered(300)
    label = folds.groups(x, 0.8)
    fold = folds.folds(label, 3)
    assert all(len(set(fold[label == g])) == 1 for g in set(label))
    assert similarity.nearest_across(x, fold).max() <= 0.8
    i, j = np.argwhere(np.triu(x @ x.T, 1) > 0.8)[0]
    fold[i] = (fold[j] + 1) % 3
    assert similarity.nearest_across(x, fold).max() > 0.8
    assert sorted(folds.folds(np.array([0, 1, 2]), 3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="2 groups cannot fill 3 folds"):
        folds.folds(np.array([0, 0, 1]), 3)


def test_folds_are_those_of_group_k_fold_where_kept_rows_come_out_even():
    rng = np.random.default_rng(0)
    group = rng.integers(80, size=600)
    kept = rng.random(600) < 0.7
    fold = folds.folds(group, 5, kept)
    for number, (_, held_out) in enumerate(GroupKFold(5).split(group, groups=group)):
        assert (np.flatnonzero(fold == number) == held_out).all()


def test_a_prompt_with_many_copies_does_not_fill_a_fold():
    group = np.concatenate([np.zeros(60, int), np.arange(1, 91)])
    kept = np.concatenate([[True], np.zeros(59, bool), np.ones(90, bool)])
    by_rows = folds.folds(group, 3)
    assert np.bincount(by_rows).tolist() == [60, 45, 45]
    by_kept = folds.folds(group, 3, kept)
    assert sorted(np.bincount(by_kept[kept])) == [30, 30, 31]
    assert len(set(by_kept[group == 0])) == 1


def test_an_id_with_leading_zeros_is_no_number(tmp_path):
    (tmp_path / "folds.csv").write_text("id,fold\n0012,1\n12,0\n7,0\n")
    fold = folds.given_folds(tmp_path / "folds.csv", ["0012", "12", "7"], np.array([0, 1, 2]))
    assert fold.tolist() == [1, 0, 0]


def test_a_given_fold_file_is_honoured(tmp_path):
    pl.DataFrame({"id": ["a", "b", "c", "gone"], "fold": [1, 0, 1, 0]}).write_csv(
        tmp_path / "folds.csv"
    )
    fold = folds.given_folds(
        tmp_path / "folds.csv", ["a", "b", "c", "d", "e"], np.array([0, 1, 2, 2, 3])
    )
    assert fold.tolist() == [1, 0, 1, 1, 0], "d follows its group, e fills the smallest fold"
    with pytest.raises(ValueError, match="none of its 4 ids"):
        folds.given_folds(tmp_path / "folds.csv", ["x"], np.array([0]))
    pl.DataFrame({"id": ["a", "b"], "fold": [1, 3]}).write_parquet(tmp_path / "folds.parquet")
    with pytest.raises(ValueError, match="folds must be 0, 1, ..."):
        folds.given_folds(tmp_path / "folds.parquet", ["a", "b"], np.array([0, 1]))


def test_rows_that_a_fold_file_does_not_name_go_where_their_group_is_first_or_fewest_are(tmp_path):
    pl.DataFrame({"id": [1, 2, 3], "fold": [1, 0, 0]}).write_csv(tmp_path / "folds.csv")
    ids = ["1", "2", "3", "new", "x", "y", "z"]
    fold = folds.given_folds(tmp_path / "folds.csv", ids, np.array([5, 5, 6, 5, 7, 8, 7]))
    assert fold.tolist() == [1, 0, 0, 1, 0, 1, 0], (
        "new follows the first of its group, x and y fill what is smaller, z follows x"
    )
    assert fold.dtype == np.int64
    pl.DataFrame({"id": ["1", "2"], "fold": [0, 0]}).write_csv(tmp_path / "one.csv")
    assert folds.given_folds(tmp_path / "one.csv", ["1", "2"], np.array([0, 1])).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"id": ["a"], "part": [0]},
            r"folds.csv has no column fold; there are \['id', 'part'\]",
        ),
        ({"id": ["a", "a"], "fold": [0, 1]}, r"each id named once; folds are \[0, 1\]"),
        ({"id": ["a", "b"], "fold": ["0", "one"]}, r"folds are \[None, 0\]"),
    ],
)
def test_a_fold_file_of_another_form_is_refused(tmp_path, table, message):
    pl.DataFrame(table).write_csv(tmp_path / "folds.csv")
    with pytest.raises(ValueError, match=message):
        folds.given_folds(tmp_path / "folds.csv", ["a", "b"], np.array([0, 1]))


# --- the leak table ---


def test_the_leak_table_is_the_naive_one():
    x = clustered(200)
    rng = np.random.default_rng(0)
    fold = rng.integers(3, size=200)
    kept = rng.random(200) < 0.5
    nearest = similarity.nearest_across(x, fold)
    table = folds.leaks(nearest, fold, kept, threshold=0.8)
    across = np.where(fold[:, None] == fold, -1, x @ x.T).max(axis=1)
    assert table["fold"].to_list() == [0, 1, 2]
    assert table["rows"].to_list() == np.bincount(fold).tolist()
    for number, row in enumerate(table.to_dicts()):
        mine = across[fold == number]
        assert row["highest"] == pytest.approx(mine.max(), abs=1e-6)
        assert row["mean_highest"] == pytest.approx(mine.mean(), abs=1e-6)
        assert row["above"] == (mine > 0.8).sum() > 10
        assert row["kept_above"] == (across[(fold == number) & kept] > 0.8).sum()


def test_what_is_recorded_about_the_folds_counts_scored_rows_that_leak():
    x = rows_at(0, 20, 21, 180)
    scan = similarity.scan_pairs(x, 0.99, link=0.7)
    groups = folds.balanced_groups(scan, max_share=1)
    across = similarity.nearest_across(x, np.array([0, 1, 1, 0]))
    facts = folds.fold_facts(
        groups, across, scan.stays, group_similarity=0.7, cosine_threshold=0.99, given=True
    )
    assert scan.stays.tolist() == [True, True, False, True] and facts["kept"] == 3
    assert facts["leaking"] == 2, "0 and 20 degrees are scored and apart; 21 is not scored"
    assert facts["thresholds"] == [
        {"similarity": 0.7, "groups": 2, "rows": 4, "share": 1.0, "kept": 3}
    ]
    expected = np.array([np.cos(np.deg2rad(20))] * 2 + [np.cos(np.deg2rad(159))])
    assert facts["nearest_mean"] == pytest.approx(expected.mean(), abs=1e-6)
    assert facts["nearest_sd"] == pytest.approx(expected.std(), abs=1e-6)
