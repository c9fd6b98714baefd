"""Arrays, ids, stores and submissions that are not what they should be."""

import io
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from src import artifacts
from src.data import sample_submission, sources
from src.model_b import datastore
from src.submit import submission
from tests.helpers.bad_files import Hostile, Spoil, cut, in_place, parquet, removed

IDS = ["ant", "bee", "cat"]
X = np.random.default_rng(0).standard_normal((3, 384)).astype(np.float32)


def npy(x: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    np.save(stream, x, **options)
    return stream.getvalue()


def npz(x: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, x=x)
    return stream.getvalue()


def with_value(value: float) -> np.ndarray:
    x = X.copy()
    x[1, 7] = value
    return x


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text.encode()


ARRAYS: dict[str, tuple[bytes, str]] = {
    "of_0_bytes": (b"", "x.npy cannot be read"),
    "header_cut": (npy(X)[:40], "x.npy cannot be read"),
    "cut": (npy(X)[:-100], "x.npy cannot be read"),
    "text": (b"0.1 0.2", "x.npy cannot be read"),
    "archive": (npz(X), "archive, not one array"),
    "archive_cut": (npz(X)[:60], "x.npy cannot be read"),
    "objects": (npy(np.array([1, "a"], object), allow_pickle=True), "x.npy cannot be read"),
    "header_with_code": (
        npy_header("__import__('os').makedirs('owned')\n"),
        "x.npy cannot be read",
    ),
    "header_of_a_huge_shape": (
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999, 384)}\n"),
        "x.npy cannot be read",
    ),
    "header_of_a_negative_shape": (
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 384)}\n"),
        "x.npy cannot be read",
    ),
    "double": (npy(X.astype(np.float64)), "2-D float32, got 2-D float64"),
    "half": (npy(X.astype(np.float16)), "2-D float32, got 2-D float16"),
    "integers": (npy(X.astype(np.int64)), "2-D float32"),
    "flat": (npy(X.ravel()), "got 1-D"),
    "cube": (npy(X[None]), "got 3-D"),
    "big_endian": (npy(X.astype(">f4")), "2-D float32, got 2-D >f4"),
    "a_row_short": (npy(X[:2]), "3 ids for 2 embeddings"),
    "a_row_too_many": (npy(np.vstack([X, X[:1]])), "3 ids for 4 embeddings"),
    "nan": (npy(with_value(np.nan)), "1 rows hold NaN or infinity, e.g. row 1"),
    "infinity": (npy(with_value(-np.inf)), "NaN or infinity"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_that_is_not_what_it_should_be_is_refused(tmp_path, monkeypatch, name):
    content, expected = ARRAYS[name]
    monkeypatch.chdir(tmp_path)
    artifacts.save_embeddings(tmp_path / "x", IDS, X)
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        artifacts.load_embeddings(tmp_path / "x")
    assert not (tmp_path / "owned").exists()


def test_a_pickled_array_does_not_run(tmp_path):
    artifacts.save_embeddings(tmp_path / "x", IDS, X)
    (tmp_path / "x.npy").write_bytes(
        npy(np.array([Hostile(tmp_path / "owned")], object), allow_pickle=True)
    )
    (tmp_path / "y.npy").write_bytes(pickle.dumps(Hostile(tmp_path / "owned")))
    for attempt in (
        lambda: artifacts.load_embeddings(tmp_path / "x"),
        lambda: artifacts.load_array(tmp_path / "y.npy"),
        lambda: sources.read_store(tmp_path),
    ):
        with pytest.raises(ValueError, match="cannot be read"):
            attempt()
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (b"", "ids.parquet cannot be read"),
        (parquet(id=IDS)[:-9], "ids.parquet cannot be read"),
        (parquet(name=IDS), "ids.parquet has no column id; there are .'name'"),
        (parquet(id=["ant", "bee"]), "2 ids for 3"),
        (parquet(id=["ant", "bee", "ant"]), "1 ids occur more than once"),
        (parquet(id=["ant", None, "cat"]), "1 ids are null"),
        (parquet(id=[1, 2, 3]), "ids are Int64, must be text"),
    ],
    ids=["empty", "cut", "column_missing", "too_few", "doubled", "null", "numbers"],
)
def test_ids_that_do_not_fit_their_rows_are_refused(tmp_path, ids, expected):
    artifacts.save_embeddings(tmp_path / "x", IDS, X)
    (tmp_path / "x.ids.parquet").write_bytes(ids)
    with pytest.raises(ValueError, match=expected):
        artifacts.load_embeddings(tmp_path / "x")


