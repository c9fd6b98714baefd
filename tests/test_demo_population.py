"""The demo's population: heavy-tailed repeats, whole families on one side, one rule of distance."""

from collections import Counter

import numpy as np
import pytest

from src.demo import population


def test_family_sizes_follow_the_stated_law() -> None:
    """P(j) = c / (j (j - 1)): half as many families of 2 as all larger ones, a tail, the mean."""
    sizes = population.repeats(4000)
    assert sizes.mean() == pytest.approx(population.ROWS_PER_FAMILY, abs=0.02)
    assert (np.diff(sizes) <= 0).all() and 50 < sizes[0] <= population.LARGEST_FAMILY

    share = np.bincount(sizes) / len(sizes)
    for j in (2, 3, 4, 5):
        assert share[j] * j * (j - 1) == pytest.approx(2 * share[2], rel=0.1)


def test_the_filter_takes_a_third_and_prompts_repeat() -> None:
    """The paper: 90,000 to 60,000."""
    scenes = population.pool(3, 1500)
    prompts = population.prompts_of(scenes)
    kept = population.keep_one(population.embed(prompts), population.NEAR)
    assert 0.62 < kept.mean() < 0.72
    assert max(Counter(prompts).values()) > 3


def test_pool_is_the_seed_s() -> None:
    assert population.pool(5, 60) == population.pool(5, 60) != population.pool(6, 60)


def test_whole_families_are_dealt() -> None:
    deal = population.choose(1, 300, 40)
    assert (len(deal.train), len(deal.test)) == (300, 40)
    train, test = np.split(deal.embeddings, [300])
    assert (train @ test.T).max() <= population.FAMILY
    assert (test @ test.T - 2 * np.eye(40)).max() <= population.NEAR
    prompts = population.prompts_of(deal.train + deal.test)
    assert np.abs(population.embed(prompts) - deal.embeddings).max() < 1e-5


def test_a_pool_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population, "pool_rows", lambda train, test: train)
    with pytest.raises(ValueError, match="60 and 10 are needed"):
        population.choose(1, 60, 10)


def test_families_and_keepers_of_a_toy() -> None:
    """Ann is like Ben, Ben like Cleo, Ann not like Cleo; Dan is like nobody."""
    angle = np.radians([0, 30, 60, 170])
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    assert population.families(x, 0.85).tolist() == [0, 0, 0, 1]
    assert population.keep_one(x, 0.85).tolist() == [True, False, True, True]
    assert population.highest(x, x[:1], block=3) == pytest.approx(np.cos(angle), abs=1e-6)


def test_what_is_near_is_left_out() -> None:
    """The same draw again, away from what it gave: all of it is replaced."""
    rng = np.random.default_rng(2)
    nobody = np.empty((0, 384), dtype=np.float32)
    first, embeddings = population.far_from(rng, 30, nobody)
    again, others = population.far_from(np.random.default_rng(2), 30, embeddings)
    assert not set(population.prompts_of(first)) & set(population.prompts_of(again))
    exact = population.embed(population.prompts_of(again))
    assert (exact @ population.embed(population.prompts_of(first)).T).max() <= population.NEAR
    assert np.abs(exact @ exact.T - others @ others.T).max() < population.ROUNDING
