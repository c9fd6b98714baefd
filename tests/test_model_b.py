import numpy as np
import polars as pl
import pytest

from src import artifacts, model_b, paths
from src.metrics import avg_cos, unit
from src.model_b import TEXT_ONLY

rng = np.random.default_rng(0)
VALUES = unit(rng.standard_normal((40, 6)).astype(np.float32))
SETTINGS = {"delta": 1e-4, "coef": 1e-3}


def lists(q, k, seed=1):
    draw = np.random.default_rng(seed)
    similarity = -np.sort(-draw.uniform(0.1, 0.9, (q, k)), axis=1).astype(np.float32)
    return similarity, np.stack([draw.permutation(len(VALUES))[:k] for _ in range(q)])


def test_distances_by_hand():
    s = np.array([1, 0.5, 0, -1, 1.0000001])
    np.testing.assert_allclose(model_b.distance(s), [0, 1, np.sqrt(2), 2, 0], atol=1e-9)
    np.testing.assert_allclose(model_b.distance(s, "cosine"), [0, 0.5, 1, 2, 0], atol=1e-9)


def test_equation_4_by_hand():
    weight = model_b.weights(np.array([0, 1, 2]), dim=2, delta=0.25, coef=0.5)
    np.testing.assert_allclose(weight, [2, 0.4, 0.5 / 4.25])


def test_an_exact_match_weighs_most_and_stays_finite():
    weight = model_b.weights(np.array([0, 1e-6, 0.01, 0.5]), dim=6, **SETTINGS)
    assert np.isfinite(weight).all() and (np.diff(weight) <= 0).all() and weight[0] == pytest.approx(10)


def test_equation_5_by_hand():
    fox, owl = [1, 0], [0, 1]
    fused = model_b.fuse(np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[fox, owl], [owl, fox]], np.float32))
    np.testing.assert_allclose(fused, [[0.6, 0.8], [0, 1]], atol=1e-7)
    assert fused.dtype == np.float32


def test_neither_coef_nor_the_mean_matters_after_unit_length():
    similarity, index = lists(5, 8)
    one = model_b.fuse_neighbours(similarity, index, VALUES, k=8, dim=4, delta=1e-4, coef=1e-3)
    other = model_b.fuse_neighbours(similarity, index, VALUES, k=8, dim=4, delta=1e-4, coef=50)
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("kind", model_b.KINDS)
@pytest.mark.parametrize("k", [1, 5, 8])
def test_blocked_fusion_equals_naive(kind, k):
    similarity, index = lists(11, 8)
    naive = model_b.fuse(model_b.weights(model_b.distance(similarity[:, :k], kind), 4, **SETTINGS), VALUES[index[:, :k]])
    blocked = model_b.fuse_neighbours(similarity, index, VALUES, k=k, dim=4, kind=kind, rows=3, **SETTINGS)
    np.testing.assert_allclose(blocked, naive, atol=1e-7)


def test_the_grid_scores_what_fusing_scores_and_a_fold_does_not_choose_for_itself():
    similarity, index = lists(300, 8)
    fold = np.arange(300) % 3
    truth = np.where((fold == 0)[:, None], VALUES[index[:, 0]], unit(VALUES[index].sum(axis=1)))  # fold 0 wants k = 1
    tuned = model_b.tune(similarity, index, VALUES, truth, fold, k_grid=[1, 4, 8], dim_grid=[0, 2, 6], **SETTINGS)
    for k, dim, score in tuned.grid.iter_rows():
        predicted = model_b.fuse_neighbours(similarity, index, VALUES, k=k, dim=dim, **SETTINGS)
        assert score == pytest.approx(avg_cos(truth, predicted), abs=1e-5)
    assert (tuned.k, tuned.dim) == tuned.grid.sort("avg_cos")[-1].select("k", "dim").row(0)
    assert tuned.choices.row(0) == (0, 8, 0.0)
    own = model_b.fuse_neighbours(similarity, index, VALUES, k=8, dim=0, **SETTINGS)
    np.testing.assert_array_equal(tuned.prediction[fold == 0], own[fold == 0])


def test_a_fold_sees_neither_itself_nor_text_like_it():
    store_fold = np.array([0, 0, 1, TEXT_ONLY, TEXT_ONLY])
    conflicts = np.array([[0, 0], [0, 0], [0, 0], [1, 0], [0, 0]], bool)
    assert model_b.allowed(store_fold, conflicts, 0).tolist() == [False, False, True, False, True]
    assert model_b.allowed(store_fold, conflicts, 1).tolist() == [True, True, False, True, True]


