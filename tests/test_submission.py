"""A submission: written, checked, and ordered as the sample has it."""

import time

import numpy as np
import polars as pl
import pytest

from src.data import sample_submission
from src.metrics import l2_normalize
from src.submit import submission

IDS = ["227ef0887", "20057f34d", "f27_owl", "92e911621"]
X = l2_normalize(np.random.default_rng(0).standard_normal((4, 384)).astype(np.float32))


@pytest.fixture
def written(tmp_path):
    submission.write(IDS, X, tmp_path / "submission")
    return tmp_path / "submission.csv"


def cells(ids):
    return [f"{identifier}_{i}" for identifier in ids for i in range(384)]


def write_sample(path, names, header="imgId_eId,val"):
    path.write_text("\n".join([header, *(f"{name},0.5" for name in names)]) + "\n")
    return path


def test_values_survive_the_disk_in_sorted_order(written):
    frame = pl.read_csv(written, schema={"imgId_eId": pl.String, "val": pl.Float32})
    assert frame["imgId_eId"].to_list() == cells(sorted(IDS))
    rows = X[np.argsort(IDS)]
    np.testing.assert_array_equal(frame["val"].to_numpy().reshape(4, 384), rows)
    parquet = pl.read_parquet(written.with_suffix(".parquet"))
    assert parquet.schema == {"id": pl.String, "embedding": pl.Array(pl.Float32, 384)}
    np.testing.assert_array_equal(parquet["embedding"].to_numpy(), rows)
    np.testing.assert_array_equal(np.load(written.with_suffix(".npy")), rows)
    submission.check(written)


def test_brackets_in_a_name_are_letters(tmp_path):
    submission.write(IDS, X, tmp_path / "o [1]")
    submission.check(tmp_path / "o [1].csv")


def test_confidence_goes_with_its_image(tmp_path):
    submission.write(
        IDS, X, tmp_path / "submission", confidence=np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    )
    table = pl.read_parquet(tmp_path / "submission.parquet")
    assert table.columns == ["id", "embedding", "confidence"]
    assert dict(table.select("id", pl.col("confidence").round(1)).iter_rows())[
        "f27_owl"
    ] == pytest.approx(0.3)
    submission.check(tmp_path / "submission")
    table.with_columns(pl.lit(2.0, pl.Float32).alias("confidence")).write_parquet(
        tmp_path / "submission.parquet"
    )
    with pytest.raises(
        ValueError,
        match=r"submission.parquet: 4 confidences are not within -1..1, e.g. .'20057f34d': 2.0",
    ):
        submission.check(tmp_path / "submission")


@pytest.mark.parametrize(
    ("confidence", "message"),
    [
        (np.ones(3, np.float32), r"confidence of shape \(3,\) for 4 ids"),
        (
            np.array([0, 1, np.nan, 1], np.float32),
            "1 confidences are not within -1..1, e.g. .'f27_owl': nan",
        ),
    ],
)
def test_a_wrong_confidence_is_refused_before_anything_is_written(tmp_path, confidence, message):
    with pytest.raises(ValueError, match=message):
        submission.write(IDS, X, tmp_path / "submission", confidence=confidence)
    assert not list(tmp_path.iterdir())


def test_the_order_of_the_sample(tmp_path):
    sample = write_sample(tmp_path / "sample_submission.csv", cells(IDS))
    assert sample_submission.sample_ids(sample) == IDS
    submission.write(IDS[::-1], X[::-1], tmp_path / "submission", sample)
    assert pl.read_csv(tmp_path / "submission.csv")["imgId_eId"].to_list() == cells(IDS)
    np.testing.assert_array_equal(np.load(tmp_path / "submission.npy"), X)
    submission.check(tmp_path / "submission", sample)


@pytest.mark.parametrize(
    ("ids", "x", "message"),
    [
        (
            IDS,
            np.where(np.arange(384) == 3, np.nan, X).astype(np.float32),
            "4 rows hold NaN or infinity",
        ),
        (IDS, X[:, :383].copy(), "vectors are 383 long, must be 384"),
        (IDS[:3], X, "3 ids for 4 embeddings"),
        (IDS[:3] + IDS[:1], X, r"1 ids occur more than once, e.g. \['227ef0887'\]"),
        (
            IDS[:3] + ["stranger"],
            X,
            r"1 ids missing, e.g. \['92e911621'\]; 1 ids extra, e.g. \['stranger'\]",
        ),
    ],
)
def test_write_refuses_and_leaves_nothing(tmp_path, ids, x, message):
    sample = write_sample(tmp_path / "sample.csv", cells(IDS))
    with pytest.raises(ValueError, match=message):
        submission.write(ids, x, tmp_path / "submission", sample)
    assert [p.name for p in tmp_path.iterdir()] == ["sample.csv"]


