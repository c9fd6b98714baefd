import json

import numpy as np
import polars as pl
import pytest
from scipy.optimize import approx_fprime

from src import artifacts, paths, statistics
from src.ensemble import blending, confidence, slices, table1
from src.ensemble.members import check_pairing, load_members, member_names
from src.ensemble.table1 import Variant
from src.metrics import avg_cos, cosines, l2_normalize

_constants = np.random.default_rng(0)
TRUTH = l2_normalize(_constants.standard_normal((400, 8)).astype(np.float32))
A = l2_normalize(TRUTH + 0.25 * _constants.standard_normal((400, 8)).astype(np.float32))
B = l2_normalize(TRUTH + 0.5 * _constants.standard_normal((400, 8)).astype(np.float32))
FOLD = np.arange(400) % 4


def test_equation_6_by_hand():
    fox, owl = np.array([[1, 0]], np.float32), np.array([[0, 1]], np.float32)
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
    copies, groups = [np.repeat(x, 4, axis=0) for x in (TRUTH, A, B)], np.repeat(np.arange(400), 4)
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
    by_rows, by_groups = (
        blending.fit_weights(TRUTH, members),
        blending.fit_weights(TRUTH, members, groups=groups),
    )
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


def test_shuffled_ids_are_noticed():
    members = {"a": A, "b": B}
    assert check_pairing(TRUTH, members, FOLD)["errors"].min() > 10
    wrong = A.copy()
    wrong[FOLD == 1] = np.roll(
        A[FOLD == 1], 1, axis=0
    )  # in one fold alone each row is that of its neighbour
    with pytest.raises(
        ValueError,
        match=r"1 of 8 blocks of rows fit their own partner no better.*a in block 1: .*shuffled",
    ):
        check_pairing(TRUTH, {"a": wrong, "b": B}, FOLD)
    three = ", ".join(f"'x in block {f}: [^']*'" for f in range(3))
    with pytest.raises(ValueError, match=rf"^8 of 8 blocks .*, e.g. \[{three}\]"):
        check_pairing(TRUTH, {"x": np.roll(A, 4, axis=0), "y": np.roll(B, 4, axis=0)}, FOLD)
    constant = np.tile(l2_normalize(TRUTH.mean(axis=0, keepdims=True)), (len(TRUTH), 1))
    with pytest.raises(ValueError, match="knows nothing of the image"):
        check_pairing(TRUTH, {"mean": constant})


def test_a_handful_of_rows_cannot_tell_whether_they_were_shuffled():
    check_pairing(A[:1], {"b": B[:1]})
    check_pairing(TRUTH[:9], {"a": A[:9][::-1]})
    with pytest.raises(ValueError, match="1 of 1 blocks of rows"):
        check_pairing(TRUTH[:10], {"a": A[:10][::-1]})


def test_the_table_of_the_pairing_by_hand():
    table = check_pairing(TRUTH, {"a": 3 * A, "b": B}, FOLD)
    assert table.columns == ["member", "block", "contrast", "errors"]
    assert table.select("member", "block").rows() == [(name, f) for name in "ab" for f in range(4)]
    truth, b = TRUTH[FOLD == 2], B[FOLD == 2]
    own = ((truth - truth.mean(axis=0)) * b).sum(axis=1)
    assert table.row(6)[2:] == pytest.approx((own.mean(), own.mean() / (own.std() / 10)), rel=1e-4)
    assert check_pairing(TRUTH, {"a": A})["block"].to_list() == [0]


def test_members_are_read_by_name_and_meet_by_id(tmp_path):
    ids = [f"row {i}" for i in range(len(A))]
    assert member_names(tmp_path) == (["model_a"], ["model_b"])
    artifacts.save_json(tmp_path / paths.MEMBERS_A, {"members": ["model_a", "wide"]})
    for name, x in (("model_a", A), ("wide", -A)):
        artifacts.save_embeddings(tmp_path / paths.OOF.format(row=name), ids[::-1], x[::-1])
    artifacts.save_embeddings(tmp_path / paths.OOF_B.format(member="model_b"), ids, B)
    found = load_members(tmp_path, ids, "oof")
    assert list(found) == ["model_a", "wide", "model_b"]
    for name, x in (("model_a", A), ("wide", -A), ("model_b", B)):
        np.testing.assert_array_equal(found[name], x)
    tests = (
        paths.TEST.format(row="model_a"),
        paths.TEST.format(row="wide"),
        paths.TEST_B.format(member="model_b"),
    )
    for base, x in zip(tests, (B, -B, A), strict=True):
        artifacts.save_embeddings(tmp_path / base, ids, x)
    assert [float(x[0, 0]) for x in load_members(tmp_path, ids, "test").values()] == [
        B[0, 0],
        -B[0, 0],
        A[0, 0],
    ]
    artifacts.save_json(tmp_path / paths.MEMBERS_B, {"members": ["wide"]})
    with pytest.raises(ValueError, match="share the names .'wide'."):
        member_names(tmp_path)


def test_agreement_is_between_the_sides():
    members, sides = {"a": A, "a2": TRUTH, "b": B}, (["a", "a2"], ["b"])
    np.testing.assert_allclose(
        confidence.agreement(members, {"a": 0.6, "a2": 0, "b": 0.4}, sides),
        cosines(A, B),
        atol=1e-6,
    )
    both = confidence.agreement(members, {"a": 0, "a2": 0, "b": 1}, sides)
    np.testing.assert_allclose(both, cosines(l2_normalize(A + TRUTH), B), atol=1e-6)


