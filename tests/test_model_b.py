"""Model B: its routes joined, what a stored model predicts, and what it refuses."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from src import artifacts, paths
from src.metrics import l2_normalize
from src.model_b import datastore, explain
from src.model_b.isolation import text_conflicts, visible_rows
from src.model_b.model import ModelB, WeightedRoute, files, fit_model, load, merge_routes
from src.model_b.routes import Library, Route, fit_route, search_out_of_fold
from src.model_b.weighting import Weighting, fuse_neighbors, merge_weighted
from tests.helpers.toy_library import ROUTES, VALUES, library, take

# --- the model ---


def test_one_list_is_as_long_as_the_shortest_and_equals_stand_by_index():
    index, weight = merge_weighted(
        [np.array([[3, 1, 5], [9, 2, 4]])], [np.array([[0.2, 0.2, 0.6], [0.5, 0.3, 0.2]])], 2
    )
    assert index.tolist() == [[5, 1], [9, 2]] and weight.tolist() == [[0.6, 0.2], [0.5, 0.3]]
    twice = [np.array([[3, 1], [9, 2]]), np.array([[1, 3], [2, 4]])]
    index, weight = merge_weighted(
        twice, [np.array([[0.4, 0.1]] * 2), np.array([[0.2, 0.3]] * 2)], 9
    )
    assert index.tolist() == [[3, 1], [9, 2]], "the first row has two prompts, so both have two"
    np.testing.assert_allclose(weight, [[0.7, 0.3], [0.4, 0.3]])


def test_routes_together_weigh_by_their_shares():
    lists = {
        "text": (np.array([[0.9, 0.5, 0.1]]), np.array([[4, 2, 8]])),
        "image": (np.array([[0.7, 0.6]]), np.array([[2, 6]])),
        "unused": (np.array([[0.9, 0.8]]), np.array([[7, 9]])),
    }
    tuned = dict.fromkeys(lists, SimpleNamespace(k=2, weighting=Weighting(tau=0.1)))
    index, weight = merge_routes(lists, tuned, {"text": 0.75, "image": 0.25, "unused": 0.0}, 9)
    first = 1 / (1 + np.exp(-4))
    second = 1 / (1 + np.exp(-1))
    assert index.tolist() == [[4, 2, 6]], "prompt 8 is beyond K"
    np.testing.assert_allclose(
        weight, [[0.75 * first, 0.75 * (1 - first) + 0.25 * second, 0.25 * (1 - second)]]
    )


def test_lists_of_routes_as_one_by_hand():
    index, weight = merge_weighted(
        [np.array([[3, 1]]), np.array([[1, 7]])],
        [np.array([[0.4, 0.2]]), np.array([[0.3, 0.1]])],
        9,
    )
    assert index.tolist() == [[1, 3, 7]] and weight[0] == pytest.approx([0.5, 0.4, 0.1])


def test_what_is_stored_predicts_what_was_stored(tmp_path):
    draw = np.random.default_rng(5)
    texts = [f"prompt {i}" for i in range(40)]
    keys = l2_normalize(draw.standard_normal((40, 8)).astype(np.float32))
    number = {text: i for i, text in enumerate(texts)}
    encoders = {
        "values": lambda t: VALUES[[number[x] for x in t]],
        "clip": lambda t: keys[[number[x] for x in t]],
    }
    empty = datastore.open_datastore(
        tmp_path / paths.STORE_SHARDS, dtype="float16", sentence_model="toy"
    )
    disk = datastore.add(empty, texts[::-1], encoders, shard_rows=15)
    store = pl.DataFrame(
        {
            "id": texts,
            "prompt": texts,
            "source": "toy",
            "row": datastore.rows_of_prompts(disk, texts),
        }
    )
    place = store["row"].to_numpy()
    images = l2_normalize(keys[:30] + 0.5)
    lib = Library(
        datastore.ColumnView(disk.column("clip"), place),
        datastore.ColumnView(disk.column("values"), place),
        images,
    )
    shares = dict(zip([route.name for route in ROUTES], (0.3, 0.4, 0.2, 0.1), strict=True))
    unused = Route("unused", hubs=1.0)
    tuned = dict.fromkeys([*shares, "unused"], SimpleNamespace(k=5, weighting=Weighting(tau=0.1)))
    model = fit_model(
        store.drop("row"),
        {"clip": lib, "other": lib},
        [*ROUTES, unused],
        tuned,
        {**shares, "unused": 0.0},
        np.arange(30),
        engine="faiss",
    )
    assert list(model.libraries) == ["clip"] and len(model.parts) == 4
    model = replace(model, depth=8)
    queries = l2_normalize(draw.standard_normal((5, 8)).astype(np.float32))
    prediction, similarity, index, weight = model.explain(queries)

    artifacts.save_table(tmp_path / paths.STORE, store)
    artifacts.save_embeddings(tmp_path / paths.STORE_IMAGES.format(clip="clip"), texts[:30], images)
    model.save(tmp_path, 0.5)
    again, similar, near = load(tmp_path, "faiss").predict(queries)
    np.testing.assert_allclose(again, prediction, atol=1e-6)
    np.testing.assert_array_equal(near[:, :8], index)
    np.testing.assert_allclose(
        similar[:, :8], np.take_along_axis(queries @ keys.T, index, axis=1), atol=1e-3
    )
    assert (np.diff(weight, axis=1) <= 0).all() and (weight.sum(axis=1) <= 1 + 1e-6).all()
    table = explain.neighbor_table(
        ["a", "b", "c", "d", "e"], model.prompts, similarity, index, weight
    )
    assert (
        table.columns == ["query", "rank", "neighbor", "prompt", "similarity", "weight"]
        and len(table) == 40
    )
    assert table.row(9) == (
        "b",
        1,
        texts[index[1, 1]],
        texts[index[1, 1]],
        similarity[1, 1],
        weight[1, 1],
    )
    routes = [paths.ROUTE_B.format(n=n) for n in range(4)]
    images = [
        paths.STORE_IMAGES.format(clip="clip") + suffix for suffix in (".ids.parquet", ".npy")
    ]
    wanted = [paths.STORE, paths.CHOICE_B, paths.STORE_SHARDS, *routes, *images]
    assert files(tmp_path) == [tmp_path / name for name in wanted]
    choice = artifacts.load_json(tmp_path / paths.CHOICE_B)
    assert choice["avg_cos"] == 0.5 and [part["share"] for part in choice["parts"]] == list(
        shares.values()
    )
    assert choice["parts"][1]["penalty"] == model.parts[1].fitted.query_map.penalty is not None
    with pytest.raises(FileNotFoundError, match="run ./run_all.sh --only 03 first"):
        load(tmp_path / "none")


def test_a_second_clip_is_asked_for_and_looks_up_in_its_own_store():
    first, keys = library()
    second = Library(
        first.values, first.values, l2_normalize(VALUES[:30] + 0.2)
    )  # a CLIP whose keys are the values
    fitted = [
        fit_route(Route(clip, clip=clip), lib, np.arange(30), np.arange(30))
        for clip, lib in (("clip", first), ("other", second))
    ]
    soft = Weighting(tau=0.1)
    parts = WeightedRoute(fitted[0], 3, soft, 0.75), WeightedRoute(fitted[1], 4, soft, 0.25)
    store = pl.DataFrame({"id": [str(i) for i in range(40)]})
    model = ModelB(store, {"clip": first, "other": second}, parts, "faiss")
    queries = {"clip": first.images[:5], "other": second.images[:5]}
    prediction, similarity, index, weight = model.explain(queries)
    alone = [ModelB(store, model.libraries, (part,), "faiss").predict(queries)[0] for part in parts]
    np.testing.assert_allclose(
        prediction, l2_normalize(0.75 * alone[0] + 0.25 * alone[1]), atol=1e-6
    )
    naive = fitted[1].search(second, queries["other"], 4, "faiss", visible=np.ones(40, bool))
    np.testing.assert_allclose(alone[1], fuse_neighbors(*naive, take, soft, k=4), atol=1e-6)
    np.testing.assert_allclose(
        similarity, np.take_along_axis(queries["clip"] @ keys.T, index, axis=1), atol=1e-6
    )
    with pytest.raises(ValueError, match=r"also looks up by the CLIPs \['other'\]"):
        model.predict(first.images[:5])


def test_shards_that_lie_elsewhere_are_no_files_of_the_output(tmp_path):
    np.save(tmp_path / "keys.npy", VALUES)
    np.save(tmp_path / "values.npy", VALUES)
    empty = datastore.open_datastore(
        tmp_path / "output" / paths.STORE_SHARDS, dtype="float32", sentence_model="toy"
    )
    datastore.add_precomputed(
        empty, [(tmp_path / "keys.npy", tmp_path / "values.npy")], clip="clip"
    )
    with pytest.raises(
        ValueError,
        match=r"1 precomputed shards of Model B's datastore lie outside .*output: \['00000'\]",
    ):
        files(tmp_path / "output")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: visible_rows(np.zeros(3), np.zeros((4, 2), bool), 0),
            r"3 rows of the run, conflicts of shape \(4, 2\)",
        ),
        (lambda: visible_rows(np.zeros(3), np.zeros((3, 2), bool), 2), "fold 2"),
        (lambda: visible_rows(np.zeros(3), np.zeros((3, 2), bool), -1), "fold -1"),
        (
            lambda: text_conflicts(VALUES, VALUES, np.zeros(3, int), 0.7),
            "3 folds for 40 training rows",
        ),
        (lambda: Route("odd", keys="sound"), "route odd: keys 'sound' is not one of"),
        (lambda: Route.from_dict({"name": "x", "centre": True}), "route x: centre was renamed"),
        (lambda: Route.from_dict({"name": "x", "key": "text"}), r"route x: unknown \['key'\]"),
        (
            lambda: Route.from_parameters({"name": "x", "clip": 3}, ["one", "two"]),
            "names a CLIP that does not exist",
        ),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_refuses_a_datastore_too_small():
    with pytest.raises(
        ValueError,
        match="fold 0 has 30 visible rows of the datastore by text keys, fewer than k = 35",
    ):
        search_out_of_fold(
            Route("text"),
            library()[0],
            fold=np.arange(30) % 3,
            group=np.arange(30),
            conflicts=np.zeros((40, 3), bool),
            k=35,
        )
