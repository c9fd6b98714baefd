"""The data filters: exact on a toy of named rows, and blocked equals naive."""

import numpy as np
import polars as pl
import pytest

from src.data.normalize import normalize_prompts
from src.dedup import filters, similarity


def rows_at(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def clustered(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n // 3, 16))[rng.integers(n // 3, size=n)] + 0.3 * rng.standard_normal(
        (n, 16)
    )
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def naive_filter(x: np.ndarray, threshold: float) -> np.ndarray:
    kept = []
    keeper = []
    for i in range(len(x)):
        near = [(float(x[i] @ x[j]), j) for j in kept if x[i] @ x[j] > threshold]
        keeper.append(max(near)[1] if near else i)
        kept += [] if near else [i]
    return np.array(keeper)


def test_filter_keeps_one_of_a_cluster_and_names_the_keeper():
    # 0 and 20 degrees are near (cos .94), 40 is near 20 but not 0, so it stays once 20 is gone
    keeper, similarity = filters.cosine_filter(rows_at(0, 20, 40, 180), 0.85)
    assert keeper.tolist() == [0, 0, 2, 3]
    assert similarity == pytest.approx([1, np.cos(np.deg2rad(20)), 1, 1], abs=1e-6)


@pytest.mark.parametrize("block", [17, 64, 1000])
def test_filter_is_the_same_for_every_block_size(block):
    x = clustered(300)
    keeper, similarity = filters.cosine_filter(x, 0.85, block=block)
    assert (keeper == naive_filter(x, 0.85)).all()
    removed = np.flatnonzero(keeper != np.arange(len(x)))
    assert len(removed) > 50
    assert (keeper[keeper[removed]] == keeper[removed]).all()
    assert np.einsum("nd,nd->n", x[removed], x[keeper[removed]]) == pytest.approx(
        similarity[removed], abs=1e-6
    )
    kept = x[keeper == np.arange(len(x))]
    assert (kept @ kept.T - 2 * np.eye(len(kept))).max() <= 0.85


def test_rules_give_each_prompt_its_first_reason():
    prompts = pl.Series(
        ["a red fox", "A  red FOX ", "fox", " ", "a very long prompt about a fox", "a ｒed fox"]
    )
    reason = filters.rules(
        prompts,
        min_words=2,
        max_tokens=10,
        edge_characters=0,
        n_tokens=np.array([5, 5, 3, 2, 99, 5]),
    )
    assert reason.to_list() == [
        None,
        "exact duplicate",
        "fewer than 2 words",
        "empty",
        "more than 10 tokens",
        "exact duplicate",
    ]


def test_rules_let_pass_what_is_just_at_a_limit():
    prompts = pl.Series(["a fox", "two owls", "fox"])
    reason = filters.rules(
        prompts, min_words=2, max_tokens=7, edge_characters=0, n_tokens=np.array([7, 8, 1])
    )
    assert reason.to_list() == [None, "more than 7 tokens", "fewer than 2 words"]
    with pytest.raises(ValueError, match="3 prompts, 2 token counts"):
        filters.rules(
            prompts, min_words=2, max_tokens=7, edge_characters=0, n_tokens=np.array([7, 8])
        )


def test_a_missing_prompt_stays_missing_when_normalised():
    assert normalize_prompts(pl.Series(["ÉCOLE", None, "A  Fox "])).to_list() == [
        "école",
        None,
        "a fox",
    ]


def test_rules_can_drop_equal_openings_as_the_public_recipe_does():
    prompts = pl.Series(
        ["a painting of a fox, oil", "a painting of a cat, ink", "one dog in the rain, oil"]
    )
    tokens = np.full(3, 5)
    assert (
        filters.rules(
            prompts, min_words=1, max_tokens=9, edge_characters=0, n_tokens=tokens
        ).null_count()
        == 3
    )
    reasons = filters.rules(
        prompts, min_words=1, max_tokens=9, edge_characters=5, n_tokens=tokens
    ).to_list()
    assert reasons == [None, "opening seen before", "ending seen before"]


def test_a_rule_that_drops_most_rows_names_its_parameter():
    """The demo's prompts open alike: the public recipe's rule would leave a few hundred of them."""
    prompts = pl.Series([f"a photo of a {noun}" for noun in ("owl", "cat", "dog", "fox", "hen")])
    settings = {"min_words": 3, "max_tokens": 64, "n_tokens": np.full(5, 6)}
    reason = filters.rules(prompts, edge_characters=10, **settings)
    (warning,) = filters.harsh_rules(reason)
    assert "edge_characters drops 4 of 5 rows" in warning
    too_long = filters.rules(prompts, edge_characters=0, **{**settings, "max_tokens": 5})
    assert "max_tokens drops 5 of 5 rows" in filters.harsh_rules(too_long)[0]
    too_short = filters.rules(prompts, edge_characters=0, **{**settings, "min_words": 9})
    assert "min_words drops 5 of 5 rows" in filters.harsh_rules(too_short)[0]

    assert filters.harsh_rules(filters.rules(prompts, edge_characters=0, **settings)) == []
    # repeated prompts are no rule's doing
    same = pl.Series(["a photo of an owl"] * 5)
    assert filters.harsh_rules(filters.rules(same, edge_characters=10, **settings)) == []


def test_the_curve_is_drawn_at_44_thresholds():
    assert filters.CURVE.tolist() == [round(0.55 + 0.01 * i, 2) for i in range(44)]


def test_the_longest_or_the_most_imaged_prompt_of_a_cluster_stays():
    prompts = pl.Series(["a fox", "a very red fox", "A  fox", "an owl"])
    assert filters.walk_order(prompts).tolist() == [0, 1, 2, 3]
    assert filters.walk_order(prompts, "longest").tolist() == [1, 2, 3, 0]
    assert filters.walk_order(prompts, "most_images").tolist() == [0, 2, 1, 3]
    found = similarity.scan_pairs(
        rows_at(0, 1, 2, 90), 0.85, order=filters.walk_order(prompts, "longest")
    )
    assert found.keeper.tolist() == [1, 1, 1, 3]
    with pytest.raises(ValueError, match="first, longest, most_images, got 'last'"):
        filters.walk_order(prompts, "last")


def test_one_row_of_a_cluster_stays_or_none():
    assert filters.keeps_one("one") is True and filters.keeps_one("none") is False
    with pytest.raises(ValueError, match="cosine_keep must be one or none, got 'first'"):
        filters.keeps_one("first")


def test_rules_within_a_source():
    prompts = pl.Series(["a red fox"] * 3)
    scope = pl.Series(["a", "b", "a"])
    reason = filters.rules(
        prompts, min_words=1, max_tokens=9, edge_characters=0, n_tokens=np.full(3, 5), scope=scope
    )
    assert reason.to_list() == [None, None, "exact duplicate"]
