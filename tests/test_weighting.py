"""Weights of neighbors: equations 4 and 5 by hand, blocks against naive, and tuning by folds."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from src.metrics import avg_cos, l2_normalize
from src.model_b import weighting
from src.model_b.weighting import (
    PRESETS,
    Weighting,
    choices_at_edge,
    distance,
    fuse,
    fuse_neighbors,
    merge_weighted,
    tune,
    weights,
)
from tests.helpers.toy_library import VALUES, lists, take

OUTSIDE = Weighting(dim=4, delta=1e-4, coef=1e-3)


def small_blocks(monkeypatch):
    """Let the toy lists take many blocks, and a block many parts."""
    monkeypatch.setitem(weighting.BLOCK_NEIGHBORS, "cpu", 40)
    monkeypatch.setitem(weighting.PART_BYTES, "cpu", 400)


# --- equations 4 and 5 ---


def test_distances_by_hand():
    s = np.array([1, 0.5, 0, -1, 1.0000001])
    np.testing.assert_allclose(distance(s), [0, 1, np.sqrt(2), 2, 0], atol=1e-9)
    np.testing.assert_allclose(distance(s, "cosine"), [0, 0.5, 1, 2, 0], atol=1e-9)


def test_equation_4_by_hand():
    weight = weights(np.array([0, 1, 2]), dim=2, delta=0.25, coef=0.5)
    np.testing.assert_allclose(weight, [2, 0.4, 0.5 / 4.25])
    inside = weights(np.array([0, 1, 2]), dim=2, delta=0.5, coef=0.5, inside=True)
    np.testing.assert_allclose(inside, [np.inf, 0.5, 0.5 / 2**2.5])


def test_an_exact_match_weighs_most_and_stays_finite():
    weight = weights(np.array([0, 1e-6, 0.01, 0.5]), dim=6, delta=1e-4, coef=1e-3)
    assert (
        np.isfinite(weight).all()
        and (np.diff(weight) <= 0).all()
        and weight[0] == pytest.approx(10)
    )


def test_the_public_formula_on_a_hand_made_case():
    """K = 3, 1 - cos = 0.5, 0.6, 0.8: 0.001 / (0.015625 + 0.0001), / (0.046656 + 0.0001), /
    (0.262144 + 0.0001).
    """
    fox, owl, boat = np.eye(3, dtype=np.float32)
    expected = np.array([0.0635930048, 0.0213876294, 0.0038132427])
    _, public = PRESETS["public"]
    similarity = np.array([[0.5, 0.4, 0.2]])
    np.testing.assert_allclose(public(similarity), [expected], rtol=1e-6)
    fused = fuse_neighbors(
        similarity, np.array([[0, 1, 2]]), np.stack([fox, owl, boat]).__getitem__, public, k=3
    )
    np.testing.assert_allclose(fused[0], expected / np.sqrt((expected**2).sum()), atol=1e-6)


def test_delta_inside_gives_an_exact_match_everything_and_outside_does_not():
    similarity = np.array([[1.0, 1.0, 0.5]])
    index = np.array([[0, 1, 2]])
    values = np.eye(3, dtype=np.float32)
    _, paper = PRESETS["paper"]
    assert np.isinf(paper(similarity)[0, :2]).all()
    fused = fuse_neighbors(similarity, index, values.__getitem__, paper, k=3)
    np.testing.assert_allclose(fused, [[np.sqrt(0.5), np.sqrt(0.5), 0]], atol=1e-7)
    outside = fuse_neighbors(similarity, index, values.__getitem__, Weighting(), k=3)
    assert 0 < outside[0, 2] < 1e-3


def test_temperature_by_hand():
    weight = Weighting(tau=0.1)(np.array([[0.5, 0.4]]))
    np.testing.assert_allclose(weight / weight.sum(), [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))]])


def test_the_paper_s_and_the_public_constants():
    assert PRESETS["paper"] == (
        100,
        Weighting(dim=6, delta=1e-4, coef=1e-3, kind="euclidean", inside=True),
    )
    assert PRESETS["public"] == (
        100,
        Weighting(dim=6, delta=1e-4, coef=1e-3, kind="cosine", inside=False),
    )
    similarity = np.array([[0.98, 0.5]])  # d = 0.2 and 1
    np.testing.assert_allclose(
        Weighting()(similarity), [[1e-3 / (0.2**6 + 1e-4), 1e-3 / (1 + 1e-4)]], rtol=1e-6
    )
    assert [str(w) for w in (Weighting(), Weighting(dim=2.5), Weighting(tau=0.1))] == [
        "dim 6",
        "dim 2.5",
        "tau 0.1",
    ]


def test_no_queries_have_no_predictions():
    none = np.empty((0, 4), np.float32), np.empty((0, 4), np.int64)
    assert fuse_neighbors(*none, take, OUTSIDE, k=2).shape == (0, 6)
    index, weight = merge_weighted([none[1]], [none[0]], 3)
    assert index.shape == weight.shape == (0, 3)


def test_equation_5_by_hand():
    fox = [1, 0]
    owl = [0, 1]
    fused = fuse(np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[fox, owl], [owl, fox]], np.float32))
    np.testing.assert_allclose(fused, [[0.6, 0.8], [0, 1]], atol=1e-7)
    assert fused.dtype == np.float32
    far_apart = fuse(
        np.array([[3e30, 4e30], [3e-30, 4e-30]]), np.array([[fox, owl]] * 2, np.float32)
    )
    np.testing.assert_allclose(far_apart, [[0.6, 0.8]] * 2, atol=1e-7)


def test_coef_does_not_matter_after_unit_length():
    one, other = (
        fuse_neighbors(*lists(5, 8), take, Weighting(dim=4, coef=coef), k=8) for coef in (1e-3, 50)
    )
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    "given",
    [OUTSIDE, Weighting(kind="cosine"), Weighting(inside=True), Weighting(tau=0.1)],
    ids=str,
)
@pytest.mark.parametrize("k", [1, 5, 8])
def test_blocked_fusion_equals_naive(given, k, monkeypatch):
    small_blocks(monkeypatch)
    similarity, index = lists(11, 8)
    weight = given(similarity[:, :k])
    naive = l2_normalize(sum(weight[:, [j]] * VALUES[index[:, j]] for j in range(k)))
    np.testing.assert_allclose(
        fuse_neighbors(similarity, index, take, given, k=k), naive, atol=1e-6
    )


# --- tuning ---


def test_the_grid_scores_what_fusing_scores_and_a_fold_does_not_choose_for_itself(monkeypatch):
    small_blocks(monkeypatch)
    similarity, index = lists(300, 8)
    fold = np.arange(300) % 3
    truth = np.where(
        (fold == 0)[:, None], VALUES[index[:, 0]], l2_normalize(VALUES[index].sum(axis=1))
    )  # fold 0 wants k = 1
    weightings = [Weighting(dim=0), Weighting(dim=2), Weighting(dim=6), Weighting(tau=0.1)]
    tuned = tune(similarity, index, take, truth, fold, k_grid=[8, 1, 4], weightings=weightings)
    by_name = {str(w): w for w in weightings}
    for k, name, score in tuned.grid.iter_rows():
        predicted = fuse_neighbors(similarity, index, take, by_name[name], k=k)
        assert score == pytest.approx(avg_cos(truth, predicted), abs=1e-5)
    assert (tuned.k, str(tuned.weighting)) == tuned.grid.sort("avg_cos")[-1].select(
        "k", "weighting"
    ).row(0)
    assert tuned.choices.row(0) == (0, 8, "dim 0")
    own = fuse_neighbors(similarity, index, take, Weighting(dim=0), k=8)
    np.testing.assert_allclose(tuned.prediction[fold == 0], own[fold == 0], atol=1e-6)
    assert choices_at_edge(tuned, [8, 1, 4], weightings)[0] == f"K = {tuned.k}"


def test_the_grid_s_scores_are_those_of_the_formula_in_float64(monkeypatch):
    small_blocks(monkeypatch)
    similarity, index = lists(60, 8)
    truth = VALUES[index[:, 2]]
    every = [Weighting(dim=2), Weighting(dim=48), Weighting(inside=True), Weighting(tau=0.05)]
    fold = np.arange(60) % 3
    tuned = tune(similarity, index, take, truth, fold, k_grid=[2, 5, 8], weightings=every)

    expected = []
    for k in (2, 5, 8):
        for one in every:
            weight = one(similarity[:, :k])
            fused = np.einsum("qk,qkd->qd", weight, VALUES[index[:, :k]].astype(np.float64))
            fused /= np.linalg.norm(fused, axis=1, keepdims=True)
            expected.append((fused * truth).sum(axis=1).mean())
    np.testing.assert_allclose(tuned.grid["avg_cos"], expected, atol=2e-6)


def test_tuning_for_a_gpu_computes_there_alone(monkeypatch):
    """torch's fake tensors have shapes and devices, no data: an operation across devices fails."""
    from torch._subclasses import FakeTensorMode

    read = []

    def on_host(tensor):
        assert tensor.device.type == "cpu"
        read.append(tuple(tensor.shape))
        return np.full(tuple(tensor.shape), 0.5, np.float32)

    monkeypatch.setattr(torch.Tensor, "numpy", on_host)
    monkeypatch.setitem(weighting.BLOCK_NEIGHBORS, "cuda", 160)
    similarity, index = lists(60, 8)
    truth = VALUES[index[:, 0]]
    fold = np.arange(60) % 3
    grids = {"k_grid": [3, 8], "weightings": [OUTSIDE, Weighting(tau=0.1)]}
    with FakeTensorMode():
        tuned = tune(similarity, index, take, truth, fold, **grids, device="cuda")
    assert read[:3] == [(20, 2, 2)] * 3
    assert tuned.prediction.shape == (60, 6)


