"""Unit rows, cosines and the mean prompt, by hand."""

import numpy as np
import pytest

from src.metrics import avg_cos, cosines, l2_normalize, mean_prompt

FOX = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)


def test_unit_rows():
    np.testing.assert_allclose(l2_normalize(FOX), [[0.6, 0.8], [0, 1]], atol=1e-7)
    assert l2_normalize(FOX).dtype == np.float32


def test_equation_8_is_the_mean_of_cosines():
    truth = np.array([[1, 0], [1, 0]], np.float32)
    np.testing.assert_allclose(cosines(truth, FOX), [0.6, 0.0], atol=1e-7)
    assert avg_cos(truth, FOX) == pytest.approx(0.3)
    assert avg_cos(truth, 10 * FOX) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (np.ones((3, 2), np.float32), r"\(2, 2\), prediction \(3, 2\)"),
        (np.array([[0, 0], [1, 0]], np.float32), "1 of 2 rows are zero .* row 0"),
        (
            np.array([[1, 0], [np.nan, 0]], np.float32),
            "1 of 2 rows hold NaN or infinity, e.g. row 1",
        ),
    ],
)
def test_refuses(prediction, message):
    with pytest.raises(ValueError, match=message):
        avg_cos(FOX, prediction)


def test_refuses_no_rows():
    with pytest.raises(ValueError, match="no rows"):
        avg_cos(FOX[:0], FOX[:0])


def test_unit_length_needs_rows():
    with pytest.raises(ValueError, match=r"unit length needs \(n, d\) rows, got shape \(3,\)"):
        l2_normalize(np.ones(3, np.float32))


def test_the_mean_prompt_is_the_unit_mean_of_the_other_folds():
    truth = np.array([[3, 0], [0, 4], [0, 2], [1, 0]], np.float32)
    predicted = mean_prompt(truth, np.array([7, 7, 2, 2]))
    np.testing.assert_allclose(predicted[:2], [[1 / np.sqrt(5), 2 / np.sqrt(5)]] * 2, atol=1e-7)
    np.testing.assert_allclose(predicted[2:], [[0.6, 0.8]] * 2, atol=1e-7)
    with pytest.raises(ValueError, match=r"at least 2 folds, got \[1\]"):
        mean_prompt(truth, np.ones(4, int))
    with pytest.raises(ValueError, match="3 folds for 4 rows"):
        mean_prompt(truth, np.arange(3))
