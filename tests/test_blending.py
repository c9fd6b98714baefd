"""The blend of two models and of any number: alpha, weights, cross-fitting."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from src.ensemble import blending
from src.metrics import avg_cos, cosines, l2_normalize
from tests.helpers.two_models import FOLD, TRUTH, A, B


def test_equation_6_by_hand():
    fox = np.array([[1, 0]], np.float32)
    owl = np.array([[0, 1]], np.float32)
    np.testing.assert_allclose(blending.blend(fox, owl, 0.75), [[0.9486833, 0.3162278]], atol=1e-6)
    np.testing.assert_allclose(
        blending.blend(9 * fox, owl, 0.75), [[0.9486833, 0.3162278]], atol=1e-6
    )
    np.testing.assert_array_equal(blending.blend(fox, owl, 1), fox)


def test_alpha_may_be_nothing_or_all():
    np.testing.assert_allclose(blending.blend(A, B, 0), B, atol=1e-6)
    np.testing.assert_allclose(blending.blend(A, B, 1), A, atol=1e-6)


def test_the_curve_is_the_score_of_the_blend():
    alphas = [0, 0.3, 1]
    expected = [avg_cos(TRUTH, blending.blend(A, B, alpha)) for alpha in alphas]
    np.testing.assert_allclose(blending.curve(TRUTH, A, B, alphas), expected, atol=1e-6)


def test_alpha_is_the_best_of_a_fine_grid():
    grid = np.linspace(0, 1, 2001)
    best = grid[blending.curve(TRUTH, A, B, grid).argmax()]
    assert blending.search_alpha(TRUTH, A, B) == pytest.approx(best, abs=1e-3)
    assert 0.6 < best < 1


def test_alpha_at_the_ends():
    assert blending.search_alpha(TRUTH, TRUTH, -TRUTH) == pytest.approx(1)
    assert blending.search_alpha(TRUTH, l2_normalize(TRUTH[::-1] - 2 * TRUTH), TRUTH) == 0


def test_cross_fit_takes_alpha_from_the_other_folds():
    a = A.copy()
    a[FOLD == 0] = B[::-1][FOLD == 0]  # in fold 0 alone A is useless, so the others are not warned
    prediction, alphas = blending.cross_fit(TRUTH, a, B, FOLD)
    others = FOLD != 0
    assert alphas[0] == blending.search_alpha(TRUTH[others], a[others], B[others])
    assert alphas[0] > max(alphas[f] for f in (1, 2, 3))
    np.testing.assert_array_equal(prediction[FOLD == 2], blending.blend(a, B, alphas[2])[FOLD == 2])


def test_the_flat_range_is_where_the_score_stays_within_one_standard_error():
    low, high = blending.flat_range(TRUTH, A, B)
    best = blending.search_alpha(TRUTH, A, B)
    score = cosines(TRUTH, blending.blend(A, B, best))
    floor = score.mean() - score.std() / np.sqrt(len(score))
    assert low < best < high
    for inside, outside in ((low, low - 0.003), (high, min(high + 0.003, 1))):
        assert blending.curve(TRUTH, A, B, [inside])[0] >= floor - 1e-6
        assert outside >= 1 or blending.curve(TRUTH, A, B, [outside])[0] < floor


def test_the_flat_range_of_rows_that_come_in_groups_is_wider():
    copies = [np.repeat(x, 4, axis=0) for x in (TRUTH, A, B)]
    groups = np.repeat(np.arange(400), 4)
    low, high = blending.flat_range(*copies, groups=groups)
    assert (low, high) == pytest.approx(blending.flat_range(TRUTH, A, B), abs=2e-3)
    assert high - low > 1.3 * np.ptp(blending.flat_range(*copies))


def test_a_flat_range_may_reach_both_ends():
    assert blending.flat_range(TRUTH, A, A) == (0, 1)


def test_two_weights_are_alpha():
    weights = blending.fit_weights(TRUTH, {"a": A, "b": B})
    assert weights["a"] == pytest.approx(blending.search_alpha(TRUTH, A, B), abs=1e-3)
    np.testing.assert_allclose(
        blending.combine({"a": A, "b": B}, weights), blending.blend(A, B, weights["a"]), atol=1e-6
    )


def test_three_weights_are_the_best_of_a_grid():
    c = l2_normalize(
        TRUTH + 0.5 * np.random.default_rng(5).standard_normal(TRUTH.shape).astype(np.float32)
    )
    members = {"a": A, "b": B, "c": c}
    found = avg_cos(TRUTH, blending.combine(members, blending.fit_weights(TRUTH, members)))
    grid = [(i / 40, j / 40, (40 - i - j) / 40) for i in range(41) for j in range(41 - i)]
    best = max(
        avg_cos(TRUTH, blending.combine(members, dict(zip(members, w, strict=True)))) for w in grid
    )
    assert found >= best - 1e-5


def test_a_member_that_adds_nothing_has_weight_exactly_zero():
    random = np.random.default_rng(3)
    noise = l2_normalize(random.standard_normal(TRUTH.shape).astype(np.float32))
    worse = l2_normalize(
        A + 0.3 * random.standard_normal(TRUTH.shape).astype(np.float32)
    )  # A again, with noise of its own
    weights = blending.fit_weights(
        TRUTH, {"noise": noise, "a": A, "a again": A, "b": B, "worse": worse}
    )
    assert weights["noise"] == 0 and weights["worse"] == 0
    assert min(weights["a"], weights["a again"]) == 0 and weights["a"] + weights["a again"] > 0.5
    assert sum(weights.values()) == pytest.approx(1)


def test_the_optimiser_s_gradient_is_that_of_its_loss():
    along, gram = blending._products(TRUTH, {"a": A, "b": B, "c": l2_normalize(A + B[::-1])})
    for weight in ([0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.0, 0.7, 0.3]):
        loss, slope = blending._loss(np.array(weight), along, gram)
        assert loss == pytest.approx(
            -avg_cos(
                TRUTH,
                l2_normalize(weight[0] * A + weight[1] * B + weight[2] * l2_normalize(A + B[::-1])),
            ),
            abs=1e-6,
        )
        assert slope == pytest.approx(
            approx_fprime(np.array(weight), lambda w: blending._loss(w, along, gram)[0], 1e-6),
            abs=1e-5,
        )


def test_the_optimum_gives_what_it_does_not_need_nothing_at_all():
    noise = l2_normalize(np.random.default_rng(3).standard_normal(TRUTH.shape).astype(np.float32))
    found = blending._optimum(
        *blending._products(TRUTH, {"a": A, "against": -TRUTH, "noise": noise, "b": B})
    )
    assert found[1] == 0 and found.sum() == pytest.approx(1, abs=1e-12) and (found >= 0).all()


def test_one_member_has_all_the_weight():
    assert blending.fit_weights(TRUTH, {"b": B}) == {"b": 1.0}
    np.testing.assert_allclose(blending.combine({"b": 3 * B}, {"b": 1.0}), B, atol=1e-6)


def test_what_a_member_adds_is_judged_by_groups():
    groups = np.arange(400) // 200
    members = {
        "a": np.where((groups == 0)[:, None], A, l2_normalize(A + 4 * B)),
        "b": B,
    }  # two draws say less than 400 rows
    by_rows = blending.fit_weights(TRUTH, members)
    by_groups = blending.fit_weights(TRUTH, members, groups=groups)
    assert by_rows["b"] > 0.1 and by_groups == {"a": 1, "b": 0}
    others = {name: x[FOLD != 1] for name, x in members.items()}
    for judged, theirs in ((None, None), (groups, groups[FOLD != 1])):
        crossed = blending.cross_fit_weights(TRUTH, members, FOLD, groups=judged)[1]
        assert crossed.row(1, named=True) == {
            "fold": 1,
            **blending.fit_weights(TRUTH[FOLD != 1], others, groups=theirs),
        }


def test_weights_are_cross_fitted():
    a = A.copy()
    a[FOLD == 0] = B[::-1][FOLD == 0]  # in fold 0 alone A is useless, so the others are not warned
    prediction, weights = blending.cross_fit_weights(TRUTH, {"a": a, "b": B}, FOLD)
    assert weights["fold"].to_list() == [0, 1, 2, 3] and weights["a"][0] > weights["a"][1:].max()
    mine = blending.combine(
        {"a": a[FOLD == 2], "b": B[FOLD == 2]}, weights.drop("fold").row(2, named=True)
    )
    np.testing.assert_array_equal(prediction[FOLD == 2], mine)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: blending.blend(A, B, 1.2), "alpha = 1.2 is not within"),
        (lambda: blending.blend(A, B, -0.1), "alpha = -0.1 is not within"),
        (lambda: blending.blend(A, B[:5], 0.5), r"\(400, 8\), b \(5, 8\)"),
        (lambda: blending.cross_fit(TRUTH, A, B, np.zeros(400)), "at least 2 folds"),
        (lambda: blending.combine({"a": A}, {"b": 1.0}), "weights for .'b'., members are .'a'."),
        (lambda: blending.combine({"a": A, "b": B}, {"a": 0.5, "b": 0.6}), "must sum to 1"),
        (lambda: blending.combine({"a": A, "b": B}, {"a": 1.5, "b": -0.5}), "must not be negative"),
        (lambda: blending.cross_fit_weights(TRUTH, {"a": A}, np.zeros(400)), "at least 2 folds"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
