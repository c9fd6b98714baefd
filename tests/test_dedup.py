"""The filters, groups and folds: exact on a toy of named rows, and blocked equals naive."""

import numpy as np
import polars as pl
import pytest

from src import dedup


def rows_at(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def clustered(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n // 3, 16))[rng.integers(n // 3, size=n)] + 0.3 * rng.standard_normal((n, 16))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def naive_filter(x: np.ndarray, threshold: float) -> np.ndarray:
    kept, keeper = [], []
    for i in range(len(x)):
        near = [(float(x[i] @ x[j]), j) for j in kept if x[i] @ x[j] > threshold]
        keeper.append(max(near)[1] if near else i)
        kept += [] if near else [i]
    return np.array(keeper)


def test_filter_keeps_one_of_a_cluster_and_names_the_keeper():
    # 0 and 20 degrees are near (cos .94), 40 is near 20 but not 0, so it stays once 20 is gone
    keeper, similarity = dedup.cosine_filter(rows_at(0, 20, 40, 180), 0.85)
    assert keeper.tolist() == [0, 0, 2, 3]
    assert similarity == pytest.approx([1, np.cos(np.deg2rad(20)), 1, 1], abs=1e-6)


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_filter_is_the_same_for_every_block_size(block):
    x = clustered(300)
    keeper, similarity = dedup.cosine_filter(x, 0.85, block=block)
    assert (keeper == naive_filter(x, 0.85)).all()
    removed = np.flatnonzero(keeper != np.arange(len(x)))
    assert len(removed) > 50
    assert (keeper[keeper[removed]] == keeper[removed]).all()
    assert np.einsum("nd,nd->n", x[removed], x[keeper[removed]]) == pytest.approx(similarity[removed], abs=1e-6)
    kept = x[keeper == np.arange(len(x))]
    assert (kept @ kept.T - 2 * np.eye(len(kept))).max() <= 0.85


def test_filter_refuses_rows_that_are_not_unit_length_or_a_threshold_that_is_no_cosine():
    with pytest.raises(ValueError, match="1 of 2 rows are not of unit length, e.g. row 1"):
        dedup.cosine_filter(np.array([[1, 0], [2, 0]], np.float32), 0.85)
    with pytest.raises(ValueError, match="float64"):
        dedup.cosine_filter(np.eye(2), 0.85)
    with pytest.raises(ValueError, match="got 85"):
        dedup.cosine_filter(rows_at(0, 1), 85)


def test_rules_give_each_prompt_its_first_reason():
    prompts = pl.Series(["a red fox", "A  red FOX ", "fox", " ", "a very long prompt about a fox", "a ｒed fox"])
    reason = dedup.rules(prompts, min_words=2, max_tokens=10, edge_characters=0, n_tokens=np.array([5, 5, 3, 2, 99, 5]))
    assert reason.to_list() == [None, "exact duplicate", "fewer than 2 words", "empty", "more than 10 tokens", "exact duplicate"]


def test_rules_can_drop_equal_openings_as_the_public_recipe_does():
    prompts = pl.Series(["a painting of a fox, oil", "a painting of a cat, ink", "one dog in the rain, oil"])
    tokens = np.full(3, 5)
    assert dedup.rules(prompts, min_words=1, max_tokens=9, edge_characters=0, n_tokens=tokens).null_count() == 3
    reasons = dedup.rules(prompts, min_words=1, max_tokens=9, edge_characters=5, n_tokens=tokens).to_list()
    assert reasons == [None, "opening seen before", "ending seen before"]


def test_groups_are_chains_of_similar_rows():
    assert dedup.groups(rows_at(0, 20, 40, 180), 0.9).tolist() == [0, 0, 0, 1]
    x = clustered(200)
    i, j, similarity = dedup.edges(x, 0.8, block=17)
    full = np.triu(x @ x.T, 1)
    assert sorted(zip(i, j, strict=True)) == sorted(zip(*np.nonzero(full > 0.8), strict=True))
    assert similarity == pytest.approx(full[i, j], abs=1e-6)


def test_a_giant_group_raises_the_threshold_but_keeps_removed_rows_with_their_keeper():
    x = rows_at(0, 20, 40, 60, 80, 81)
    keeper = np.array([0, 1, 2, 3, 4, 4])
    label, used = dedup.balanced_groups(x, keeper, threshold=0.9, max_share=0.4)
    assert used > np.cos(np.deg2rad(20)) - 0.02 and label[4] == label[5] and len(set(label)) == 5


def test_folds_never_split_a_group_and_a_planted_leak_is_seen():
    x = clustered(300)
    label = dedup.groups(x, 0.8)
    fold = dedup.folds(label, 3)
    assert all(len(set(fold[label == g])) == 1 for g in set(label))
    assert dedup.leaks(x, fold)["highest"].max() <= 0.8
    i, j, _ = dedup.edges(x, 0.8)
    fold[i[0]] = (fold[j[0]] + 1) % 3
    assert dedup.leaks(x, fold)["highest"].max() > 0.8
    with pytest.raises(ValueError, match="2 groups cannot fill 3 folds"):
        dedup.folds(np.array([0, 0, 1]), 3)


def test_keepers_reach_rows_outside_the_filter():
    x = rows_at(0, 90, 2, 88)
    keeper, similarity = dedup.extend_keepers(x, np.array([0, 1]), np.array([0, 1]), np.ones(2, np.float32))
    assert keeper.tolist() == [0, 1, 0, 1]
    assert similarity[2:] == pytest.approx(np.cos(np.deg2rad([2, 2])), abs=1e-6)


def test_nearest_other_leaves_the_row_itself_out():
    assert dedup.nearest_other(rows_at(0, 10, 90), block=2) == pytest.approx(np.cos(np.deg2rad([10, 10, 80])), abs=1e-6)