def test_a_grid_of_one_predicts_every_row_the_same_way():
    similarity, index = lists(300, 8)
    fold = np.arange(300) % 3
    truth = VALUES[index[:, 0]]
    tuned = tune(similarity, index, take, truth, fold, k_grid=[3], weightings=[OUTSIDE])
    assert (tuned.k, tuned.weighting) == (3, OUTSIDE) and tuned.choices.rows() == [
        (f, 3, "dim 4") for f in range(3)
    ]
    expected = fuse_neighbors(similarity, index, take, OUTSIDE, k=3)
    np.testing.assert_allclose(tuned.prediction, expected, atol=1e-6)
    np.testing.assert_allclose(tuned.final, expected, atol=1e-6)
    assert choices_at_edge(tuned, [3], [OUTSIDE]) == []


def test_choices_at_the_end_of_their_grid_are_named():
    sharp = Weighting(tau=0.1)
    soft = Weighting(tau=0.3)
    grid = [Weighting(dim=2), Weighting(dim=4), Weighting(dim=6), sharp, Weighting(tau=0.2), soft]
    edges = [
        choices_at_edge(SimpleNamespace(k=k, weighting=w), [1, 5, 9], grid)
        for k, w in ((5, grid[1]), (9, grid[0]), (1, grid[2]), (5, sharp), (5, grid[4]), (5, soft))
    ]
    assert edges == [[], ["K = 9", "dim 2"], ["K = 1", "dim 6"], ["tau 0.1"], [], ["tau 0.3"]]
    assert choices_at_edge(SimpleNamespace(k=5, weighting=sharp), [5, 9], [*grid[:3], sharp]) == [
        "K = 5"
    ], "one tau has no ends"
    assert choices_at_edge(SimpleNamespace(k=5, weighting=soft), [5], [sharp, soft]) == ["tau 0.3"]


