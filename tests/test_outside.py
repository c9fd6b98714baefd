"""Members from outside: embeddings and texts joined by id, and what is wrong with such files."""

import numpy as np
import polars as pl
import pytest

from src import artifacts, paths
from src.data import prompts
from src.ensemble import blending, confidence, outside
from src.ensemble.members import check_pairing
from src.metrics import cosines, l2_normalize
from src.model_b import isolation
from src.model_b.datastore import ColumnView
from src.runner import params, preflight

IDS = [f"fox{n}" for n in range(40)]


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    rows = np.random.default_rng(1).standard_normal((len(IDS), prompts.WIDTH))
    return l2_normalize(rows.astype(np.float32))


def near(truth: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """Unit rows around the truth, as a model would give them."""
    rows = np.random.default_rng(seed).standard_normal(truth.shape).astype(np.float32)
    return l2_normalize(truth + noise * l2_normalize(rows))


@pytest.mark.parametrize("kind", ["npy", "npy of doubles", "lists", "arrays"])
def test_embeddings_meet_by_id_and_have_unit_length(tmp_path, truth, kind):
    ids = [*reversed(IDS), "another"]
    rows = np.concatenate([truth[::-1], np.ones((1, prompts.WIDTH), np.float32)]) * 3
    file = tmp_path / ("captions.npy" if "npy" in kind else "captions.parquet")
    if kind == "npy":
        artifacts.save_embeddings(tmp_path / "captions", ids, rows)
    elif kind == "npy of doubles":
        np.save(file, rows.astype(np.float64))
        pl.DataFrame({"id": ids}).write_parquet(tmp_path / "captions.ids.parquet")
    else:
        embedding = rows if kind == "arrays" else rows.tolist()
        pl.DataFrame({"id": ids, "embedding": embedding}).write_parquet(file)
    np.testing.assert_allclose(outside.load(file, IDS), truth, atol=1e-6)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_texts_are_encoded_as_targets_are(tmp_path, suffix):
    table = pl.DataFrame({"id": [2, 1, 3], "text": ["an owl", "a fox", "a 007"]})
    artifacts.save_table(tmp_path / f"captions{suffix}", table)
    rows = outside.load(tmp_path / f"captions{suffix}", ["1", "2"])
    np.testing.assert_array_equal(rows, prompts.encode(["a fox", "an owl"]))


WRONG = {
    "ids are missing": (lambda x: x[:38], "2 of 40 ids are missing, e.g. .'fox38', 'fox39'"),
    "width": (lambda x: x[:, :383], r"shape \(40, 383\), must be \(n, 384\)"),
    "NaN": (lambda x: np.where(np.arange(40)[:, None] == 7, np.nan, x), "1 rows hold NaN .*'fox7'"),
    "zeros": (lambda x: x * (np.arange(40)[:, None] != 7), "1 of 40 rows are zero"),
    "whole numbers": (lambda x: (9 * x).astype(np.int64), "are int64, must be floating-point"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arrays_are_refused_with_their_file(tmp_path, truth, name):
    change, message = WRONG[name]
    rows = change(truth)
    np.save(tmp_path / "captions.npy", rows)
    pl.DataFrame({"id": IDS[: len(rows)]}).write_parquet(tmp_path / "captions.ids.parquet")
    with pytest.raises(ValueError, match=f"captions.npy.*{message}"):
        outside.load(tmp_path / "captions.npy", IDS)


WRONG_TABLES = [
    ({"id": ["a", "a"], "text": ["x", "y"]}, "1 ids occur more than once, e.g. .'a'."),
    ({"id": ["a", None], "text": ["x", "y"]}, "1 ids are null"),
    ({"id": ["a", "b"], "text": ["x", " "]}, "1 of 2 texts are empty, e.g. that of id 'b'"),
    ({"id": ["a", "b"], "text": ["x", None]}, "1 of 2 texts are empty"),
    ({"id": ["a", "b"], "text": [1, 2]}, "text is Int64, must be text"),
    ({"id": ["a", "b"]}, "must have the columns id and either text or embedding; there are"),
    ({"id": ["a"], "text": ["x"], "embedding": [[1.0]]}, "either text or embedding"),
    ({"name": ["a"], "text": ["x"]}, "must have the columns id"),
    ({"id": ["a"], "embedding": [1.0]}, "embedding is Float64, must be lists"),
    ({"id": ["a", "b"], "embedding": [[1.0], [1.0, 2.0]]}, "embeddings have 1 to 2 numbers"),
    ({"id": ["a"], "embedding": [[1.0] * 385]}, r"shape \(1, 385\), must be"),
    ({"id": ["a", "b"], "embedding": [[1.0] * 384, None]}, "embeddings have 0 to 384 numbers"),
    ({"id": ["a"], "embedding": [[1.0] * 383 + [None]]}, "1 rows hold NaN"),
]


@pytest.mark.parametrize(("columns", "message"), WRONG_TABLES)
def test_wrong_tables_are_refused_with_their_file(tmp_path, columns, message):
    pl.DataFrame(columns).write_parquet(tmp_path / "captions.parquet")
    with pytest.raises(ValueError, match=f"captions.parquet: .*{message}"):
        outside.load(tmp_path / "captions.parquet", ["a"])


def test_another_kind_of_file_is_refused(tmp_path):
    (tmp_path / "captions.txt").touch()
    with pytest.raises(ValueError, match="captions.txt: a table must be one of .csv, .tsv,"):
        outside.load(tmp_path / "captions.txt", ["a"])


def test_a_npy_needs_its_ids(tmp_path, truth):
    np.save(tmp_path / "captions.npy", truth)
    with pytest.raises(
        FileNotFoundError, match="captions.ids.parquet does not exist: a .npy needs"
    ):
        outside.load(tmp_path / "captions.npy", IDS)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"name": "captions", "oof": "a.npy"}], "must be {name: ..., oof: FILE, test: FILE}"),
        ([{"name": "x", "oof": "a.npy", "test": None}], "must be {name"),
        ([{"name": "model_b", "oof": "a", "test": "b"}], "the name 'model_b' is used twice"),
        ([{"name": "x", "oof": "a", "test": "b"}] * 2, "the name 'x' is used twice"),
    ],
)
def test_wrong_entries_are_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        outside.check_form(entries, ["model_a", "model_b"])


