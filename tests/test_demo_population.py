"""The demo's population: heavy-tailed repeats, whole families on one side, one rule of distance."""

from collections import Counter

import numpy as np
import pytest

from src.dedup import folds, similarity
from src.demo import population
from src.runner import params


def test_family_sizes_follow_the_stated_law() -> None:
    """P(j) = c / (j (j - 1)): half as many families of 2 as all larger ones, a tail, the mean."""
    sizes = population.repeats(4000)
    assert sizes.mean() == pytest.approx(population.ROWS_PER_FAMILY, abs=0.02)
    assert (np.diff(sizes) <= 0).all() and 50 < sizes[0] <= population.LARGEST_FAMILY

    share = np.bincount(sizes) / len(sizes)
    for j in (2, 3, 4, 5):
        assert share[j] * j * (j - 1) == pytest.approx(2 * share[2], rel=0.1)


@pytest.fixture(scope="module")
def thousand() -> tuple[list[str], np.ndarray]:
    """The prompts of a pool of a thousand rows, and their embeddings in reduced precision."""
    prompts = population.prompts_of(population.pool(3, 1000))
    return prompts, population.embed(prompts, exact=False)


def test_the_filter_takes_a_third_and_prompts_repeat(thousand: tuple) -> None:
    """The paper: 90,000 to 60,000."""
    prompts, embeddings = thousand
    assert 0.62 < population.keep_one(embeddings, population.NEAR).mean() < 0.72
    assert max(Counter(prompts).values()) > 3


def test_pool_is_the_seed_s() -> None:
    assert population.pool(5, 60) == population.pool(5, 60) != population.pool(6, 60)


def test_whole_families_are_dealt() -> None:
    deal = population.choose(1, 150, 20)
    assert (len(deal.train), len(deal.test)) == (150, 20)
    train, test = np.split(deal.embeddings, [150])
    assert (train @ test.T).max() <= population.NEAR
    assert (test @ test.T - 2 * np.eye(20)).max() <= population.NEAR
    prompts = population.prompts_of(deal.train + deal.test)
    assert np.abs(population.embed(prompts) - deal.embeddings).max() < 1e-5

    # no family of the pool is on both sides
    pool = population.prompts_of(population.pool(1, population.pool_rows(150, 20)))
    embeddings = population.embed(pool)
    kept = population.keep_one(embeddings, population.NEAR)
    family_of = dict(zip(pool, population.families(embeddings, kept), strict=True))
    of_train = {family_of[prompt] for prompt in prompts[:150]}
    assert not of_train & {family_of[prompt] for prompt in prompts[150:]}


@pytest.mark.parametrize("share", [None, 0.005])
def test_families_are_the_groups_that_the_folds_are_dealt_by(
    thousand: tuple, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By notebook 01's own code and defaults; once with a smaller share, which splits groups."""
    declared = params.declared(params.NOTEBOOKS / "01_dedup.ipynb")
    default = {name: parameter.default for name, parameter in declared.items()}
    if share is not None:
        default["max_group_share"] = share
        monkeypatch.setattr(population, "LARGEST_SHARE", share)

    _, embeddings = thousand
    scan = similarity.scan_pairs(
        embeddings, default["cosine_threshold"], link=default["group_similarity"]
    )
    groups = folds.balanced_groups(scan, max_share=default["max_group_share"])
    assert (len(np.unique(groups.threshold)) > 1) == (share is not None)

    kept = population.keep_one(embeddings, population.NEAR)
    family = population.families(embeddings, kept)
    pairs = set(zip(family.tolist(), groups.label.tolist(), strict=True))
    assert len(pairs) == len(groups) == family.max() + 1


def test_a_pool_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population, "pool_rows", lambda train, test: train)
    with pytest.raises(ValueError, match="60 and 10 are needed"):
        population.choose(1, 60, 10)


def at_angles(*degrees: float) -> np.ndarray:
    """(n, 2) float32 unit rows."""
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_families_of_a_toy() -> None:
    """Ann is like Ben and Ben like Cleo at .75, Ann not like Cleo; Dan is like nobody."""
    x = at_angles(0, 41, 82, 170)
    nobody = np.zeros(4, dtype=bool)
    assert population.families(x, nobody).tolist() == [0, 0, 0, 1]
    assert len(set(population.families(x, ~nobody))) == 4  # three are over a tenth

    # near-duplicates stay together, however many
    ann, ben, cleo, dan = population.families(at_angles(0, 30, 60, 170), ~nobody)
    assert ann == ben == cleo != dan


def test_keepers_of_a_toy() -> None:
    x = at_angles(0, 30, 60, 170)
    assert population.keep_one(x, 0.85).tolist() == [True, False, True, True]
    nearest_to_first = np.cos(np.radians([0, 30, 60, 170]))
    assert population.highest(x, x[:1], block=3) == pytest.approx(nearest_to_first, abs=1e-6)


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
