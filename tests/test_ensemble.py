import numpy as np
import polars as pl
import pytest

from src import ensemble
from src.ensemble import Scored
from src.metrics import avg_cos, cosines, unit

rng = np.random.default_rng(0)
TRUTH = unit(rng.standard_normal((400, 8)).astype(np.float32))
A = unit(TRUTH + 0.25 * rng.standard_normal((400, 8)).astype(np.float32))
B = unit(TRUTH + 0.5 * rng.standard_normal((400, 8)).astype(np.float32))
FOLD = np.arange(400) % 4


def test_equation_6_by_hand():
    fox, owl = np.array([[1, 0]], np.float32), np.array([[0, 1]], np.float32)
    np.testing.assert_allclose(ensemble.blend(fox, owl, 0.75), [[0.9486833, 0.3162278]], atol=1e-6)
    np.testing.assert_allclose(ensemble.blend(9 * fox, owl, 0.75), [[0.9486833, 0.3162278]], atol=1e-6)
    np.testing.assert_array_equal(ensemble.blend(fox, owl, 1), fox)


def test_the_curve_is_the_score_of_the_blend():
    alphas = [0, 0.3, 1]
    expected = [avg_cos(TRUTH, ensemble.blend(A, B, alpha)) for alpha in alphas]
    np.testing.assert_allclose(ensemble.curve(TRUTH, A, B, alphas), expected, atol=1e-6)


def test_alpha_is_the_best_of_a_fine_grid():
    grid = np.linspace(0, 1, 2001)
    best = grid[ensemble.curve(TRUTH, A, B, grid).argmax()]
    assert ensemble.search_alpha(TRUTH, A, B) == pytest.approx(best, abs=1e-3)
    assert 0.6 < best < 1


def test_alpha_at_the_ends():
    assert ensemble.search_alpha(TRUTH, TRUTH, -TRUTH) == pytest.approx(1)
    assert ensemble.search_alpha(TRUTH, unit(TRUTH[::-1] - 2 * TRUTH), TRUTH) == 0


def test_cross_fit_takes_alpha_from_the_other_folds():
    a = A.copy()
    a[FOLD == 0] = B[::-1][FOLD == 0]  # in fold 0 alone A is useless, so the others are not warned
    prediction, alphas = ensemble.cross_fit(TRUTH, a, B, FOLD)
    others = FOLD != 0
    assert alphas[0] == ensemble.search_alpha(TRUTH[others], a[others], B[others])
    assert alphas[0] > max(alphas[f] for f in (1, 2, 3))
    np.testing.assert_array_equal(prediction[FOLD == 2], ensemble.blend(a, B, alphas[2])[FOLD == 2])


def test_the_interval_is_that_of_the_normal_distribution():
    values = rng.normal(0.5, 0.1, 2000)
    found = ensemble.bootstrap(values, seed=1)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert found.mean == pytest.approx(values.mean())
    np.testing.assert_allclose([found.low, found.high], [values.mean() - half, values.mean() + half], atol=half / 10)


def test_copies_in_a_group_do_not_narrow_the_interval():
    values, groups = np.repeat(rng.normal(0.5, 0.1, 200), 10), np.repeat(np.arange(200), 10)
    rows, clustered = ensemble.bootstrap(values), ensemble.bootstrap(values, groups=groups)
    alone = ensemble.bootstrap(values[::10])
    assert clustered.high - clustered.low == pytest.approx(alone.high - alone.low, rel=0.01)
    assert clustered.high - clustered.low > 2.5 * (rows.high - rows.low)


def test_groups_of_unequal_size_weigh_by_their_rows():
    found = ensemble.bootstrap(np.array([1.0, 0, 0, 0]), groups=np.array([7, 9, 9, 9]), samples=500)
    assert (found.mean, found.low, found.high) == (0.25, 0, 1)


def test_the_paired_interval_is_narrower_than_the_models_are_apart():
    base = rng.normal(0.5, 0.2, 500)
    found = ensemble.paired_bootstrap(base + 0.01 + rng.normal(0, 0.01, 500), base)
    assert 0.008 < found.low < 0.01 < found.high < 0.012
    assert str(ensemble.Interval(0.5, 0.4, 0.6)) == "0.5000 [0.4000, 0.6000]"


def test_table_1():
    rows = [Scored("Model A", 400, cosines(TRUTH, A), 12.5), Scored("Model B", 900, cosines(TRUTH, B), 3)]
    table = ensemble.table1(rows, groups=np.arange(400) // 2)
    assert table.columns == ["model", "rows_trained", "avg_cos", "low", "high", "seconds", "paper"]
    assert table["model"].to_list() == ["Model A", "Model B"]
    assert table["avg_cos"][0] == pytest.approx(avg_cos(TRUTH, A))
    assert table.select((pl.col("low") < pl.col("avg_cos")) & (pl.col("avg_cos") < pl.col("high"))).to_series().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ensemble.blend(A, B, 1.2), "alpha = 1.2 is not within"),
        (lambda: ensemble.blend(A, B[:5], 0.5), r"\(400, 8\), b \(5, 8\)"),
        (lambda: ensemble.cross_fit(TRUTH, A, B, np.zeros(400)), "at least 2 folds"),
        (lambda: ensemble.bootstrap(np.array([1, np.nan])), "2 values, 1 of them NaN"),
        (lambda: ensemble.bootstrap(np.ones(3), groups=np.ones(2)), "2 groups for 3 values"),
        (lambda: ensemble.paired_bootstrap(np.ones(3), np.ones(2)), "do not pair"),
        (lambda: ensemble.table1([Scored("A", 1, np.ones(3), 1), Scored("B", 1, np.ones(2), 1)]), "different numbers"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