def test_shuffled_rows_are_noticed_like_those_of_any_member(tmp_path, truth):
    artifacts.save_embeddings(tmp_path / "captions", IDS, np.roll(near(truth, 0.5, 2), 1, axis=0))
    given = {"name": "captions", "oof": str(tmp_path / "captions.npy"), "test": "none.npy"}
    extra = outside.load_extra([given], IDS, "oof")
    with pytest.raises(ValueError, match="captions in block 0: .*shuffled"):
        check_pairing(truth, extra, np.zeros(len(IDS)))


def test_a_member_from_outside_is_weighed_and_new_images_are_blended_without_it(tmp_path, truth):
    own = {"model_a": near(truth, 0.8, 3), "model_b": near(truth, 1.0, 4)}
    members = own | {"captions": near(truth, 0.9, 5)}
    fold = np.arange(len(IDS)) % 4
    sides = (["model_a"], ["model_b"])
    weights = blending.fit_weights(truth, members)
    assert weights["captions"] > 0.1

    with_all = confidence.fit_blend(truth, members, fold, sides)
    without = confidence.fit_blend(truth, own, fold, sides)
    artifacts.save_json(tmp_path / paths.BLEND, {**with_all, "new_images": without})
    assert confidence.load_weights(tmp_path) == weights
    assert set(confidence.load_weights(tmp_path, new_images=True)) == set(own)
    loaded = confidence.load_confidence(tmp_path, new_images=True)
    assert vars(loaded) == without["confidence"] != with_all["confidence"]

    blend = blending.combine(own, without["weights"])
    assert cosines(truth, blending.combine(members, weights)).mean() > cosines(truth, blend).mean()


def test_without_members_from_outside_new_images_get_the_same_blend(tmp_path):
    artifacts.save_json(tmp_path / paths.BLEND, {"weights": {"model_a": 1.0}})
    assert confidence.load_weights(tmp_path, new_images=True) == {"model_a": 1.0}


def test_the_runner_knows_the_files(tmp_path):
    entry = {"name": "captions", "oof": str(tmp_path / "oof.npy"), "test": str(tmp_path / "t.csv")}
    files = params.input_paths({"extra_members": [entry]})
    assert {file.name for file in files.values()} == {"oof.npy", "oof.ids.parquet", "t.csv"}
    missing = params.missing_inputs({"04_ensemble_oof": {"extra_members": [entry]}})
    assert len(missing) == 3 and "extra_members[0].test: " in missing[2]


