"""cuML's and cuVS's own calls, autospecced, with NumPy's arithmetic behind them: no GPU needed."""

import inspect
import weakref
from types import SimpleNamespace
from unittest.mock import create_autospec

import numpy as np
import pytest
import sklearn.neighbors

from src import knn
from src.knn import gpu
from src.metrics import l2_normalize

pytest.importorskip("cuml.neighbors")
pytest.importorskip("cuvs.neighbors")
import cuml.neighbors
import cupy
from cuvs.distance import DISTANCE_TYPES
from cuvs.neighbors import brute_force

from tests.helpers import fake_device
from tests.helpers.fake_device import OnDevice

RealNearestNeighbors = cuml.neighbors.NearestNeighbors
real_build = brute_force.build
real_search = brute_force.search


def random_rows(n: int, seed: int, dim: int = 16) -> np.ndarray:
    draw = np.random.default_rng(seed).standard_normal((n, dim))
    return l2_normalize(draw.astype(np.float32))


def near_duplicates(n: int, seed: int, spread: float = 3e-3) -> np.ndarray:
    """Unit rows so close around five centers that float16 cannot tell most of them apart."""
    random = np.random.default_rng(seed)
    centers = random_rows(5, 99)[random.integers(5, size=n)]
    return l2_normalize(centers + spread * random.standard_normal((n, 16)).astype(np.float32))


STORE = random_rows(300, 0)
QUERIES = random_rows(50, 1)


@pytest.fixture
def device(monkeypatch):
    """Both libraries where the engines find them, on a machine that seems to have a GPU."""
    fake_device.install(monkeypatch)
    nearest_neighbors = create_autospec(RealNearestNeighbors, side_effect=cuml_on_scikit_learn)
    monkeypatch.setattr(cuml.neighbors, "NearestNeighbors", nearest_neighbors)
    build = create_autospec(real_build, side_effect=cuvs_build)
    search = create_autospec(real_search, side_effect=cuvs_search)
    monkeypatch.setattr(brute_force, "build", build)
    monkeypatch.setattr(brute_force, "search", search)
    gpu.check_engine.cache_clear()
    yield SimpleNamespace(nearest_neighbors=nearest_neighbors, build=build, search=search)
    gpu.check_engine.cache_clear()


def on_device(x: np.ndarray, dtype: type) -> bool:
    return isinstance(x, OnDevice) and x.dtype == dtype and x.flags.c_contiguous


def cuml_on_scikit_learn(*, n_neighbors, algorithm, metric, output_type):
    RealNearestNeighbors(
        n_neighbors=n_neighbors, algorithm=algorithm, metric=metric, output_type=output_type
    )
    if metric not in cuml.neighbors.VALID_METRICS[algorithm]:
        raise ValueError(f"metric {metric!r} is not valid for {algorithm!r}")
    reference = sklearn.neighbors.NearestNeighbors(
        n_neighbors=n_neighbors, algorithm="brute", metric=metric
    )
    model = create_autospec(RealNearestNeighbors, instance=True)

    def fit(x, y=None):
        assert on_device(x, np.float32)
        reference.fit(np.asarray(x))
        return model

    def kneighbors(X=None, n_neighbors=None, return_distance=True, *, two_pass_precision=False):
        assert on_device(X, np.float32) and not two_pass_precision
        distance, index = reference.kneighbors(np.asarray(X), n_neighbors=n_neighbors)
        # real distances run a little below 0
        distance = distance.astype(np.float32) - np.float32(4e-7)
        return distance.view(OnDevice), index.view(OnDevice)

    model.fit.side_effect = fit
    model.kneighbors.side_effect = kneighbors
    return model


def cuvs_build(dataset, metric="sqeuclidean", metric_arg=2.0, resources=None):
    assert on_device(dataset, np.float16)
    if metric not in DISTANCE_TYPES:
        raise ValueError(f"metric {metric!r} is not valid")
    # like the real one, it looks at the rows and does not keep them
    return SimpleNamespace(dataset=weakref.ref(dataset), metric=metric)


def cuvs_search(index, queries, k, neighbors=None, distances=None, resources=None, prefilter=None):
    assert on_device(queries, np.float16)
    brute_force.build.reset_mock()  # the stand-in's record of its calls would keep the rows
    rows = index.dataset()
    assert rows is not None, "the rows were freed before the search"
    assert 1 <= k <= len(rows)
    score = np.asarray(queries, np.float32) @ np.asarray(rows, np.float32).T
    if index.metric != "inner_product":
        score = 2 - 2 * score
    sign = -1 if index.metric == "inner_product" else 1
    order = np.argsort(sign * score, axis=1)[:, :k]
    return np.take_along_axis(score, order, axis=1).view(OnDevice), order.view(OnDevice)


# --- both engines keep the contract of knn.search ---


