"""The scan against the naive answer, whatever the block, the threads and the precision."""

import numpy as np
import pytest
import torch
from scipy.sparse.csgraph import connected_components

from src.dedup import similarity

CURVE = np.arange(55, 99, 3) / 100


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def clustered(n: int, seed: int = 0, dim: int = 16) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = unit(
        rng.standard_normal((n // 3, dim))[rng.integers(n // 3, size=n)]
        + 0.3 * rng.standard_normal((n, dim))
    )
    x[5] = x[n - 9]
    x[n - 1] = x[n - 9]
    x[7] = x[8]  # exact duplicates
    return x


def true(x: np.ndarray) -> np.ndarray:
    """Similarities summed in float64 and rounded once."""
    return (x.astype(np.float64) @ x.T.astype(np.float64)).astype(np.float32)


def naive(
    x: np.ndarray, threshold: float, eligible: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    s = true(x)
    kept = np.zeros(len(x), bool)
    keeper = np.arange(len(x))
    similarity_to = np.ones(len(x), np.float32)
    for i in [*order[eligible[order]], *order[~eligible[order]]]:
        near = np.where(kept, s[i], -1)
        if near.max() > np.float32(threshold):
            keeper[i] = near.argmax()
            similarity_to[i] = near.max()
        else:
            kept[i] = eligible[i]
    return keeper, similarity_to, int(kept.sum())


@pytest.mark.parametrize(
    ("block", "precision"),
    [(13, "float32"), (64, "float32"), (1000, "float32"), (64, "tf32"), (1000, "tf32")],
)
def test_one_scan_settles_every_threshold_as_the_naive_walk_does(block, precision):
    x = clustered(300)
    rng = np.random.default_rng(1)
    eligible = rng.random(300) > 0.1
    order = rng.permutation(300)
    found = similarity.scan_pairs(
        x, 0.85, curve=CURVE, order=order, eligible=eligible, block=block, precision=precision
    )
    keeper, similarity_to, _ = naive(x, 0.85, eligible, order)
    assert (found.similarity == similarity_to).all() and (
        found.stays == (eligible & (keeper == np.arange(300)))
    ).all()
    removed = np.flatnonzero(keeper != np.arange(300))
    assert (true(x)[removed, found.keeper[removed]] == similarity_to[removed]).all()
    assert found.kept.tolist() == [naive(x, t, eligible, order)[2] for t in found.thresholds]
    assert len(set(found.kept)) > 5


@pytest.mark.parametrize("threads", [1, 2])
def test_the_answer_does_not_depend_on_block_threads_or_precision(threads):
    x = clustered(700, dim=64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        runs = [
            similarity.scan_pairs(x, 0.85, curve=CURVE, link=0.6, block=block, precision=precision)
            for block, precision in ((700, "float32"), (33, "float32"), (128, "tf32"))
        ]
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        for name in ("keeper", "similarity", "stays", "kept"):
            assert (getattr(run, name) == getattr(runs[0], name)).all(), name
        for level in run.forest.levels:
            assert (run.forest.components(level) == runs[0].forest.components(level)).all()


def test_similarities_at_the_threshold_are_told_apart_to_the_last_digit():
    rng = np.random.default_rng(0)
    x = unit(rng.standard_normal((40, 384)))
    y = unit(0.85 * x + np.sqrt(1 - 0.85**2) * unit(rng.standard_normal((40, 384))))
    rows = np.concatenate([x, y])
    s = true(rows)[np.arange(40), 40 + np.arange(40)]
    for threshold in s[:5]:  # a pair that is just at the threshold stays, one digit lower it goes
        at, below = (
            similarity.scan_pairs(rows, float(t)).stays
            for t in (threshold, np.nextafter(threshold, np.float32(0)))
        )
        pair = int(np.flatnonzero(s == threshold)[0])
        assert at[40 + pair] and not below[40 + pair]


def test_an_error_of_a_tile_within_the_margin_changes_nothing(monkeypatch):
    x = clustered(300)
    expected = similarity.scan_pairs(x, 0.85, curve=CURVE, link=0.6, block=50, precision="tf32")
    honest = similarity._PairScanner._tile
    rng = torch.Generator().manual_seed(0)

    def noisy(self, later, earlier):
        tile = honest(self, later, earlier)
        return tile + (2 * torch.rand(tile.shape, generator=rng) - 1) * self.margin * 0.99

    monkeypatch.setattr(similarity._PairScanner, "_tile", noisy)
    found = similarity.scan_pairs(x, 0.85, curve=CURVE, link=0.6, block=50, precision="tf32")
    assert (found.keeper == expected.keeper).all() and (found.kept == expected.kept).all()
    assert (found.forest.components(0.6) == expected.forest.components(0.6)).all()
    monkeypatch.setattr(similarity, "margin", lambda dim, precision: 1e-9)
    monkeypatch.setattr(
        similarity._PairScanner,
        "_tile",
        lambda self, later, earlier: (
            honest(self, later, earlier) + 0.02 * torch.rand(1, generator=rng)
        ),
    )
    wrong = similarity.scan_pairs(x, 0.85, curve=CURVE, block=50)
    assert (wrong.kept != expected.kept).any(), "without the margin the error is seen"


def test_groups_at_every_level_are_the_components_of_the_pairs_above_it(monkeypatch):
    monkeypatch.setattr(similarity, "PAIRS", 200)  # the forest is reduced on the way, many times
    x = clustered(400, dim=12)
    found = similarity.scan_pairs(x, 0.85, link=0.5, block=64)
    full = np.triu(true(x), 1)
    assert len(found.forest.i) < 400 + 5
    for level in found.forest.levels:
        expected = connected_components(full > level, directed=False)[1]
        label = found.forest.components(level)
        assert len(set(zip(expected, label, strict=True))) == expected.max() + 1 == label.max() + 1
    with pytest.raises(ValueError, match="no pairs were collected at 0.55"):
        found.forest.components(0.55)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_keep_none_drops_every_row_of_a_cluster(precision):
    x = clustered(300)
    found = similarity.scan_pairs(
        x, 0.85, curve=CURVE, keep_one=False, block=40, precision=precision
    )
    s = true(x)
    np.fill_diagonal(s, -1)
    assert found.kept.tolist() == [int((s.max(axis=1) <= t).sum()) for t in found.thresholds]
    removed = ~found.stays
    assert (found.similarity[removed] == s.max(axis=1)[removed]).all()
    assert (s[removed, found.keeper[removed]] == found.similarity[removed]).all()
    # a CPU computes tf32 as float32
    assert found.nearest == pytest.approx(s.max(axis=1), abs=1e-6)


def test_a_row_of_another_scope_removes_none_but_links():
    x = np.repeat(unit(np.eye(2)), 2, axis=0)
    found = similarity.scan_pairs(x, 0.85, link=0.7, scope=np.array([0, 1, 0, 0]))
    assert found.stays.tolist() == [True, True, True, False]
    assert found.forest.components(0.7).tolist() == [0, 0, 1, 1]


def test_kept_rows_are_at_or_below_the_threshold_by_brute_force_on_5000_rows():
    x = clustered(5000, dim=48)
    found = similarity.scan_pairs(x, 0.85)
    s = true(x)
    kept = np.flatnonzero(found.stays)
    removed = np.flatnonzero(~found.stays)
    assert (s[np.ix_(kept, kept)] - 2 * np.eye(len(kept), dtype=np.float32)).max() <= np.float32(
        0.85
    )
    assert len(removed) > 1000 and found.stays[found.keeper[removed]].all()
    assert (found.similarity[removed] == s[removed, found.keeper[removed]]).all()
    assert (found.similarity[removed] > np.float32(0.85)).all()


def test_nearest_in_and_nearest_across():
    x = clustered(200, 1)
    y = clustered(100, 2)
    s = (x.astype(np.float64) @ y.T.astype(np.float64)).astype(np.float32)
    best, index = similarity.nearest_in(x, y, block=30)
    assert (best == s.max(axis=1)).all() and (index == s.argmax(axis=1)).all()
    label = np.random.default_rng(0).integers(3, size=200)
    expected = np.where(label[:, None] == label, -1, true(x)).max(axis=1)
    assert similarity.nearest_across(x, label, block=30) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="no other rows"):
        similarity.nearest_in(x, y[:0])


def test_what_is_no_unit_row_or_no_cosine_is_refused():
    with pytest.raises(ValueError, match="1 of 2 rows are not of unit length, e.g. row 1"):
        similarity.scan_pairs(np.array([[1, 0], [2, 0]], np.float32), 0.85)
    with pytest.raises(ValueError, match="float64"):
        similarity.scan_pairs(np.eye(2), 0.85)
    with pytest.raises(ValueError, match="got 85"):
        similarity.scan_pairs(np.eye(2, dtype=np.float32), 85)
    with pytest.raises(ValueError, match="81 thresholds"):
        similarity.scan_pairs(np.eye(2, dtype=np.float32), 0.1, curve=np.arange(1, 82) / 100)
