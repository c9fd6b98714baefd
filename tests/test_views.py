"""Views of an image: what they show, and that a prediction is their plain mean."""

import numpy as np
import pytest

from src import encoder
from src.metrics import l2_normalize
from src.model_a import fit, views
from src.model_a.fold_ensemble import FoldEnsemble
from tests.helpers import toy_training
from tests.helpers.recipes import small_recipe


def quarters() -> np.ndarray:
    """One image of 64 pixels whose quarters are 10, 20, 30, 40."""
    image = np.empty((1, 64, 64, 3), np.uint8)
    image[:, :32, :32] = 10
    image[:, :32, 32:] = 20
    image[:, 32:, :32] = 30
    image[:, 32:, 32:] = 40
    return image


def test_a_flip_exchanges_left_and_right():
    (flip,) = views.changes_of(["flip"])
    assert flip(quarters())[0, 0, :, 0].tolist() == [20] * 32 + [10] * 32
    assert np.array_equal(flip(flip(quarters())), quarters())


def test_cut_outs_keep_the_size_and_move_the_middle():
    # the border lies at 32 of 64; 56 pixels are left, from 0, 4 or 8 on, and stretched by 8/7
    borders = {(0, 0): 36.6, (0.5, 0.5): 32, (1, 1): 27.4}
    for (down, right), border in borders.items():
        image = views.cut_out(quarters(), down, right)
        assert image.shape == (1, 64, 64, 3)
        assert image.dtype == np.uint8
        column = image[0, 2, :, 0].astype(float)
        assert np.interp(15, column, np.arange(64)) == pytest.approx(border - 0.5, abs=1), border


def test_corners_show_each_corner():
    corners = [change(quarters())[0] for change in views.changes_of(["corners"])]
    means = [round(corner.mean()) for corner in corners]
    assert len(corners) == 4
    assert means[0] < means[1] < means[2] < means[3]
    assert len({corner.tobytes() for corner in corners}) == 4


@pytest.mark.parametrize("wrong", [[], ["mirror"], ["flip", "flip"]])
def test_unknown_doubled_or_no_views_are_refused(wrong):
    with pytest.raises(ValueError, match="views must be some of center, flip, zoom, corners"):
        views.changes_of(wrong)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A toy CLIP, its images and a model trained on them."""
    folder = tmp_path_factory.mktemp("clip") / "clip"
    clip = encoder.load(toy_training.write_clip(folder), device="cpu")
    data = toy_training.data_for(clip, 24)
    recipe = small_recipe(epochs=1, batch_size=8)
    return clip, data, fit.fit(clip, data, np.arange(24), recipe=recipe, seed=0)


@pytest.mark.parametrize("names", [("center", "flip"), ("zoom", "corners"), ("flip",)])
def test_a_prediction_is_the_mean_over_views_in_the_stages_and_for_new_images(trained, names):
    clip, data, fitted = trained
    rows = np.array([3, 1, 20])
    pixels = data.pixels[rows]
    parts = [fit.predict_pixels(fitted, clip, change(pixels)) for change in views.changes_of(names)]
    by_hand = l2_normalize(np.sum(parts, axis=0))

    in_stages = fit.predict(fitted, clip, data, rows, views=names)
    assert in_stages == pytest.approx(by_hand, abs=1e-5)

    # another batch size rounds otherwise at half precision, but keeps the order
    in_parts = fit.predict(fitted, clip, data, rows, views=names, batch_size=2)
    assert (in_parts @ by_hand.T).argmax(axis=1).tolist() == [0, 1, 2]
    assert in_parts == pytest.approx(by_hand, abs=0.02)
    alone = fit.predict_pixels(fitted, clip, pixels, views=names)
    assert alone == pytest.approx(by_hand, abs=1e-5)

    embedding, predictions = FoldEnsemble(clip, {"model_a": [fitted]}, names)(pixels)
    assert predictions["model_a"] == pytest.approx(by_hand, abs=1e-5)

    # the CLIP's own embedding is that of the image as it is
    plain_embedding, _ = FoldEnsemble(clip, {"model_a": [fitted]})(pixels)
    assert np.array_equal(embedding, plain_embedding)

    # and it is not what the image alone gives
    plain = fit.predict_pixels(fitted, clip, pixels)
    assert np.abs(by_hand - plain).max() > 1e-3


def test_the_center_alone_changes_no_bit(trained):
    clip, data, fitted = trained
    rows = np.arange(24)
    plain = fit.predict(fitted, clip, data, rows)
    assert np.array_equal(plain, fit.predict(fitted, clip, data, rows, views=["center"]))
