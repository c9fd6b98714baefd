"""The vectors of a .parquet result as one array beside it, which opens without being read.

`predict` writes `<file>.vectors.npy` with the result. Where it is missing, or the result was copied
or changed since, the first opening writes it out of the Parquet file.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from src import artifacts
from src.data.sample_submission import WIDTH
from src.errors import UserError
from src.metrics import l2_normalize
from src.paths import display_path

TOLERANCE = 1e-3  # how far from 1 the length of a vector may be


def vectors_file(file: Path) -> Path:
    """Where the vectors of a result lie."""
    return file.with_name(file.name + ".vectors.npy")


def open_vectors(file: Path) -> np.ndarray:
    """The (n, 384) float32 unit rows of a result, memory-mapped.

    UserError when it has no rows, when a row is not a unit vector, or the folder cannot be written
    to.
    """
    array_file = vectors_file(file)
    stamp_file = _stamp_file(file)
    # the stamp holds what the result was when its vectors were written
    fresh = array_file.exists() and stamp_file.exists()
    if not fresh or artifacts.load_json(stamp_file) != _stamp(file):
        batches = pq.ParquetFile(file).iter_batches(columns=["embedding"])
        columns = (pl.Series("embedding", batch["embedding"]) for batch in batches)
        try:
            write_vectors(file, columns)
        except PermissionError as error:
            raise UserError(
                f"{display_path(array_file)} cannot be written: {error.strerror}"
            ) from error

    _read_ahead(array_file)
    # a plain array: its pages stay mapped between two queries
    return np.asarray(np.load(array_file, mmap_mode="r"))


def _read_ahead(file: Path) -> None:
    """Ask the system to begin reading a file: a search reads all of it, and page by page is slower.

    Nothing happens on a system without this call.
    """
    if hasattr(os, "posix_fadvise"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def write_vectors(file: Path, columns: Iterable[pl.Series]) -> None:
    """Write the vectors of a finished result, given as its column `embedding` in pieces.

    UserError as in `open_vectors`.
    """
    count = pq.read_metadata(file).num_rows
    if count == 0:
        raise UserError(f"{display_path(file)} holds no rows")

    # without a stamp a half-written array is never taken for whole
    _stamp_file(file).unlink(missing_ok=True)
    with artifacts.atomic(vectors_file(file)) as temporary:
        array = artifacts.reserved(temporary, np.float32, (count, WIDTH))
        start = 0
        for column in columns:
            x = column.cast(pl.Array(pl.Float32, WIDTH)).to_numpy().reshape(-1, WIDTH)
            _check_unit_rows(x, start, file)
            array[start : start + len(x)] = l2_normalize(x)
            start += len(x)
        array.flush()
    artifacts.save_json(_stamp_file(file), _stamp(file))


def _check_unit_rows(x: np.ndarray, start: int, file: Path) -> None:
    length = np.sqrt(np.einsum("nd,nd->n", x, x))
    # written so that a length of NaN counts as wrong
    wrong = np.flatnonzero(~(np.abs(length - 1) <= TOLERANCE))
    if len(wrong):
        row = start + int(wrong[0])
        raise UserError(
            f"{display_path(file)}: row {row} has length {length[wrong[0]]:.4g}, not 1: "
            "its vectors are not predictions"
        )


def _stamp_file(file: Path) -> Path:
    return vectors_file(file).with_suffix(".json")


def _stamp(file: Path) -> dict[str, int]:
    """Changes with the result, so that vectors of an earlier one are not taken."""
    status = file.stat()
    return {"size": status.st_size, "changed": status.st_mtime_ns}