def test_the_check_before_a_run_reads_them(tmp_path):
    pl.DataFrame({"id": ["a"], "text": [" "]}).write_csv(tmp_path / "captions.csv")
    file = str(tmp_path / "captions.csv")
    entry = {"name": "captions", "oof": file, "test": file}
    common = {"output_dir": str(tmp_path / "out"), "extra_members": [entry]}
    per_stage = params.stage_params({"common": common}, "test")
    found = preflight.problems({"04_ensemble_oof": per_stage["04_ensemble_oof"]})
    assert len(found) == 1 and found[0].startswith("extra_members: ")
    assert "1 of 1 texts are empty" in found[0]

    differing = per_stage["05_submit"] | {"extra_members": [], "test": None}
    found = preflight.problems({**per_stage, "05_submit": differing})
    assert any(
        "extra_members: notebooks 04 and 05 must be given the same" in line for line in found
    )


def test_an_empty_table_lacks_the_ids(tmp_path):
    schema = {"id": pl.String, "embedding": pl.List(pl.Float32)}
    pl.DataFrame(schema=schema).write_parquet(tmp_path / "captions.parquet")
    with pytest.raises(ValueError, match="1 of 1 ids are missing"):
        outside.load(tmp_path / "captions.parquet", ["a"])


# --- captions that Model B searches ---


def test_captions_of_these_images_are_prompts_each_text_once(tmp_path):
    table = pl.DataFrame({"id": [*IDS[:3], "another"], "text": ["a fox", "snow", "a fox", "sea"]})
    table.write_csv(tmp_path / "captions.csv")
    pl.DataFrame({"id": IDS[:2], "text": ["a red fox", "snow"]}).write_parquet(
        tmp_path / "second.parquet"
    )
    files = [str(tmp_path / "captions.csv"), str(tmp_path / "second.parquet")]
    captions = outside.caption_prompts(files, IDS)
    assert captions.rows() == [
        ("caption_1_fox0", "a fox", "captions"),
        ("caption_1_fox1", "snow", "captions"),
        ("caption_2_fox0", "a red fox", "captions"),
    ]
    assert outside.caption_prompts([], IDS).schema == captions.schema


def test_an_image_finds_its_own_caption_and_no_other_text_like_its_prompt(truth):
    """Three training prompts in folds 0, 1 and 0, a caption and a text-only prompt like fox 0's."""
    values = ColumnView([truth[[0, 1, 2, 0, 0]]], np.arange(5))
    fold = np.array([0, 1, 0])
    run_fold = isolation.folds_of_run(fold, 5)
    captions = 1
    conflicts = isolation.run_conflicts(values, 3 + captions, truth[:3], fold, 0.85)
    assert isolation.visible_rows(run_fold, conflicts, 0).tolist() == [0, 1, 0, 1, 0]
    assert isolation.visible_rows(run_fold, conflicts, 1).tolist() == [1, 0, 1, 1, 1]


def test_captions_that_cannot_be_searched_are_refused_before_a_run(tmp_path, truth):
    artifacts.save_embeddings(tmp_path / "captions", IDS, truth)
    pl.DataFrame({"id": ["x"], "text": ["a fox"]}).write_csv(tmp_path / "others.csv")
    with pytest.raises(ValueError, match="captions.npy: holds embeddings, captions must be texts"):
        outside.caption_prompts([str(tmp_path / "captions.npy")], IDS)
    with pytest.raises(ValueError, match="others.csv: none of its 1 ids is that of an image here"):
        outside.caption_prompts([str(tmp_path / "others.csv")], IDS)

    common = {"output_dir": str(tmp_path / "out"), "captions": [str(tmp_path / "captions.npy")]}
    stage = params.stage_params({"common": common}, "test")["03_cuml_knn_model_b"]
    found = preflight.problems({"03_cuml_knn_model_b": stage | {"text_only": None}})
    assert any("captions: " in line and "holds embeddings" in line for line in found), found
    gone = {"03_cuml_knn_model_b": {"captions": [str(tmp_path / "gone.csv")]}}
    assert params.missing_inputs(gone) == [f"captions: {tmp_path / 'gone.csv'} does not exist"]
