"""cuML's own class, autospecced, with scikit-learn's arithmetic behind it: our calls meet its real
signatures, no GPU needed.
"""

import inspect
from unittest.mock import create_autospec

import numpy as np
import pytest
import sklearn.neighbors

from src import knn
from src.metrics import l2_normalize

pytest.importorskip("cuml.neighbors")
import cuml.neighbors  # noqa: E402
import cupy  # noqa: E402

RealNearestNeighbors = cuml.neighbors.NearestNeighbors
_constants = np.random.default_rng(0)
STORE = l2_normalize(_constants.standard_normal((300, 16)).astype(np.float32))
QUERIES = l2_normalize(_constants.standard_normal((50, 16)).astype(np.float32))


@pytest.fixture
def cuml_class(monkeypatch):
    """Put the autospecced class where the backend finds it, and let the machine seem to have a GPU."""
    spec = create_autospec(RealNearestNeighbors)
    spec.side_effect = on_scikit_learn
    monkeypatch.setattr(cuml.neighbors, "NearestNeighbors", spec)
    monkeypatch.setattr(cupy.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cupy, "asarray", create_autospec(cupy.asarray, side_effect=to_device))
    knn._check_gpu.cache_clear()
    yield spec
    knn._check_gpu.cache_clear()


def to_device(x, **_):
    """A device array is a copy of NumPy's type that says where it is; its own class, so that a host
    array is told apart.
    """
    assert isinstance(x, np.ndarray), f"{type(x)} would go to the device through a copy on the host"
    return np.array(x).view(OnDevice)


class OnDevice(np.ndarray):
    pass


def on_scikit_learn(*, n_neighbors, algorithm, metric, output_type):
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
        assert isinstance(x, OnDevice) and x.dtype == np.float32 and x.flags.c_contiguous
        reference.fit(np.asarray(x))
        return model

    def kneighbors(X=None, n_neighbors=None, return_distance=True, *, two_pass_precision=False):
        assert (
            isinstance(X, OnDevice)
            and not two_pass_precision
            and X.dtype == np.float32
            and X.flags.c_contiguous
        )
        distance, index = reference.kneighbors(np.asarray(X), n_neighbors=n_neighbors)
        return distance.astype(np.float32) - np.float32(
            4e-7
        ), index  # real distances run a little below 0

    model.fit.side_effect, model.kneighbors.side_effect = fit, kneighbors
    return model


@pytest.mark.parametrize(("store_rows", "query_rows"), [(1000, 1000), (70, 11), (299, 50)])
def test_blocks_offsets_and_merging_equal_numpy(cuml_class, store_rows, query_rows):
    similarity, index = knn.search(
        STORE, QUERIES, 9, "cuml", store_rows=store_rows, query_rows=query_rows
    )
    exact = QUERIES @ STORE.T
    np.testing.assert_array_equal(index, np.argsort(-exact, axis=1)[:, :9])
    np.testing.assert_allclose(similarity, -np.sort(-exact, axis=1)[:, :9], atol=1e-5)
    assert similarity.dtype == np.float32 and index.dtype == np.int64


def test_half_precision_rows_go_to_the_device_as_they_are(cuml_class):
    half = STORE.astype(np.float16)
    similarity, index = knn.search([half[:120], half[120:]], QUERIES, 9, "cuml", store_rows=70)
    expected = knn.search([half[:120], half[120:]], QUERIES, 9, "faiss")
    np.testing.assert_array_equal(index, expected[1])
    np.testing.assert_allclose(similarity, expected[0], atol=1e-5)
    assert any(call.args[0].dtype == np.float16 for call in cupy.asarray.call_args_list)


def test_auto_takes_cuml_where_a_gpu_is_usable(cuml_class):
    assert knn.resolve_engine("auto")[0] == "cuml"
    similarity, _ = knn.search(STORE, STORE, 3)
    assert cuml_class.called
    assert similarity.max() <= 1  # 1 + 4e-7 is clipped


def test_the_call_is_the_safe_one(cuml_class):
    knn.search(STORE, QUERIES, 9, "cuml")
    for call in cuml_class.call_args_list:
        assert call.kwargs["algorithm"] == "brute" and call.kwargs["metric"] == "cosine"


def test_the_signatures_that_we_rely_on():
    assert {"X", "n_neighbors"} <= set(
        inspect.signature(RealNearestNeighbors.kneighbors).parameters
    )
    assert {"n_neighbors", "algorithm", "metric", "output_type"} <= set(
        inspect.signature(RealNearestNeighbors.__init__).parameters
    )
    assert "cosine" in cuml.neighbors.VALID_METRICS["brute"]


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("n_neighbors=k)\n        return", "k=k)\n        return"),
        ('metric="cosine"', 'metric="cosinus"'),
        ('metric="cosine"', 'metric="euclidean"'),
        ("n_neighbors=k, algorithm", "neighbors=k, algorithm"),
        ("1 - cupy.asnumpy(distance)", "cupy.asnumpy(distance)"),
        ("cupy.asnumpy(index)", "cupy.asnumpy(index) + 1"),
        ("model.fit(x)", "model.fit(block)"),
        ("model.kneighbors(cupy.asarray(queries)", "model.kneighbors(queries"),
    ],
)
def test_a_planted_error_in_the_backend_is_found(cuml_class, monkeypatch, right, wrong):
    """What this contract is worth: each of these slips in the backend must be refused."""
    source = inspect.getsource(knn._cuml_index)
    assert right in source
    exec(source.replace(right, wrong), namespace := dict(vars(knn)))
    monkeypatch.setattr(knn, "_cuml_index", namespace["_cuml_index"])
    with pytest.raises((TypeError, ValueError, RuntimeError, IndexError, AssertionError)):
        knn.search(STORE, QUERIES, 9, "cuml")


@pytest.mark.parametrize(
    ("right", "wrong"), [(") + start)", ") + start + 1)"), (") + start)", "))")]
)
def test_a_planted_off_by_one_block_is_found(cuml_class, monkeypatch, right, wrong):
    source = inspect.getsource(knn._search_blocks)
    assert right in source
    exec(source.replace(right, wrong), namespace := dict(vars(knn)))
    monkeypatch.setattr(knn, "_search_blocks", namespace["_search_blocks"])
    with pytest.raises((RuntimeError, IndexError)):
        knn.search(STORE, QUERIES, 9, "cuml", store_rows=70)