@pytest.mark.parametrize("engine", ["cuml", "cuvs"])
@pytest.mark.parametrize(
    ("store_rows", "query_rows"), [(None, 8192), (1000, 1000), (70, 11), (299, 50), (1, 50)]
)
def test_blocks_offsets_and_merging_equal_numpy(device, engine, store_rows, query_rows):
    similarity, index = knn.search(
        STORE, QUERIES, 9, engine, store_rows=store_rows, query_rows=query_rows
    )
    exact = QUERIES @ STORE.T
    np.testing.assert_array_equal(index, np.argsort(-exact, axis=1)[:, :9])
    np.testing.assert_allclose(similarity, -np.sort(-exact, axis=1)[:, :9], atol=1e-5)
    assert similarity.dtype == np.float32 and index.dtype == np.int64
    assert type(similarity) is type(index) is np.ndarray


@pytest.mark.parametrize("engine", ["cuml", "cuvs"])
def test_half_precision_rows_cross_the_bus_as_they_are(device, engine):
    half = STORE.astype(np.float16)
    shards = [half[:120], half[120:]]
    rows = np.random.default_rng(2).random(300) < 0.7
    center = STORE.mean(axis=0)
    similarity, index = knn.search(
        shards, QUERIES, 9, engine, rows=rows, center=center, store_rows=70
    )
    expected = knn.search(shards, QUERIES, 9, "faiss", rows=rows, center=center)
    np.testing.assert_array_equal(index, expected[1])
    np.testing.assert_allclose(similarity, expected[0], atol=1e-5)
    own = [call for call in cupy.empty.call_args_list if call.args[1] == np.float16]
    assert sum(call.args[0][0] for call in own) == rows.sum()


@pytest.mark.parametrize("engine", ["cuml", "cuvs"])
def test_ties_stand_by_index_within_and_across_blocks(device, engine):
    store = np.repeat(np.eye(16, dtype=np.float32)[:3], 10, axis=0)
    for store_rows in (30, 7):
        _, index = knn.search(store, store[:1], 4, engine, store_rows=store_rows)
        assert (np.diff(index) > 0).all() and (index < 10).all()


def test_a_block_spans_shards_of_one_type_and_is_as_large_as_memory_allows(device):
    shards = [*np.array_split(STORE, 5), STORE.astype(np.float16)]
    blocks = list(gpu._blocks(shards, None, 300))
    assert [sum(map(len, block)) for block in blocks] == [300, 300]
    row_bytes = 16 * (2 * 4 + 4 + 2) + 8
    assert gpu._rows_that_fit(16, 4) == int(gpu.MEMORY_SHARE * fake_device.FREE_BYTES) // row_bytes


def test_rows_are_staged_in_parts_through_both_buffers(device, monkeypatch):
    monkeypatch.setattr(gpu, "STAGING_BYTES", 16 * 4 * 7)  # seven rows
    _, index = knn.search(STORE, QUERIES, 9, "cuml", store_rows=120)
    np.testing.assert_array_equal(index, np.argsort(-(QUERIES @ STORE.T), axis=1)[:, :9])


def test_a_row_that_is_no_unit_row_is_named_by_its_index_in_the_store(device):
    store = STORE.copy()
    store[210] *= 2
    with pytest.raises(ValueError, match="row 210 has length 2"):
        knn.search(store, QUERIES, 3, "cuml", rows=np.arange(300) % 2 == 0, store_rows=60)


def test_no_queries_give_empty_lists(device):
    for engine in ("cuml", "cuvs"):
        similarity, index = knn.search(STORE, QUERIES[:0], 3, engine)
        assert similarity.shape == index.shape == (0, 3)


def test_auto_takes_cuml_where_a_gpu_is_usable(device):
    assert knn.resolve_engine("auto")[0] == "cuml"
    similarity, _ = knn.search(STORE, STORE, 3)
    assert device.nearest_neighbors.called and not device.build.called
    assert similarity.max() <= 1  # 1 + 4e-7 is clipped


# --- cuVS: exact although its candidates are not ---


def test_where_float16_cannot_tell_rows_apart_more_candidates_are_drawn(device):
    store = near_duplicates(2000, 3)
    queries = near_duplicates(20, 4)
    similarity, index = knn.search(store, queries, 10, "cuvs")
    exact = queries @ store.T
    np.testing.assert_allclose(similarity, -np.sort(-exact, axis=1)[:, :10], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, index, axis=1), similarity, atol=1e-6)
    counts = [call.args[2] for call in device.search.call_args_list]
    assert max(counts) > 38, counts


def test_without_the_margin_the_near_duplicates_come_out_wrong(device, monkeypatch):
    """What the test above is worth: a margin of 0 must fail it."""
    store = near_duplicates(2000, 3)
    queries = near_duplicates(20, 4)
    best = gpu._best_candidates
    monkeypatch.setattr(
        gpu, "_best_candidates", lambda *a: (*best(*a)[:2], np.ones(len(a[2]), bool))
    )
    similarity, _ = knn.search(store, queries, 10, "cuvs")
    assert np.abs(similarity + np.sort(-(queries @ store.T), axis=1)[:, :10]).max() > 1e-6


