"""The door to the files: every guard says its numbers, and a file that exists is whole."""

import numpy as np
import polars as pl
import pytest

from src import artifacts

ANIMALS = ["ant", "bee", "cat"]


def rows(n: int = 3) -> np.ndarray:
    return np.arange(2 * n, dtype=np.float32).reshape(n, 2)


def test_embeddings_come_back_and_meet_by_id(tmp_path):
    artifacts.save_embeddings(tmp_path / "animals", ANIMALS, rows())
    ids, x = artifacts.load_embeddings(tmp_path / "animals")
    assert ids == ANIMALS and x.dtype == np.float32
    np.testing.assert_array_equal(x, rows())
    ids, x = artifacts.load_embeddings(tmp_path / "animals", ["cat", "ant"])
    assert ids == ["cat", "ant"]
    np.testing.assert_array_equal(x, [[4, 5], [0, 1]])


def with_nan() -> np.ndarray:
    x = rows()
    x[1, 0] = np.nan
    return x


@pytest.mark.parametrize(
    ("ids", "x", "message"),
    [
        (ANIMALS, rows().astype(np.float64), "2-D float32, got 2-D float64"),
        (ANIMALS, rows().ravel(), "got 1-D float32 of shape \\(6,\\)"),
        (ANIMALS[:2], rows(), "2 ids for 3 embeddings"),
        (["ant", "bee", "ant"], rows(), "1 ids occur more than once, e.g. \\['ant'\\]"),
        (ANIMALS, with_nan(), "1 rows hold NaN or infinity, e.g. row 1 \\(id 'bee'\\)"),
    ],
)
def test_bad_embeddings_are_refused_with_their_numbers(tmp_path, ids, x, message):
    with pytest.raises(ValueError, match=message):
        artifacts.save_embeddings(tmp_path / "animals", ids, x)
    assert list(tmp_path.iterdir()) == []


def test_missing_ids_and_files_are_named(tmp_path):
    artifacts.save_embeddings(tmp_path / "animals", ANIMALS, rows())
    with pytest.raises(ValueError, match="1 of 2 ids are missing, e.g. \\['dog'\\]"):
        artifacts.load_embeddings(tmp_path / "animals", ["cat", "dog"])
    with pytest.raises(FileNotFoundError, match="--only 01"):
        artifacts.load_table(tmp_path / "01_dedup" / "pairs.parquet")


def test_failing_write_leaves_the_old_file_whole(tmp_path):
    file = tmp_path / "table.csv"
    artifacts.save_table(file, pl.DataFrame({"animal": ANIMALS}))
    with pytest.raises(RuntimeError), artifacts.atomic(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert artifacts.load_table(file)["animal"].to_list() == ANIMALS
    assert [f.name for f in tmp_path.iterdir()] == ["table.csv"]


def test_embeddings_stopped_half_way_are_not_read_with_the_old_ids(tmp_path, monkeypatch):
    artifacts.save_embeddings(tmp_path / "animals", ANIMALS, rows())

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts, "save_table", stopped)
    with pytest.raises(KeyboardInterrupt):
        artifacts.save_embeddings(tmp_path / "animals", ANIMALS[::-1], rows()[::-1])
    with pytest.raises(FileNotFoundError):
        artifacts.load_embeddings(tmp_path / "animals")


def test_cache_is_computed_once_and_again_when_its_key_changes_or_a_file_is_gone(tmp_path):
    calls = []

    def compute() -> np.ndarray:
        calls.append(1)
        return rows()

    def ask(ids: list[str], size: int) -> None:
        np.testing.assert_array_equal(
            artifacts.cached_embeddings(tmp_path / "cache", ids, {"size": size}, compute), rows()
        )

    for ids, size, expected in (
        (ANIMALS, 1, 1),
        (ANIMALS, 1, 1),
        (ANIMALS, 2, 2),
        (["ant", "bee", "dog"], 2, 3),
    ):
        ask(ids, size)
        assert len(calls) == expected
    (tmp_path / "cache.npy").unlink()
    ask(["ant", "bee", "dog"], 2)
    assert len(calls) == 4


def test_fingerprint_sees_a_changed_file_and_a_changed_array(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    before = artifacts.fingerprint(tmp_path)
    assert artifacts.fingerprint(tmp_path) == before
    (tmp_path / "a.txt").write_text("three")
    assert artifacts.fingerprint(tmp_path) != before
    assert artifacts.fingerprint(rows()) != artifacts.fingerprint(rows() + 1)


def test_versions_leave_out_what_is_not_installed_and_a_commit_needs_git(monkeypatch):
    monkeypatch.setattr(artifacts, "VERSIONS", ("numpy", "no-such-package"))
    assert set(artifacts.versions()) == {"python", "numpy"}
    monkeypatch.setenv("PATH", "/no/such/folder")
    assert artifacts.git_commit() is None


def test_a_name_with_brackets_is_a_name_and_no_pattern(tmp_path):
    for name, value in (("o 1", 1), ("o [1]", 2)):
        folder = tmp_path / name
        for suffix in (".csv", ".parquet"):
            artifacts.save_table(
                folder / f"t[1]{suffix}", pl.DataFrame({"id": ["a"], "n": [value]})
            )
            artifacts.save_table(folder / f"t1{suffix}", pl.DataFrame({"id": ["b"], "n": [value]}))
        x = np.full((1, 2), value, np.float32)
        artifacts.save_embeddings(folder / "x[1]", ["a"], x)

    for name, value in (("o 1", 1), ("o [1]", 2)):
        for suffix in (".csv", ".parquet"):
            file = tmp_path / name / f"t[1]{suffix}"
            assert artifacts.load_table(file).rows() == [("a", value)]
            assert artifacts.load_table(file, ["id", "n"]).rows() == [("a", value)]
        ids, x = artifacts.load_embeddings(tmp_path / name / "x[1]")
        assert ids == ["a"] and (x == value).all()


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS_POINTER, "it is a Git LFS pointer in place of the file"),
        ("<!DOCTYPE html><p>404</p>", "it is an HTML page"),
        ("", "it is an empty file"),
    ],
    ids=["lfs", "html", "empty"],
)
def test_what_stands_in_for_a_file_is_named(tmp_path, content, message):
    doors = {
        "t.parquet": artifacts.load_table,
        "x.npy": artifacts.load_array,
        "c.json": artifacts.load_json,
    }
    for name, load in doors.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read: {message}"):
            load(tmp_path / name)