def test_confidence_is_learnt_from_the_prediction_and_the_agreement():
    random = np.random.default_rng(1)
    prediction, agree = (
        l2_normalize(random.standard_normal((3000, 8)).astype(np.float32)),
        random.uniform(0.2, 0.9, 3000),
    )
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
    prediction, agree, cosine = (
        l2_normalize(random.standard_normal((300, 8)).astype(np.float32)),
        random.random(300),
        random.random(300),
    )
    fold = np.arange(300) % 3
    crossed = confidence.cross_fit_confidence(prediction, agree, cosine, fold)
    mine = fold == 1
    alone = confidence.fit_confidence(prediction[~mine], agree[~mine], cosine[~mine])(
        prediction[mine], agree[mine]
    )
    np.testing.assert_array_equal(crossed[mine], alone)


@pytest.mark.parametrize("rows", [2, 3, 10])
def test_confidence_of_a_few_rows_is_finite(rows):
    prediction, cosine = (
        l2_normalize(np.random.default_rng(0).standard_normal((rows, 384)).astype(np.float32)),
        np.linspace(0.2, 0.4, rows),
    )
    found = confidence.fit_confidence(prediction, np.full(rows, 0.5), cosine)(
        prediction, np.full(rows, 0.5)
    )
    assert (found >= 0.1).all() and (found <= 0.5).all()


def test_slices():
    table = slices.by_label(np.array([0.9, 0.7, 0.2, 0.4]), ["owl", "owl", "fox", "fox"])
    assert table.select("label", "rows", "avg_cos").rows() == [
        ("fox", 2, pytest.approx(0.3)),
        ("owl", 2, pytest.approx(0.8)),
    ]
    values, groups = np.random.default_rng(2).uniform(size=60), np.arange(60) // 5
    table = slices.by_label(
        values, ["owl"] * 20 + ["cat"] * 40, groups=groups, seed=3, n_bootstrap=50
    )
    for label, mine in (("owl", slice(20)), ("cat", slice(20, 60))):
        found = statistics.bootstrap(values[mine], groups=groups[mine], n_bootstrap=50, seed=3)
        assert table.row(by_predicate=pl.col("label") == label)[2:] == (
            found.mean,
            found.low,
            found.high,
        )
    found = statistics.bootstrap(values, n_bootstrap=1000, seed=0)
    assert slices.by_label(values, ["owl"] * 60).row(0) == (
        "owl",
        60,
        found.mean,
        found.low,
        found.high,
    )
    assert slices.by_label(np.ones(4), ["owl", "fox", "cat", "fox"])["label"].to_list() == [
        "cat",
        "fox",
        "owl",
    ]


def test_the_standard_error_counts_a_group_once(rng):
    values = rng.normal(0.5, 0.1, 300)
    assert statistics.standard_error(values) == pytest.approx(values.std() / np.sqrt(300))
    copies, groups = np.repeat(values, 5), np.repeat(np.arange(300), 5)
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
    values, groups = np.repeat(rng.normal(0.5, 0.1, 200), 10), np.repeat(np.arange(200), 10)
    rows, clustered = statistics.bootstrap(values), statistics.bootstrap(values, groups=groups)
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


def test_table_1():
    rows = [
        Variant("Model A", 400, cosines(TRUTH, A), 12.5),
        Variant("Model B", 900, cosines(TRUTH, B), 3),
    ]
    table = table1.table1(rows, groups=np.arange(400) // 2)
    assert table.columns == ["model", "rows_trained", "avg_cos", "low", "high", "seconds", "paper"]
    assert table["model"].to_list() == ["Model A", "Model B"]
    assert table["avg_cos"][0] == pytest.approx(avg_cos(TRUTH, A))
    assert (
        table.select((pl.col("low") < pl.col("avg_cos")) & (pl.col("avg_cos") < pl.col("high")))
        .to_series()
        .all()
    )
    found = statistics.bootstrap(cosines(TRUTH, B), groups=np.arange(400) // 2)
    assert table.row(1) == ("Model B", 900, found.mean, found.low, found.high, 3, 0.5531)
    table = table1.table1(rows, n_bootstrap=30, seed=5)
    assert table["low"][0] == statistics.bootstrap(cosines(TRUTH, A), n_bootstrap=30, seed=5).low


def test_the_paper_s_table_stands_beside():
    names = [
        "CLIP",
        "CLIP + data filter 1",
        "CLIP + data filter 2",
        "Model A",
        "Model B",
        "Ensemble",
        "Ensemble of all members",
    ]
    table = table1.table1([Variant(name, 4, np.ones(4), None) for name in names])
    assert table["paper"].to_list() == [0.5642, 0.5684, 0.5721, 0.5753, 0.5531, 0.5961, None]
    assert table["seconds"].null_count() == 7 and table1.OF_ALL == names[-1]


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
        (lambda: slices.by_label(np.ones(3), ["a"]), "1 labels for 3 values"),
        (lambda: statistics.bootstrap(np.array([1, np.nan])), "2 values, 1 of them NaN"),
        (lambda: statistics.bootstrap(np.array([])), "0 values, 0 of them NaN or infinite"),
        (lambda: statistics.bootstrap(np.ones(3), groups=np.ones(2)), "2 groups for 3 values"),
        (lambda: statistics.paired_bootstrap(np.ones(3), np.ones(2)), "do not pair"),
        (
            lambda: table1.table1([Variant("A", 1, np.ones(3), 1), Variant("B", 1, np.ones(2), 1)]),
            "different numbers",
        ),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.001, 0.2, "helps"), (-0.2, -0.001, "hurts"), (-0.1, 0.1, "unclear"), (0, 0, "unclear")],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(low, high, said):
    assert statistics.verdict(statistics.Interval((low + high) / 2, low, high)) == said
