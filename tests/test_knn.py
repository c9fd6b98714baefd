import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from src import knn
from src.metrics import unit

FOX, OWL, BOAT, FOX_AGAIN = 0, 1, 2, 3
STORE = np.array([[1, 0], [0.6, 0.8], [0, 1], [1, 0]], np.float32)


def random_rows(n, d=16, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32))


def test_a_toy_by_hand_with_ties_by_index():
    similarity, index = knn.search(STORE, np.array([[1, 0]], np.float32), 4, "faiss")
    assert index.tolist() == [[FOX, FOX_AGAIN, OWL, BOAT]]
    np.testing.assert_allclose(similarity, [[1, 1, 0.6, 0]], atol=1e-6)
    assert similarity.dtype == np.float32 and index.dtype == np.int64


@pytest.mark.parametrize(("store_rows", "query_rows"), [(1000, 1000), (7, 3), (100, 1), (1, 50), (299, 49)])
def test_blocked_equals_naive(store_rows, query_rows):
    store, queries = random_rows(300), random_rows(50, seed=1)
    similarity, index = knn.search(store, queries, 9, "faiss", store_rows=store_rows, query_rows=query_rows)
    exact = queries @ store.T
    np.testing.assert_array_equal(index, np.argsort(-exact, axis=1, kind="stable")[:, :9])
    np.testing.assert_allclose(similarity, -np.sort(-exact, axis=1)[:, :9], atol=1e-6)


def test_agrees_with_scikit_learn():
    store, queries = random_rows(200), random_rows(20, seed=1)
    distance, expected = NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute").fit(store).kneighbors(queries)
    similarity, index = knn.search(store, queries, 5)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_allclose(similarity, 1 - distance, atol=1e-6)


def test_ties_across_blocks_stand_by_index():
    store = np.repeat(STORE[[FOX]], 10, axis=0)
    _, index = knn.search(store, store[:1], 4, "faiss", store_rows=3)
    assert index.tolist() == [[0, 1, 2, 3]]


def test_no_queries_give_empty_lists():
    similarity, index = knn.search(STORE, STORE[:0], 2, "faiss")
    assert similarity.shape == index.shape == (0, 2)


@pytest.mark.parametrize(
    ("store", "queries", "k", "message"),
    [
        (STORE.astype(np.float64), STORE, 1, "store must be 2-D float32, got 2-D float64"),
        (STORE, STORE[0], 1, "queries must be 2-D float32, got 1-D"),
        (STORE, random_rows(3, d=5), 1, "store is 2 wide, queries are 5 wide"),
        (STORE * 2, STORE, 1, "store: 4 of 4 rows are not of unit length .* row 0 has length 2"),
        (STORE, np.array([[1, 0], [np.nan, 0]], np.float32), 1, "queries: 1 of 2 rows .* row 1 has length nan"),
        (STORE, STORE, 0, "k = 0 is not within 1..4"),
        (STORE, STORE, 5, "k = 5 is not within 1..4"),
    ],
)
def test_refuses(store, queries, k, message):
    with pytest.raises(ValueError, match=message):
        knn.search(store, queries, k, "faiss")


def test_refuses_an_unknown_engine():
    with pytest.raises(ValueError, match="'annoy' is not one of"):
        knn.search(STORE, STORE, 1, "annoy")


def test_without_a_gpu_auto_takes_faiss_and_cuml_fails_loudly(monkeypatch):
    cupy = pytest.importorskip("cupy")
    monkeypatch.setattr(cupy.cuda, "is_available", lambda: False)
    assert knn.resolve_engine("auto") == ("faiss", "no GPU that CUDA can use")
    with pytest.raises(RuntimeError, match="engine 'cuml' cannot run: no GPU"):
        knn.search(STORE, STORE, 1, "cuml")
