"""Standard errors, bootstrap intervals and verdicts."""

import numpy as np
import pytest

from src import statistics


def test_the_standard_error_counts_a_group_once(rng):
    values = rng.normal(0.5, 0.1, 300)
    assert statistics.standard_error(values) == pytest.approx(values.std() / np.sqrt(300))
    copies = np.repeat(values, 5)
    groups = np.repeat(np.arange(300), 5)
    assert statistics.standard_error(copies, groups) == pytest.approx(
        statistics.standard_error(values)
    )


def test_the_interval_is_that_of_the_normal_distribution(rng):
    values = rng.normal(0.5, 0.1, 2000)
    found = statistics.bootstrap(values, seed=1)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert found.mean == pytest.approx(values.mean())
    np.testing.assert_allclose(
        [found.low, found.high], [values.mean() - half, values.mean() + half], atol=half / 10
    )


def test_copies_in_a_group_do_not_narrow_the_interval(rng):
    values = np.repeat(rng.normal(0.5, 0.1, 200), 10)
    groups = np.repeat(np.arange(200), 10)
    rows = statistics.bootstrap(values)
    clustered = statistics.bootstrap(values, groups=groups)
    alone = statistics.bootstrap(values[::10])
    assert clustered.high - clustered.low == pytest.approx(alone.high - alone.low, rel=0.01)
    assert clustered.high - clustered.low > 2.5 * (rows.high - rows.low)


def test_groups_of_unequal_size_weigh_by_their_rows():
    found = statistics.bootstrap(
        np.array([1.0, 0, 0, 0]), groups=np.array([7, 9, 9, 9]), n_bootstrap=500
    )
    assert (found.mean, found.low, found.high) == (0.25, 0, 1)


def test_the_interval_is_of_2000_resamples_drawn_in_parts(rng):
    values = rng.normal(0.5, 0.1, 3000)  # 1333 resamples fit into a part
    drawn = np.random.default_rng(4).integers(3000, size=(2000, 3000))
    expected = values[drawn].mean(axis=1)
    found = statistics.bootstrap(values, seed=4)
    assert (found.low, found.high) == pytest.approx(
        tuple(np.percentile(expected, [2.5, 97.5])), abs=1e-12
    )
    assert found == statistics.bootstrap(values, seed=4) != statistics.bootstrap(values)
    assert statistics.bootstrap(values) == statistics.bootstrap(values, seed=0, n_bootstrap=2000)


def test_the_paired_interval_is_narrower_than_the_models_are_apart(rng):
    base = rng.normal(0.5, 0.2, 500)
    found = statistics.paired_bootstrap(base + 0.01 + rng.normal(0, 0.01, 500), base)
    assert 0.008 < found.low < 0.01 < found.high < 0.012
    groups = np.arange(500) // 5
    paired = statistics.paired_bootstrap(base**2, base, groups=groups, n_bootstrap=100, seed=7)
    assert paired == statistics.bootstrap(base**2 - base, groups=groups, n_bootstrap=100, seed=7)
    assert statistics.paired_bootstrap(base**2, base) == statistics.bootstrap(base**2 - base)
    assert str(statistics.Interval(0.5, 0.4, 0.6)) == "0.5000 [0.4000, 0.6000]"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.001, 0.2, "helps"), (-0.2, -0.001, "hurts"), (-0.1, 0.1, "unclear"), (0, 0, "unclear")],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(low, high, said):
    assert statistics.verdict(statistics.Interval((low + high) / 2, low, high)) == said


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.bootstrap(np.array([1, np.nan])), "2 values, 1 of them NaN"),
        (lambda: statistics.bootstrap(np.array([])), "0 values, 0 of them NaN or infinite"),
        (lambda: statistics.bootstrap(np.ones(3), groups=np.ones(2)), "2 groups for 3 values"),
        (lambda: statistics.paired_bootstrap(np.ones(3), np.ones(2)), "do not pair"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