@pytest.mark.parametrize("dim", [2, 16, 384, 1024, 4096])
def test_the_margin_holds_for_rows_of_every_kind(dim):
    random = np.random.default_rng(dim)
    for scale in (0, 1, 3):  # even entries, normal ones, and many that are subnormal in float16
        rows = random.standard_normal((200, dim)) * 10.0 ** random.normal(0, scale, (200, dim))
        rows = l2_normalize(rows.astype(np.float32))
        halves = rows.astype(np.float16).astype(np.float32)
        off = np.abs(halves @ halves.T - rows @ rows.T).max()
        assert off <= gpu.float16_margin(dim) < 6e-3


def test_scores_beyond_what_rounding_explains_are_refused(device):
    def off(*args, **options):
        score, row = cuvs_search(*args, **options)
        return score + np.float32(0.01), row

    device.search.side_effect = off
    with pytest.raises(RuntimeError, match="off by 0.01., rounding explains at most 0.00098"):
        knn.search(STORE, QUERIES, 9, "cuvs")


# --- the calls ---


def test_cuml_s_call_is_the_safe_one(device):
    knn.search(STORE, QUERIES, 9, "cuml")
    for call in device.nearest_neighbors.call_args_list:
        assert call.kwargs["algorithm"] == "brute" and call.kwargs["metric"] == "cosine"


def test_the_signatures_that_we_rely_on():
    parameters = inspect.signature(RealNearestNeighbors.kneighbors).parameters
    assert {"X", "n_neighbors"} <= set(parameters)
    parameters = inspect.signature(RealNearestNeighbors.__init__).parameters
    assert {"n_neighbors", "algorithm", "metric", "output_type"} <= set(parameters)
    assert "cosine" in cuml.neighbors.VALID_METRICS["brute"]
    assert list(inspect.signature(real_build).parameters)[:2] == ["dataset", "metric"]
    assert list(inspect.signature(real_search).parameters)[:3] == ["index", "queries", "k"]
    assert "inner_product" in DISTANCE_TYPES


REFUSED = (TypeError, ValueError, RuntimeError, IndexError, AssertionError)


def plant(monkeypatch, function: str, right: str, wrong: str) -> None:
    source = inspect.getsource(getattr(gpu, function))
    assert right in source
    exec(source.replace(right, wrong), namespace := dict(vars(gpu)))
    monkeypatch.setattr(gpu, function, namespace[function])


CUML_SLIPS = [
    ("n_neighbors=k)\n        return", "k=k)\n        return"),
    ('metric="cosine"', 'metric="cosinus"'),
    ('metric="cosine"', 'metric="euclidean"'),
    ("n_neighbors=k, algorithm", "neighbors=k, algorithm"),
    ("1 - distance", "distance"),
    (", row\n", ", row + 1\n"),
    ("model.fit(x)", "model.fit(np.asarray(x))"),
    ("model.kneighbors(queries", "model.kneighbors(np.asarray(queries)"),
]
CUVS_SLIPS = [
    ('metric="inner_product"', 'metric="inner"'),
    ('metric="inner_product"', 'metric="sqeuclidean"'),
    ("half_rows = x.astype(np.float16)", "half_rows = x"),
    ("half_queries = queries.astype(np.float16)", "half_queries = queries"),
    ("half_queries, count)", "half_queries, n_neighbors=count)"),
    ("rows: np.ndarray = half_rows", "rows: None = None"),  # freed before the search
    ("cupy.asarray(row)", "cupy.asarray(row) + 1"),
    ("score, row = brute", "row, score = brute"),
]


@pytest.mark.parametrize(
    ("engine", "slip"),
    [*(("cuml", slip) for slip in CUML_SLIPS), *(("cuvs", slip) for slip in CUVS_SLIPS)],
)
def test_a_planted_error_in_an_engine_is_found(device, monkeypatch, engine, slip):
    """What this contract is worth: each of these slips must be refused."""
    plant(monkeypatch, f"_{engine}_index", *slip)
    with pytest.raises(REFUSED):
        knn.search(STORE, QUERIES, 9, engine)


@pytest.mark.parametrize("engine", ["cuml", "cuvs"])
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("cupy.asarray(store_index)[row]", "cupy.asarray(store_index)[row] + 1"),
        ("cupy.asarray(store_index)[row]", "row"),
    ],
)
def test_a_planted_off_by_one_block_is_found(device, monkeypatch, engine, right, wrong):
    plant(monkeypatch, "search_on_gpu", right, wrong)
    with pytest.raises((RuntimeError, IndexError)):
        knn.search(STORE, QUERIES, 9, engine, store_rows=70)
