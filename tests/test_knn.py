"""The search against brute force: lists, ties, blocks, shards, workers, and what it refuses."""

import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from src import knn
from src.metrics import l2_normalize

FOX = 0
OWL = 1
BOAT = 2
FOX_AGAIN = 3
STORE = np.array([[1, 0], [0.6, 0.8], [0, 1], [1, 0]], np.float32)


def random_rows(n, d=16, seed=0):
    return l2_normalize(np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32))


def assert_same(found, expected, store, queries):
    """The same similarities, and the same neighbors up to ties within 1e-6."""
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
    own = np.einsum("qd,qkd->qk", queries, store[found[1]])
    np.testing.assert_allclose(own, expected[0], atol=2e-6)
    assert all(len(set(row)) == len(row) for row in found[1].tolist())


def test_a_toy_by_hand_with_ties_by_index():
    similarity, index = knn.search(STORE, np.array([[1, 0]], np.float32), 4, "faiss")
    assert index.tolist() == [[FOX, FOX_AGAIN, OWL, BOAT]]
    np.testing.assert_allclose(similarity, [[1, 1, 0.6, 0]], atol=1e-6)
    assert similarity.dtype == np.float32 and index.dtype == np.int64


@pytest.mark.parametrize(
    ("store_rows", "query_rows"), [(1000, 1000), (7, 3), (100, 1), (1, 50), (299, 49)]
)
def test_blocked_equals_naive(store_rows, query_rows):
    store = random_rows(300)
    queries = random_rows(50, seed=1)
    similarity, index = knn.search(
        store, queries, 9, "faiss", store_rows=store_rows, query_rows=query_rows
    )
    exact = queries @ store.T
    np.testing.assert_array_equal(index, np.argsort(-exact, axis=1, kind="stable")[:, :9])
    np.testing.assert_allclose(similarity, -np.sort(-exact, axis=1)[:, :9], atol=1e-6)


def test_agrees_with_scikit_learn():
    store = random_rows(200)
    queries = random_rows(20, seed=1)
    distance, expected = (
        NearestNeighbors(n_neighbors=5, metric="cosine", algorithm="brute")
        .fit(store)
        .kneighbors(queries)
    )
    similarity, index = knn.search(store, queries, 5)
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_allclose(similarity, 1 - distance, atol=1e-6)


def test_ties_across_blocks_stand_by_index():
    store = np.repeat(STORE[[FOX]], 10, axis=0)
    _, index = knn.search(store, store[:1], 4, "faiss", store_rows=3)
    assert index.tolist() == [[0, 1, 2, 3]]


def test_shards_half_precision_and_left_out_rows_equal_naive():
    store = random_rows(300).astype(np.float16)
    queries = random_rows(50, seed=1)
    rows = np.random.default_rng(2).random(300) < 0.4
    similarity, index = knn.search(
        [store[:110], store[110:]], queries, 9, "faiss", rows=rows, store_rows=30
    )
    exact = np.where(rows, queries @ l2_normalize(store.astype(np.float32)).T, -np.inf)
    np.testing.assert_array_equal(index, np.argsort(-exact, axis=1, kind="stable")[:, :9])
    np.testing.assert_allclose(similarity, -np.sort(-exact, axis=1)[:, :9], atol=1e-6)


def test_the_store_is_left_as_it_was_and_memory_maps_too(tmp_path):
    store = random_rows(60).astype(np.float16)
    np.save(tmp_path / "store.npy", store)
    mapped = np.load(tmp_path / "store.npy", mmap_mode="r")
    slightly_long = np.float32(1.0005) * random_rows(60)
    kept = slightly_long.copy()
    for x in (mapped, mapped[5:], slightly_long):
        knn.search(x, random_rows(3, seed=1), 4, "faiss", store_rows=7)
    np.testing.assert_array_equal(mapped, store)
    np.testing.assert_array_equal(slightly_long, kept)


def test_centered_keys_equal_naive():
    store = random_rows(90)
    queries = random_rows(5, seed=1)
    center = random_rows(1, seed=2)[0] * np.float32(0.3)
    similarity, index = knn.search(store, queries, 6, "faiss", center=center, store_rows=40)
    exact = queries @ l2_normalize(store - center).T
    np.testing.assert_array_equal(index, np.argsort(-exact, axis=1)[:, :6])
    np.testing.assert_allclose(similarity, -np.sort(-exact, axis=1)[:, :6], atol=1e-6)


