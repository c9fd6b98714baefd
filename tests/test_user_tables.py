"""The tables that a user gives beside the images: any encoding, and every row counts."""

import codecs
import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from src.data import sample_submission, sources
from src.data.user_tables import read_user_table
from src.dedup import folds
from src.ensemble import outside
from src.runner import runs

# as Excel, Notepad, PowerShell and Python write a table
ENCODINGS = {
    "UTF-8": lambda text: text.encode(),
    "UTF-8 with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16, big end first": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "Windows-1252": lambda text: text.encode("cp1252"),
}


@pytest.fixture(params=ENCODINGS)
def write(request, tmp_path):
    """Write a table in one of the encodings, with the line ends of Windows."""

    def write(name: str, text: str) -> Path:
        file = tmp_path / name
        file.write_bytes(ENCODINGS[request.param](text.replace("\n", "\r\n")))
        return file

    return write


def test_folds_in_any_encoding(write):
    file = write("folds.csv", "id,fold\ncafé,1\n007,0\n7,1\n")
    fold = folds.given_folds(file, ["7", "007", "café"], np.array([0, 1, 2]))
    assert fold.tolist() == [1, 0, 1]


def test_the_truth_in_any_encoding(write):
    file = write("truth.csv", 'imgId,prompt\n007,"a café, ""open"""\n1e5,naïve\n')
    assert sources.read_truth(file).rows() == [("007", 'a café, "open"'), ("1e5", "naïve")]


def test_attributes_in_any_encoding(write, tmp_path):
    (tmp_path / "café.png").touch()
    file = write("attributes.csv", "file_name,style\ncafé.png,rosé\n")
    images = pl.Series([str(tmp_path / "café.png")])
    described = sources.read_attributes(file, ["style"], images)
    assert described.rows() == [("rosé", images[0])]


@pytest.mark.parametrize("name", ["captions.csv", "captions.tsv"])
def test_captions_from_outside_in_any_encoding(write, name):
    comma = "\t" if name.endswith("tsv") else ","
    file = write(name, f"id{comma}text\n007{comma}a café\n")
    assert outside.read(file) == (["007"], ["a café"])


def test_runs_in_any_encoding(write):
    values = dict.fromkeys(runs.COLUMNS, "") | {"changed": "café", "note": "très bien"}
    file = write("runs.csv", ",".join(values) + "\n" + ",".join(values.values()) + "\n")
    row = runs.load(file).row(0, named=True)
    assert row["changed"] == "café"
    assert row["note"] == "très bien"
    assert row["leaderboard"] is None


def test_a_sample_submission_in_any_encoding(write):
    file = write("sample_submission.csv", "imgId_eId,val\ncafé_0,0.5\n")
    assert sample_submission.read_cells(file).rows() == [("café_0", 0.5)]


def test_json_lines_gzip_and_parquet(tmp_path):
    (tmp_path / "folds.jsonl").write_text('{"id": "007", "fold": 1}\n{"id": "7", "fold": 0}\n')
    (tmp_path / "folds.csv.gz").write_bytes(gzip.compress(b"id,fold\n007,1\n7,0\n"))
    pl.DataFrame({"id": ["007", "7"], "fold": [1, 0]}).write_parquet(tmp_path / "folds [1].parquet")
    for name in ("folds.jsonl", "folds.csv.gz", "folds [1].parquet"):
        fold = folds.given_folds(tmp_path / name, ["7", "007"], np.array([0, 1]))
        assert fold.tolist() == [0, 1], name


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            'a,a fox\nb,"a sign\nc,an owl\n',
            "truth.csv: 1 of 3 rows cannot be used, e.g. row 2: a quote is never closed",
        ),
        ("a,a fox\nb,\n", "truth.csv: 1 of 2 rows lack their imgId or prompt, e.g. .*'b'"),
    ],
    ids=["open quote", "no prompt"],
)
def test_a_truth_with_a_row_that_cannot_be_used_is_refused(tmp_path, rows, message):
    file = tmp_path / "truth.csv"
    file.write_text("imgId,prompt\n" + rows)
    with pytest.raises(ValueError, match=message):
        sources.read_truth(file)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("gone.csv", FileNotFoundError, "gone.csv does not exist"),
        ("folder.csv", IsADirectoryError, "folder.csv is not a file"),
        ("table.xlsx", ValueError, "table.xlsx: a table must be one of .csv, .tsv"),
        ("empty.csv", ValueError, r"empty.csv has no column id; there are \[\]"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, name, error, message):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "table.xlsx").touch()
    (tmp_path / "empty.csv").touch()
    with pytest.raises(error, match=message):
        read_user_table(tmp_path / name, ["id"])
