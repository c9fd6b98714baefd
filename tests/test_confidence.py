"""The confidence of a prediction."""

import json

import numpy as np
import pytest

from src.ensemble import confidence
from src.metrics import cosines, l2_normalize
from tests.helpers.two_models import TRUTH, A, B


def test_agreement_is_between_the_sides():
    members = {"a": A, "a2": TRUTH, "b": B}
    sides = (["a", "a2"], ["b"])
    np.testing.assert_allclose(
        confidence.agreement(members, {"a": 0.6, "a2": 0, "b": 0.4}, sides),
        cosines(A, B),
        atol=1e-6,
    )
    both = confidence.agreement(members, {"a": 0, "a2": 0, "b": 1}, sides)
    np.testing.assert_allclose(both, cosines(l2_normalize(A + TRUTH), B), atol=1e-6)


def test_confidence_is_learnt_from_the_prediction_and_the_agreement():
    random = np.random.default_rng(1)
    prediction = l2_normalize(random.standard_normal((3000, 8)).astype(np.float32))
    agree = random.uniform(0.2, 0.9, 3000)
    expected = 0.6 + 0.2 * prediction[:, 0] + 0.1 * agree
    cosine = (expected + random.normal(0, 0.05, 3000)).astype(np.float32)
    fitted = confidence.fit_confidence(prediction, agree, cosine)
    np.testing.assert_allclose(fitted(prediction, agree), expected, atol=0.02)
    np.testing.assert_allclose(
        [fitted.weight[0], *fitted.weight[1:], fitted.agreement], [0.2, *[0] * 7, 0.1], atol=0.02
    )
    again = confidence.Confidence(**json.loads(json.dumps(vars(fitted))))
    assert again == fitted and fitted(prediction, agree).dtype == np.float32
    far = fitted(100 * prediction[:50], agree[:50])  # no image gets what none of the rows had
    assert (
        set(far.tolist()) <= {np.float32(fitted.low), np.float32(fitted.high)}
        and -1 <= fitted.low < fitted.high <= 1
    )


def test_confidence_of_a_fold_comes_from_the_others():
    random = np.random.default_rng(2)
    prediction = l2_normalize(random.standard_normal((300, 8)).astype(np.float32))
    agree = random.random(300)
    cosine = random.random(300)
    fold = np.arange(300) % 3
    crossed = confidence.cross_fit_confidence(prediction, agree, cosine, fold)
    mine = fold == 1
    alone = confidence.fit_confidence(prediction[~mine], agree[~mine], cosine[~mine])(
        prediction[mine], agree[mine]
    )
    np.testing.assert_array_equal(crossed[mine], alone)


@pytest.mark.parametrize("rows", [2, 3, 10])
def test_confidence_of_a_few_rows_is_finite(rows):
    prediction = l2_normalize(
        np.random.default_rng(0).standard_normal((rows, 384)).astype(np.float32)
    )
    cosine = np.linspace(0.2, 0.4, rows)
    found = confidence.fit_confidence(prediction, np.full(rows, 0.5), cosine)(
        prediction, np.full(rows, 0.5)
    )
    assert (found >= 0.1).all() and (found <= 0.5).all()