def first_is(value):
    return (
        pl.when(pl.int_range(pl.len()) == 0)
        .then(pl.lit(value, pl.Float32))
        .otherwise(pl.col("val"))
        .alias("val")
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f[384:], r"submission.csv: 1 ids missing, e.g. \['20057f34d'\]"),
        (lambda f: pl.concat([f, f[:384]]), r"1 ids occur more than once, e.g. \['20057f34d'\]"),
        (
            lambda f: f.with_columns(pl.col("imgId_eId").str.replace("f27_owl", "owl")),
            r"1 ids missing.*1 ids extra.*owl",
        ),
        (lambda f: f[1:], r"1 vectors are not 384 long, e.g. \['20057f34d: 383'\]"),
        (
            lambda f: f.with_columns(first_is(float("nan"))),
            "1 values are not finite, e.g. of ids .*20057f34d",
        ),
        (lambda f: f.with_columns(first_is(None)), "1 values are not finite"),
        (lambda f: f.rename({"val": "value"}), "the header is 'imgId_eId,value'"),
        (
            lambda f: pl.concat([f[1:384], f[:1], f[384:]]),
            "out of order from line 2 .'20057f34d_1'",
        ),
        (
            lambda f: f.with_columns(pl.col("imgId_eId").str.replace("_", "-")),
            "rows are not named <imgId>_<eId>",
        ),
        (
            lambda f: f.with_columns(first_is(0.5)),
            "submission.parquet: 1 vectors differ from .*'20057f34d'",
        ),
    ],
)
def test_check_refuses_what_is_on_disk(written, spoil, message):
    spoil(pl.read_csv(written, schema={"imgId_eId": pl.String, "val": pl.Float32})).write_csv(
        written
    )
    with pytest.raises(ValueError, match=message):
        submission.check(written)


def test_a_word_for_a_value_is_counted(written):
    lines = written.read_text().splitlines()
    written.write_text("\n".join([lines[0], "20057f34d_0,fox", *lines[2:]]))
    with pytest.raises(ValueError, match="1 values are not finite"):
        submission.check(written)


def test_check_compares_with_the_sample(written, tmp_path):
    sample = write_sample(tmp_path / "sample.csv", cells([*sorted(IDS), "zebra"]))
    with pytest.raises(
        ValueError, match=r"submission.csv against .*sample.csv: 1 ids missing, e.g. \['zebra'\]"
    ):
        submission.check(written, sample)


@pytest.mark.parametrize(
    ("names", "header", "message"),
    [
        (cells(IDS), "id,val", "sample.csv: the header is 'id,val'"),
        (
            cells(IDS)[:-1],
            "imgId_eId,val",
            r"1 vectors are not 384 long, e.g. \['92e911621: 383'\]",
        ),
        (cells(IDS) + cells(IDS[:1]), "imgId_eId,val", "1 ids occur more than once"),
        (
            cells(IDS)[1::-1] + cells(IDS)[2:],
            "imgId_eId,val",
            "line 2 is '227ef0887_1', not in order",
        ),
    ],
)
def test_a_sample_of_another_form_is_refused(tmp_path, names, header, message):
    with pytest.raises(ValueError, match=message):
        sample_submission.sample_ids(write_sample(tmp_path / "sample.csv", names, header))


def test_names_with_dots_keep_them_and_a_suffix_is_as_good_as_none(tmp_path):
    submission.write(IDS, X, tmp_path / "run.v2")
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "run.v2.csv",
        "run.v2.ids.parquet",
        "run.v2.npy",
        "run.v2.parquet",
    ]
    for suffix in ("", ".csv", ".parquet", ".npy"):
        submission.write(IDS, X, tmp_path / "new" / f"submission{suffix}")
        submission.check(str(tmp_path / "new" / f"submission{suffix}"))
    assert len(list((tmp_path / "new").iterdir())) == 4


