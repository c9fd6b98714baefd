"""Table 1, its steps, and the slices of the score."""

import numpy as np
import polars as pl
import pytest

from src import artifacts, paths, statistics
from src.ensemble import slices, table1
from src.ensemble.table1 import ScoredVariant
from src.metrics import avg_cos, cosines, mean_prompt
from tests.helpers.two_models import FOLD, TRUTH, A, B


def test_slices():
    table = slices.by_label(np.array([0.9, 0.7, 0.2, 0.4]), ["owl", "owl", "fox", "fox"])
    assert table.select("label", "rows", "avg_cos").rows() == [
        ("fox", 2, pytest.approx(0.3)),
        ("owl", 2, pytest.approx(0.8)),
    ]
    values = np.random.default_rng(2).uniform(size=60)
    groups = np.arange(60) // 5
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


def test_table_1():
    rows = [
        ScoredVariant("Model A", 400, cosines(TRUTH, A), 12.5),
        ScoredVariant("Model B", 900, cosines(TRUTH, B), 3),
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
    table = table1.table1([ScoredVariant(name, 4, np.ones(4), None) for name in names])
    assert table["paper"].to_list() == [0.5642, 0.5684, 0.5721, 0.5753, 0.5531, 0.5961, None]
    assert table["seconds"].null_count() == 7 and names[-1] == table1.OF_ALL


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: table1.table1(
                [ScoredVariant("A", 1, np.ones(3), 1), ScoredVariant("B", 1, np.ones(2), 1)]
            ),
            "different numbers",
        ),
        (lambda: slices.by_label(np.ones(3), ["a"]), "1 labels for 3 values"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_steps_of_the_ladder_end_at_the_best_single_row():
    scores = dict(zip(table1.PAPER, [0.1, 0.2, 0.15, 0.3, 0.35, 0.4], strict=True))
    variants = [ScoredVariant(table1.MEAN_PROMPT, 4, np.full(8, 0.9), None)]
    variants += [ScoredVariant(name, 4, np.full(8, score), None) for name, score in scores.items()]
    steps = table1.ladder_steps(variants, n_bootstrap=10)
    assert [name for name, _, _ in steps][-1] == "ensemble over Model B"
    here = [difference.mean for _, difference, _ in steps]
    np.testing.assert_allclose(here, [0.1, -0.05, 0.15, 0.05])
    in_paper = [difference for _, _, difference in steps]
    np.testing.assert_allclose(in_paper, [0.0042, 0.0037, 0.0032, 0.5961 - 0.5531])


def test_every_variant_of_a_run_is_scored_on_the_same_rows(tmp_path):
    ids = [f"row {n}" for n in range(len(TRUTH))]
    for name in (*paths.LADDER, "probe"):
        artifacts.save_embeddings(tmp_path / paths.OOF.format(variant=name), ids[::-1], A[::-1])
    trained = {"variant": ["clip", "clip", "model_a", "probe"], "seconds": [1.0, 2.0, 4.0, 5.0]}
    others = pl.DataFrame({"variant": ["clip_filter1", "clip_filter2"], "seconds": [0.0, 0.0]})
    artifacts.save_table(tmp_path / paths.TRAINED, pl.concat([pl.DataFrame(trained), others]))
    artifacts.write_meta(tmp_path / "03_cuml_knn_model_b", seconds=8.0)
    filter1 = pl.Series([True] * 450 + [False] * 50)
    artifacts.save_table(tmp_path / paths.PAIRS, pl.DataFrame({"filter1": filter1}))
    artifacts.save_table(tmp_path / paths.STORE, pl.DataFrame({"id": range(700)}))

    scored = table1.scoring(tmp_path, ids, TRUTH)
    of_mean = table1.mean_prompt_variant(scored, FOLD)
    assert (of_mean.name, of_mean.rows_trained, of_mean.seconds) == ("Mean prompt", 400, None)
    np.testing.assert_array_equal(of_mean.cosines, cosines(TRUTH, mean_prompt(TRUTH, FOLD)))

    variants = table1.paper_variants(scored, B, A)
    assert [v.name for v in variants] == list(table1.PAPER)
    assert [v.rows_trained for v in variants] == [500, 450, 400, 400, 700, 700]
    assert [v.seconds for v in variants] == [3, 0, 0, 4, 8, 12]
    np.testing.assert_array_equal(variants[0].cosines, cosines(TRUTH, A))

    members = {"model_a": A, "model_a_2": TRUTH, "model_b": B}
    sides = (["model_a", "model_a_2"], ["model_b"])
    further = table1.further_variants(scored, members, sides)
    assert [v.name for v in further] == ["probe", "model_a_2"]
    assert [v.seconds for v in further] == [5, None]
    np.testing.assert_allclose(further[1].cosines, 1, atol=1e-6)


def test_table_1_and_the_rows_beyond_it_are_read_with_their_types(tmp_path):
    row = ScoredVariant(table1.MEAN_PROMPT, 4, np.ones(4), None)
    artifacts.save_table(tmp_path / paths.TABLE1, table1.table1([row]))
    artifacts.save_table(tmp_path / paths.LADDER_TABLE, table1.table1([]).drop("paper"))
    read = table1.load_all(tmp_path)
    assert read.schema == pl.Schema({**table1.SCHEMA, "table1": pl.Boolean})
    assert read.rows() == [(table1.MEAN_PROMPT, 4, 1, 1, 1, None, None, True)]

    beyond = table1.table1([ScoredVariant("caption", None, np.ones(4), 2)]).drop("paper")
    artifacts.save_table(tmp_path / paths.LADDER_TABLE, beyond)
    read = table1.load_all(tmp_path)
    assert read["table1"].to_list() == [True, False]
    assert read["seconds"].to_list() == [None, 2]


def test_prompts_are_labelled_by_their_length():
    labels = slices.length_labels([" ".join(["fox"] * n) for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 30)])
    assert [label.strip() for label in labels[:3]] == ["1-2 words", "1-2 words", "3-4 words"]
    assert labels[-1].strip() == "9-30 words"
    assert {len(label) for label in labels} == {13}, "of one width, so that they sort by number"