CSV = "submission.csv"
PARQUET = "submission.parquet"
NPY = "submission.npy"


def csv_file(change: Callable[[list[str]], list[str]]) -> Spoil:
    """Other rows, the header first, in the place of those that the file holds."""

    def spoil(folder: Path) -> None:
        rows = change((folder / CSV).read_text().splitlines())
        (folder / CSV).write_text("\n".join(rows) + "\n")

    return spoil


def csv_value(value: str) -> Spoil:
    """Another value in one row."""

    def change(rows: list[str]) -> list[str]:
        cell, _ = rows[9].split(",")
        return [*rows[:9], f"{cell},{value}", *rows[10:]]

    return csv_file(change)


def parquet_file(**columns: object) -> Spoil:
    return in_place(PARQUET, parquet(**columns))


def npy_file(x: np.ndarray) -> Spoil:
    return in_place(NPY, npy(x))


def vectors(x: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])


NOT_FINITE = "1 values are not finite"
OUT_OF_ORDER = "out of order from line 2"
OTHER_COLUMNS = "submission.parquet: columns are"
TOO_SHORT = "must be .n, 384."
SUBMISSIONS: dict[str, tuple[Spoil, str]] = {
    "csv_gone": (removed(CSV), "submission.csv does not exist"),
    "csv_of_0_bytes": (in_place(CSV, b""), "the header is ''"),
    "csv_header_only": (in_place(CSV, b"imgId_eId,val\n"), "3 ids missing"),
    "csv_binary": (in_place(CSV, bytes(range(256)) * 9), "the header is"),
    "csv_with_bytes_that_are_no_utf8": (in_place(CSV, b"imgId_eId,val\n\xff\xfe_0,1\n"), CSV),
    "csv_of_three_columns": (csv_file(lambda rows: [rows[0], *(r + ",9" for r in rows[1:])]), CSV),
    "csv_cut": (
        csv_file(lambda rows: rows[:500]),
        "1 ids missing, e.g. ..cat'.*1 vectors are not 384 long",
    ),
    "csv_row_missing": (
        csv_file(lambda rows: rows[:5] + rows[6:]),
        "1 vectors are not 384 long, e.g. ..ant: 383'",
    ),
    "csv_row_twice": (
        csv_file(lambda rows: rows[:6] + rows[5:]),
        "1 vectors are not 384 long, e.g. ..ant: 385'",
    ),
    "csv_id_twice": (
        csv_file(lambda rows: rows + rows[1:385]),
        "1 ids occur more than once, e.g. ..ant'",
    ),
    "csv_id_too_many": (
        csv_file(lambda rows: rows + [r.replace("ant_", "dog_") for r in rows[1:385]]),
        "1 ids extra, e.g. ..dog'",
    ),
    "csv_value_nan": (csv_value("NaN"), NOT_FINITE),
    "csv_value_infinite": (csv_value("1e99"), NOT_FINITE),
    "csv_value_missing": (csv_value(""), NOT_FINITE),
    "csv_value_a_formula": (csv_value("=1+1"), NOT_FINITE),
    "csv_by_semicolons": (
        csv_file(lambda rows: [row.replace(",", ";") for row in rows]),
        "the header is 'imgId_eId;val'",
    ),
    "csv_names_padded": (
        csv_file(lambda rows: [re.sub(r"_(\d),", r"_00\1,", row) for row in rows]),
        OUT_OF_ORDER,
    ),
    "csv_order_turned": (csv_file(lambda rows: [rows[0], *rows[:0:-1]]), OUT_OF_ORDER),
    "csv_other_values": (csv_value("0.5"), "1 vectors differ"),
    "parquet_gone": (removed(PARQUET), "submission.parquet does not exist"),
    "parquet_broken": (in_place(PARQUET, b"PAR1"), "submission.parquet cannot be read"),
    "parquet_without_vectors": (parquet_file(id=IDS), OTHER_COLUMNS),
    "parquet_with_ids_that_are_numbers": (
        parquet_file(id=[1, 2, 3], embedding=vectors(X)),
        OTHER_COLUMNS,
    ),
    "parquet_with_lists": (parquet_file(id=IDS, embedding=X.tolist()), OTHER_COLUMNS),
    "parquet_383_long": (parquet_file(id=IDS, embedding=vectors(X[:, 1:])), TOO_SHORT),
    "parquet_with_an_id_twice": (
        parquet_file(id=["ant", "bee", "bee"], embedding=vectors(X)),
        "submission",
    ),
    "npy_gone": (removed(NPY), "submission.npy does not exist"),
    "npy_cut": (cut(NPY, 0.5), "submission.npy cannot be read"),
    "npy_383_long": (npy_file(np.ascontiguousarray(X[:, 1:])), TOO_SHORT),
    "npy_double": (npy_file(X.astype(np.float64)), "2-D float32"),
    "npy_with_nan": (npy_file(with_value(np.nan)), "NaN or infinity"),
    "npy_rows_exchanged": (npy_file(X[::-1]), "2 vectors differ"),
    "npy_ids_gone": (removed("submission.ids.parquet"), "submission.ids.parquet does not exist"),
}


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_a_spoilt_submission_does_not_pass_the_check(tmp_path, name):
    spoil, expected = SUBMISSIONS[name]
    submission.write(IDS, X, tmp_path / "submission")
    submission.check(tmp_path / "submission")
    spoil(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        submission.check(tmp_path / "submission")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the header is ''"),
        (b"imgId_eId,val\n", "no rows below the header"),
        (b"imgId_eId,val\nant_0,1\n", "1 vectors are not 384 long"),
        (b"imgId_eId,val\nant,1\n", "1 rows are not named"),
        (b"imgId_eId,val\n,\n", "1 rows are not named"),
        (b"imgId_eId,val\na,b,c,d\n", "sample.csv"),
        (b"\x89PNG\r\n", "the header is"),
    ],
    ids=["empty", "header_only", "cut", "no_number", "blank_cells", "ragged", "image"],
)
def test_a_sample_that_is_none_is_refused(tmp_path, content, expected):
    (tmp_path / "sample.csv").write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        sample_submission.sample_ids(tmp_path / "sample.csv")