# --- refusals ---


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distance(np.ones(2), "manhattan"), "'manhattan' is not one of"),
        (lambda: weights(np.ones(2), 2, 0, 1), "delta = 0"),
        (
            lambda: weights(np.ones(2), 2, 1, 0),
            "dim = 2, delta = 1, coef = 0: delta and coef must be positive",
        ),
        (lambda: weights(np.ones(2), -1, 1, 1), "dim at least 0"),
        (lambda: weights(np.array([1, -1]), 2, 1, 1), "1 of 2 distances are negative"),
        (lambda: Weighting(tau=0)(np.ones((1, 2))), "tau = 0 must be positive"),
        (
            lambda: fuse(np.ones((2, 3)), np.ones((2, 4, 5))),
            r"\(2, 3\) do not fit values of shape \(2, 4, 5\)",
        ),
        (
            lambda: fuse(np.ones((1, 2)), np.array([[[1, 0], [-1, 0]]])),
            "1 of 1 rows are zero",
        ),
        (
            lambda: fuse(np.ones((2, 4)), np.ones((2, 4))),
            r"do not fit values of shape \(2, 4\)",
        ),
        (
            lambda: fuse_neighbors(*lists(3, 4), take, OUTSIDE, k=5),
            "k = 5 is not within 1..4",
        ),
        (
            lambda: fuse_neighbors(*lists(3, 4), take, OUTSIDE, k=0),
            "k = 0 is not within 1..4",
        ),
        (
            lambda: fuse_neighbors(np.ones((3, 4)), np.ones((3, 5)), take, OUTSIDE, k=1),
            r"\(3, 4\), index \(3, 5\)",
        ),
        (
            lambda: fuse_neighbors(np.ones(3), np.ones(3), take, OUTSIDE, k=1),
            r"both must be \(q, K\)",
        ),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_refuses_one_fold():
    with pytest.raises(ValueError, match=r"at least 2 folds, got \[0\]"):
        tune(*lists(4, 3), take, VALUES[:4], np.zeros(4, int), k_grid=[1], weightings=[OUTSIDE])