def test_three_of_many_are_shown(tmp_path):
    many = [f"{i:03}" for i in range(9)]
    sample = write_sample(tmp_path / "sample.csv", cells(many))
    with pytest.raises(
        ValueError,
        match=r"submission against .*sample.csv: 9 ids missing, e.g. \['000', '001', '002'\]; "
        r"4 ids extra, e.g. \['227ef0887', '20057f34d', 'f27_owl'\]$",
    ):
        submission.write(IDS, X, tmp_path / "submission", sample)
    write_sample(
        tmp_path / "sample.csv",
        [f"{i}_{e}" for i in many for e in range(2 * 384 if i < "004" else 10)],
    )
    with pytest.raises(
        ValueError,
        match=r"sample.csv: 4 ids occur more than once, e.g. \['000', '001', '002'\]; "
        r"5 vectors are not 384 long, e.g. \['004: 10', '005: 10', '006: 10'\]$",
    ):
        sample_submission.sample_ids(sample)
    write_sample(tmp_path / "sample.csv", [])
    with pytest.raises(ValueError, match="sample.csv: no rows below the header"):
        sample_submission.sample_ids(sample)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        (
            "ids.parquet",
            lambda t: t.with_columns(id=pl.Series(["a", *t["id"][1:]])),
            r"submission.npy: 1 ids missing, e.g. .'20057f",
        ),
        (
            "parquet",
            lambda t: t.drop("embedding"),
            r"submission.parquet: columns are .*id \(text\) and embedding \(arrays of 384",
        ),
        (
            "parquet",
            lambda t: t.with_columns(id=pl.Series(range(4))),
            "submission.parquet: columns are .*Int64",
        ),
        (
            "parquet",
            lambda t: t.with_columns(pl.col("embedding").arr.to_list()),
            "submission.parquet: columns are .*List",
        ),
        (
            "parquet",
            lambda t: t.with_columns(pl.col("embedding").arr.head(383).list.to_array(383)),
            r"submission.parquet: vectors of shape \(4, 383\), must be \(n, 384\)",
        ),
        (
            "ids.parquet",
            lambda t: t.reverse(),
            "submission.npy: ids are not in the order of .*submission.csv",
        ),
    ],
)
def test_copies_that_differ_are_refused(written, name, spoil, message):
    file = written.with_name(f"submission.{name}")
    spoil(pl.read_parquet(file)).write_parquet(file)
    with pytest.raises(ValueError, match=message):
        submission.check(written)


def test_a_table_in_another_order_is_refused_where_a_sample_gives_the_order(written, tmp_path):
    sample = write_sample(tmp_path / "sample.csv", cells(sorted(IDS)))
    submission.check(written, sample)
    table = pl.read_parquet(written.with_suffix(".parquet"))
    table.reverse().write_parquet(written.with_suffix(".parquet"))
    with pytest.raises(
        ValueError, match="submission.parquet: ids are not in the order of .*submission.csv"
    ):
        submission.check(written, sample)


def test_a_copy_of_other_values_is_refused(written):
    x = np.load(written.with_suffix(".npy"))
    x[1:, 383] += 1
    np.save(written.with_suffix(".npy"), x)
    with pytest.raises(
        ValueError,
        match="submission.npy: 3 vectors differ from .*submission.csv, e.g. '227ef0887'$",
    ):
        submission.check(written)


def test_everything_wrong_with_a_file_is_said_at_once(written):
    frame = pl.read_csv(written, schema={"imgId_eId": pl.String, "val": pl.Float32})
    frame = frame.with_columns(
        val=pl.when(pl.col("imgId_eId").str.ends_with("_7")).then(float("inf")).otherwise("val")
    )
    pl.concat([frame[:-1], frame[:2].with_columns(imgId_eId=pl.lit("no number"))]).write_csv(
        written
    )
    with pytest.raises(
        ValueError,
        match=r"submission.csv: 2 rows are not named <imgId>_<eId>; "
        r"1 vectors are not 384 long, e.g. \['f27_owl: 383'\]; "
        r"4 values are not finite, e.g. of ids \['20057f34d', '227ef0887', '92e911621'\]$",
    ):
        submission.check(written)


def test_a_confidence_may_be_one(tmp_path):
    submission.write(
        IDS, X, tmp_path / "submission", confidence=np.array([1, -1, 0, 1], np.float32)
    )
    submission.check(tmp_path / "submission")
    with pytest.raises(
        ValueError,
        match=r"submission: 4 confidences are not within -1..1, "
        r"e.g. \{'227ef0887': 1.235, '20057f34d': -1.5, 'f27_owl': 3.0\}$",
    ):
        submission.write(
            IDS, X, tmp_path / "submission", confidence=np.array([1.23456, -1.5, 3, 2])
        )


def test_a_sample_that_opens_with_a_byte_order_mark_is_read(tmp_path):
    sample = write_sample(tmp_path / "sample.csv", cells(IDS), "\ufeffimgId_eId,val")
    assert sample_submission.sample_ids(sample) == IDS


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        submission.check(tmp_path / "nowhere")


def test_a_competition_sized_file_takes_seconds(tmp_path):
    ids = [f"{i:09x}" for i in range(4000)]
    x = np.tile(X, (1000, 1))
    start = time.perf_counter()
    submission.write(ids, x, tmp_path / "submission")
    submission.check(tmp_path / "submission")
    assert time.perf_counter() - start < 20