@pytest.mark.parametrize(
    "name",
    [
        "comma,",
        'quote"',
        "new\nline",
        "=1+1",
        "_0",
        "a_0",
        "狐",
        "🦊",
        " ",
        "NULL",
        "a\u202eb",
        "x" * 1000,
    ],
    ids=ascii,
)
def test_an_odd_id_comes_back_from_a_submission_as_it_is(tmp_path, name):
    submission.write(["ant", name, "zebra"], X, tmp_path / "submission")
    submission.check(tmp_path / "submission")
    assert set(pl.read_csv(tmp_path / "submission.csv")["imgId_eId"].str.replace(r"_\d+$", "")) == {
        "ant",
        name,
        "zebra",
    }
    assert artifacts.load_embeddings(tmp_path / "submission")[0] == sorted(["ant", name, "zebra"])


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("store.json", b"{cut", "store.json cannot be read"),
        ("store.json", b"[]", "store.json cannot be read"),
        ("store.json", b'{"dtype": "float16"}', "store.json"),
        ("00000.values.npy", b"", "00000.values.npy cannot be read"),
        ("00000.parquet", b"PAR1", "00000.parquet cannot be read"),
    ],
)
def test_a_broken_store_is_named(tmp_path, file, content, expected):
    store = datastore.open_datastore(tmp_path, dtype="float32", sentence_model="s")
    datastore.add(store, ["a fox", "an owl"], {"values": lambda texts: X[: len(texts)]})
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        store = datastore.open_datastore(tmp_path)
        store.prompts(), store.column("values")