def test_similarities_are_labelled_in_twentieths():
    labels = slices.similarity_labels(np.array([0.61, 0.64, 0.99], np.float32))
    assert labels == ["0.60-0.65", "0.60-0.65", "0.95-1.00"]


def test_the_nearest_training_prompt_is_of_another_fold():
    truth = np.eye(3, dtype=np.float32)[[0, 0, 1, 2]]
    fold = np.array([0, 0, 1, 1])
    np.testing.assert_allclose(slices.nearest_training_prompt(truth, fold), 0, atol=1e-6)
    fold = np.array([0, 1, 0, 1])
    np.testing.assert_allclose(slices.nearest_training_prompt(truth, fold), [1, 1, 0, 0], atol=1e-6)


def test_an_attribute_with_two_values_counts_for_both():
    described = pl.DataFrame({"row": range(20), "style": ["oil + ink"] * 10 + ["oil"] * 10})
    score = np.repeat([0.2, 0.6], 10)
    table = slices.by_attribute(score, described, "style")
    assert table.select("label", "rows", "avg_cos").rows() == [
        ("ink", 10, pytest.approx(0.2)),
        ("oil", 20, pytest.approx(0.4)),
    ]
    assert slices.by_attribute(score[:19], described[:19], "style")["label"].to_list() == [
        "ink",
        "oil",
    ]
    assert slices.by_attribute(score, described[1:], "style")["label"].to_list() == ["oil"]


def test_the_extremes_of_a_slicing_in_words():
    labels = [f"label {n:02}" for n in range(20) for _ in range(2)]
    table = slices.by_label(np.arange(40) / 40, labels)
    assert slices.in_words({"style": table, "empty": table[:0]}) == [
        "style: hardest label 00 0.013 (2 rows), easiest label 19 0.962 (2 rows)"
    ]
    ends = slices.hardest_and_easiest(table)["label"].to_list()
    assert len(ends) == 16 and ends[0] == "label 00" and ends[-1] == "label 19"
    assert slices.hardest_and_easiest(table[:16]).equals(table[:16])
    assert slices.one_table({"style": table})["by"].to_list() == ["style"] * 20
