"""What a query may see, the routes that it looks up by, and the map that brings it there."""

import numpy as np
import pytest

from src.metrics import avg_cos, l2_normalize
from src.model_b import explain, query_map
from src.model_b.isolation import TEXT_ONLY, run_conflicts, text_conflicts, visible_rows
from src.model_b.routes import Library, Route, fit_route, search_out_of_fold
from tests.helpers.toy_library import ROUTES, VALUES, library

# --- what a query may see ---


def test_a_text_just_at_the_threshold_is_no_conflict():
    text = np.array([[1, 0], [0, 1]], np.float32)
    train = np.array([[0.5, 0.5], [1, 0], [0, 0.75]], np.float32)
    found = text_conflicts(text, train, np.array([0, 1, 2]), 0.5)
    assert found.tolist() == [[False, True, False], [False, False, True]]


def test_a_fold_sees_neither_itself_nor_text_like_it():
    store_fold = np.array([0, 0, 1, TEXT_ONLY, TEXT_ONLY])
    conflicts = np.array([[0, 0], [0, 0], [0, 0], [1, 0], [0, 0]], bool)
    assert visible_rows(store_fold, conflicts, 0).tolist() == [False, False, True, False, True]
    assert visible_rows(store_fold, conflicts, 1).tolist() == [True, True, False, True, True]


def test_conflicts_of_the_store_equal_naive():
    found_library, _ = library(25)
    train = VALUES[20:]
    fold = np.arange(20) % 3
    found = run_conflicts(found_library.values, 25, train, fold, 0.5, rows=4)
    naive = np.array(
        [[(t @ train[fold == f].T).max() > 0.5 for f in range(3)] for t in VALUES[25:]]
    )
    assert not found[:25].any() and naive.any() and not naive.all()
    np.testing.assert_array_equal(found[25:], naive)
    np.testing.assert_array_equal(run_conflicts(found_library.values, 25, train, fold, 0.5), found)


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: r.name)
def test_out_of_fold_search_finds_no_row_of_its_own_fold(route):
    found_library, _ = library()
    fold = np.arange(30) % 3
    store_fold = np.concatenate([fold, np.full(10, TEXT_ONLY)])
    conflicts = np.zeros((40, 3), bool)
    conflicts[35, 0] = True
    _, index = search_out_of_fold(
        route,
        found_library,
        fold=fold,
        group=np.arange(30),
        conflicts=conflicts,
        k=12,
        engine="faiss",
    )
    assert (store_fold[index] != fold[:, None]).all()
    assert 35 not in index[fold == 0] and (route.keys == "image" or 35 in index[fold == 1])


def test_a_route_learns_nothing_from_the_fold_that_it_is_scored_on():
    one, _ = library()
    fold = np.arange(30) % 3
    changed = Library(
        one.texts,
        one.values,
        np.where((fold == 0)[:, None], l2_normalize(-one.images + 0.1), one.images),
    )
    rows = np.flatnonzero(fold != 0)
    for route in ROUTES:
        before, after = (
            fit_route(route, x, rows, np.arange(30)).query_map(one.images) for x in (one, changed)
        )
        np.testing.assert_array_equal(before, after)


def test_the_zero_shot_route_is_a_plain_search_by_text_keys():
    found_library, keys = library()
    fold = np.arange(30) % 3
    conflicts = np.zeros((40, 3), bool)
    similarity, index = search_out_of_fold(
        Route("text"),
        found_library,
        fold=fold,
        group=fold,
        conflicts=conflicts,
        k=5,
        engine="faiss",
    )
    exact = found_library.images @ keys.T
    exact[:, :30][fold[:, None] == fold] = -np.inf
    np.testing.assert_array_equal(index, np.argsort(-exact, axis=1)[:, :5])
    np.testing.assert_allclose(similarity, -np.sort(-exact, axis=1)[:, :5], atol=1e-6)


def test_hubs_are_taken_off_a_route_s_similarities_once_it_is_centered():
    found_library, keys = library()
    visible = np.arange(40) != 7
    rows = np.arange(20)
    images = found_library.images
    fitted = fit_route(Route("both", center=True, hubs=0.5), found_library, rows, np.arange(30))
    centered = l2_normalize(keys - keys[:20].mean(axis=0))
    moved = l2_normalize(images - images[:20].mean(axis=0))
    exact = np.where(visible, moved @ centered.T, -1)
    near = np.argsort(-exact, axis=1)[:, :6]
    changed = np.take_along_axis(
        exact - 0.5 * (centered @ moved[:20].T).mean(axis=1), near, axis=1
    )  # the bank has fewer than 50
    similarity, index = fitted.search(found_library, images, 6, "faiss", visible=visible)
    np.testing.assert_allclose(similarity, -np.sort(-changed, axis=1), atol=1e-5)
    np.testing.assert_array_equal(
        index, np.take_along_axis(near, np.argsort(-changed, axis=1), axis=1)
    )
    assert fitted.search(found_library, images[:0], 6, "faiss", visible=visible)[1].shape == (0, 6)
    whole, by_parts = (
        fitted._hubness(found_library, np.arange(40), "faiss", rows=n) for n in (100, 7)
    )
    np.testing.assert_allclose(by_parts, whole, atol=1e-6)


def test_the_nearest_visible_prompt_by_hand():
    found_library, _ = library()
    truth = l2_normalize(VALUES[:9] + 0.1)
    fold = np.arange(9) % 2
    visible = {0: np.arange(40) > 5, 1: np.arange(40) < 30}
    cosine, row = explain.nearest_visible(truth, found_library.values, fold, visible)
    exact = np.where(np.stack([visible[f] for f in fold]), truth @ VALUES.T, -1)
    np.testing.assert_array_equal(row, exact.argmax(axis=1))
    np.testing.assert_allclose(cosine, exact.max(axis=1), atol=1e-6)


# --- from images to prompts ---


def test_a_linear_map_and_centers_bring_images_to_their_prompts():
    draw = np.random.default_rng(7)
    texts = l2_normalize(draw.standard_normal((400, 8)).astype(np.float32) + 0.5)
    images = l2_normalize(texts @ draw.standard_normal((8, 8)).astype(np.float32) + 0.3)
    learnt = query_map.learn(images[:300], texts[:300], np.arange(300), linear=True, center=True)
    moved = learnt(images[300:])
    assert (
        avg_cos(l2_normalize(texts[300:] - learnt.key_center), moved)
        > 0.9
        > avg_cos(texts[300:], images[300:])
    )
    centered = query_map.learn(images, texts, np.arange(400), linear=False, center=True)
    np.testing.assert_allclose(
        centered(images), l2_normalize(images - images.mean(axis=0)), atol=1e-6
    )
    np.testing.assert_allclose(query_map.QueryMap()(images), images, atol=1e-6)


def test_hubness_is_the_mean_similarity_to_the_nearest_images():
    bank = l2_normalize(np.array([[1, 0.1], [1, -0.1], [0, 1]], np.float32))
    hub = query_map.hubness(np.array([[1, 0], [0, 1]], np.float32), bank, "faiss", depth=2)
    np.testing.assert_allclose(hub, [bank[0, 0], (bank[2, 1] + bank[0, 1]) / 2], atol=1e-6)