def test_rows_of_a_later_block_are_checked_too():
    store = random_rows(30)
    store[21] *= 3
    with pytest.raises(ValueError, match="row 21 has length 3"):
        knn.search(store, store[:1], 2, "faiss", store_rows=10)


def test_no_queries_give_empty_lists():
    similarity, index = knn.search(STORE, STORE[:0], 2, "faiss")
    assert similarity.shape == index.shape == (0, 2)


@pytest.mark.parametrize(
    ("store", "queries", "k", "message"),
    [
        (
            STORE.astype(np.float64),
            STORE,
            1,
            "store must be 2-D float32 or float16, got 2-D float64",
        ),
        (STORE, STORE[0], 1, "queries must be 2-D float32, got 1-D"),
        (STORE, random_rows(3, d=5), 1, "store is 2 wide, queries are 5 wide"),
        (STORE * 2, STORE, 1, "store: 4 of 4 rows are not of unit length .* row 0 has length 2"),
        (
            STORE,
            np.array([[1, 0], [np.nan, 0]], np.float32),
            1,
            "queries: 1 of 2 rows .* row 1 has length nan",
        ),
        (
            [STORE, STORE.astype(np.int8)],
            STORE,
            1,
            "store must be 2-D float32 or float16, got 2-D int8",
        ),
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


def test_what_searched_is_told():
    told = knn.describe("faiss")
    assert (
        told["engine"] == "faiss"
        and told["engine_version"].count(".") == 2
        and told["engine_device"] == "cpu"
    )


# --- many workers ---


@pytest.fixture(scope="module")
def client():
    import dask
    from distributed import Client, LocalCluster

    quick = {"distributed.comm.timeouts.connect": "3s"}  # how long a dead worker is waited for
    two = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with dask.config.set(quick), LocalCluster(**two) as cluster, Client(cluster) as client:
        yield client


def test_two_workers_find_what_one_process_finds(client, tmp_path):
    store = random_rows(5000, 32)
    queries = random_rows(70, 32, seed=1)
    rows = np.random.default_rng(2).random(5000) < 0.7
    expected = knn.search(store, queries, 20, "faiss", rows=rows)
    np.save(tmp_path / "shard.npy", store[:3000])
    on_disk = [np.load(tmp_path / "shard.npy", mmap_mode="r"), store[3000:]]
    for shards in (store, on_disk):
        found = knn.search(shards, queries, 20, "faiss", rows=rows, cluster=client, store_rows=900)
        assert_same(found, expected, store, queries)
        assert rows[found[1]].all()


def test_a_worker_killed_in_the_middle_leaves_the_answer_right(client, tmp_path):
    store = random_rows(60_000, 64)
    queries = random_rows(2000, 64, seed=1)
    expected = knn.search(store, queries, 10, "faiss")
    np.save(tmp_path / "shard.npy", store)
    shard = np.load(tmp_path / "shard.npy", mmap_mode="r")
    found = []
    pids = {worker: facts["pid"] for worker, facts in client.run(worker_facts).items()}
    search = threading.Thread(
        target=lambda: found.append(
            knn.search(
                [shard], queries, 10, "faiss", cluster=client, store_rows=2500, query_rows=64
            )
        )
    )
    search.start()
    victim = busy_worker(client)
    os.kill(pids[victim], signal.SIGKILL)
    search.join(120)
    assert victim not in client.scheduler_info(n_workers=-1)["workers"], "nobody was killed"
    assert_same(found[0], expected, store, queries)


def worker_facts():
    return {"pid": os.getpid()}


def busy_worker(client):
    """The first worker seen with a piece of the store in its hands."""
    for _ in range(3000):
        for worker, keys in client.processing().items():
            if any("_search_piece" in str(key) for key in keys):
                return worker
        time.sleep(0.01)
    raise AssertionError("no worker was ever busy")


def test_where_cuml_is_not_installed_auto_takes_faiss_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuml.neighbors", None)
    name, why = knn.resolve_engine()
    assert name == "faiss" and why.startswith("cuML is not installed (")


def test_masks_and_blocks_of_wrong_sizes_are_refused():
    with pytest.raises(
        ValueError, match=r"rows must be bool of shape \(4,\), got int64 of shape \(3,\)"
    ):
        knn.search(STORE, STORE, 1, "faiss", rows=np.arange(3))
    with pytest.raises(
        ValueError, match="blocks of 0 store rows and 5 queries: both must be at least 1"
    ):
        knn.search(STORE, STORE, 1, "faiss", store_rows=0, query_rows=5)