def test_text_conflicts_equal_naive():
    text, train, fold = VALUES[:25], VALUES[20:], np.arange(20) % 3
    found = model_b.text_conflicts(text, train, fold, 0.5, rows=4)
    naive = np.array([[(t @ train[fold == f].T).max() > 0.5 for f in range(3)] for t in text])
    np.testing.assert_array_equal(found, naive)
    assert found[20:].any(axis=1).all()  # these five prompts are training rows themselves
    assert not found.all()


def test_out_of_fold_search_finds_no_row_of_its_own_fold():
    fold = np.arange(30) % 3
    keys, store_fold = VALUES, np.concatenate([fold, np.full(10, TEXT_ONLY)])
    conflicts = np.zeros((40, 3), bool)
    conflicts[35, 0] = True
    similarity, index = model_b.search_out_of_fold(keys, VALUES[:30], fold, store_fold, conflicts, 12, "faiss")
    assert (store_fold[index] != fold[:, None]).all()
    assert 35 not in index[fold == 0] and 35 in index[fold == 1]
    np.testing.assert_allclose(similarity, np.take_along_axis(VALUES[:30] @ keys.T, index, axis=1), atol=1e-6)


def test_clean_text_drops_empty_doubled_and_known():
    prompts = pl.DataFrame({"prompt": ["A  fox", " ", None, "a fox", "An owl", "a boat"], "source": list("abcdef")})
    assert model_b.clean_text(prompts, pl.Series(["an OWL "]))["source"].to_list() == ["a", "f"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: model_b.distance(np.ones(2), "manhattan"), "'manhattan' is not one of"),
        (lambda: model_b.weights(np.ones(2), 2, 0, 1), "delta = 0"),
        (lambda: model_b.weights(np.array([1, -1]), 2, 1, 1), "1 of 2 distances are negative"),
        (lambda: model_b.fuse(np.ones((2, 3)), np.ones((2, 4, 5))), r"\(2, 3\) do not fit values of shape \(2, 4, 5\)"),
        (lambda: model_b.fuse(np.ones((1, 2)), np.array([[[1, 0], [-1, 0]]])), "1 of 1 rows are zero"),
        (lambda: model_b.fuse_neighbours(*lists(3, 4), VALUES, k=5, dim=2, **SETTINGS), "k = 5 is not within 1..4"),
        (lambda: model_b.allowed(np.zeros(3), np.zeros((4, 2), bool), 0), r"3 store rows, conflicts of shape \(4, 2\)"),
        (lambda: model_b.allowed(np.zeros(3), np.zeros((3, 2), bool), 2), "fold 2"),
        (lambda: model_b.text_conflicts(VALUES, VALUES, np.zeros(3, int), 0.7), "3 folds for 40 training rows"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_refuses_one_fold_and_a_store_too_small():
    with pytest.raises(ValueError, match=r"at least 2 folds, got \[0\]"):
        grids = {"k_grid": [1], "dim_grid": [2]}
        model_b.tune(*lists(4, 3), VALUES, VALUES[:4], np.zeros(4, int), **grids, **SETTINGS)
    with pytest.raises(ValueError, match="fold 0 may see 1 rows of the store, fewer than k = 2"):
        model_b.search_out_of_fold(VALUES[:2], VALUES[:2], np.array([0, 1]), np.array([0, 1]), np.zeros((2, 2), bool), 2)


def test_the_stored_model_predicts_as_the_search_and_fusion_it_was_stored_from(tmp_path):
    rng = np.random.default_rng(0)
    keys, values, queries = (unit(rng.standard_normal((n, d)).astype(np.float32)) for n, d in ((30, 8), (30, 384), (5, 8)))
    store = pl.DataFrame({"id": [f"s{i}" for i in range(30)], "prompt": [f"prompt {i}" for i in range(30)], "source": "toy"})
    artifacts.save_table(tmp_path / paths.STORE, store)
    artifacts.save_embeddings(tmp_path / paths.STORE_KEYS, store["id"].to_list(), keys)
    artifacts.save_embeddings(tmp_path / paths.STORE_VALUES, store["id"].to_list()[::-1], values[::-1])
    settings = {"k": 7, "dim": 4, "delta": 1e-4, "coef": 1e-3, "kind": "cosine"}
    artifacts.save_json(tmp_path / paths.CHOICE_B, {**settings, "avg_cos": 0.5})
    prediction, similarity, index = model_b.load(tmp_path).predict(queries)
    best = np.argsort(-(queries @ keys.T), axis=1)[:, :7]
    assert (index == best).all() and similarity == pytest.approx(np.take_along_axis(queries @ keys.T, best, 1), abs=1e-6)
    expected = model_b.fuse_neighbours(similarity, index, values, **settings)
    assert (prediction == expected).all() and model_b.load(tmp_path).store["prompt"][int(index[0, 0])] == f"prompt {best[0, 0]}"
    with pytest.raises(FileNotFoundError, match="run ./run_all.sh --only 03 first"):
        model_b.load(tmp_path / "none")
