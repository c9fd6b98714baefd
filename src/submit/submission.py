"""The submission's files, and a check that reads them back from disk before an upload."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from src import artifacts
from src.data.sample_submission import (
    HEADER,
    WIDTH,
    cell_names,
    first_true,
    length_problems,
    read_cells,
    refuse,
    sample_ids,
    whole_ids,
)
from src.paths import display_path


def write(
    ids: Sequence[str],
    embeddings: np.ndarray,
    path: Path,
    sample: Path | None = None,
    confidence: np.ndarray | None = None,
) -> None:
    """Write `<path>.csv` (imgId_eId,val), `<path>.parquet` (id, embedding, confidence if given) and
    `<path>.npy` with its ids.

    Rows are in the order of `sample` (a sample_submission.csv), else of sorted ids. Raises
    ValueError, and writes nothing, when `embeddings` is not (n, 384) finite float32, the ids are
    not exactly those of `sample`, or `confidence` is not (n,) within -1..1.
    """
    path = _stem(path)
    artifacts.check_embeddings(ids, embeddings, display_path(path))
    if embeddings.shape[1] != WIDTH:
        raise ValueError(
            f"{display_path(path)}: vectors are {embeddings.shape[1]} long, must be {WIDTH}"
        )

    order = sorted(ids) if sample is None else sample_ids(sample)
    wanted = pl.Series(order, dtype=pl.String)
    refuse(
        _against(display_path(path), sample), _compare_ids(wanted, pl.Series(ids, dtype=pl.String))
    )
    if confidence is not None:
        refuse(display_path(path), _confidence(ids, confidence))

    index = artifacts.indices_of_ids(ids, order, display_path(path))
    x = np.ascontiguousarray(embeddings[index])

    # all three files hold the same rows in the same order
    cells = pl.DataFrame({HEADER[0]: cell_names(order), HEADER[1]: x.reshape(-1)})
    artifacts.save_table(_file(path, ".csv"), cells)

    vectors = pl.Series("embedding", x, dtype=pl.Array(pl.Float32, WIDTH))
    columns = {"id": wanted, "embedding": vectors}
    if confidence is not None:
        columns["confidence"] = pl.Series(confidence[index], dtype=pl.Float32)
    artifacts.save_table(_file(path, ".parquet"), pl.DataFrame(columns))
    artifacts.save_embeddings(path, order, x)


def check(path: Path, sample: Path | None = None) -> None:
    """Read the files of `write` back; a ValueError counts and shows everything wrong with them.

    Wrong is: another header; an id missing, extra or doubled (against `sample`, else against the
    Parquet file); a vector not 384 long; a value not finite; rows in another order; values that
    differ between the files; a confidence beyond -1..1.
    """
    path = _stem(path)
    csv = read_cells(_file(path, ".csv"))
    parquet = _read_parquet(_file(path, ".parquet"))
    order = parquet["id"] if sample is None else pl.Series(sample_ids(sample), dtype=pl.String)

    # a good file is recognized in a second; only a bad one is examined, to say what is wrong
    whole = whole_ids(csv[HEADER[0]]) == order.to_list()
    finite = csv["val"].is_finite().fill_null(False).all()
    if not whole or not finite:
        file = display_path(_file(path, ".csv"))
        _diagnose(csv, order, file, _against(file, sample))

    x = csv["val"].to_numpy().reshape(-1, WIDTH)
    _check_copies(path, order, parquet, x)
    if "confidence" in parquet.columns:
        problems = _confidence(parquet["id"].to_list(), parquet["confidence"].to_numpy())
        refuse(display_path(_file(path, ".parquet")), problems)


def _against(file: str, sample: Path | None) -> str:
    """What is compared, for a message."""
    return f"{file} against {display_path(Path(sample))}" if sample else file


def _diagnose(csv: pl.DataFrame, order: pl.Series, file: str, against: str) -> None:
    """Say what is wrong with a file whose names or values are not those of `order`."""
    cells = csv.select(pl.col(HEADER[0]).str.extract(r"^(.*)_\d+$", 1).alias("id"), pl.col("val"))
    lengths = cells.group_by("id", maintain_order=True).len()
    refuse(against, _compare_ids(order, lengths["id"]) + length_problems(lengths) + _values(cells))

    # every id, length and value is right: then it is the order
    where = first_true(csv[HEADER[0]] != cell_names(order.to_list()))
    raise ValueError(
        f"{file}: rows are out of order from line {where + 2} ({csv[HEADER[0]][where]!r})"
    )


def _read_parquet(path: Path) -> pl.DataFrame:
    table = artifacts.load_table(path)
    text = table.schema.get("id") == pl.String
    arrays = isinstance(table.schema.get("embedding"), pl.Array)
    if not text or not arrays:
        raise ValueError(
            f"{display_path(path)}: columns are {dict(table.schema)}, must be id (text) and "
            f"embedding (arrays of {WIDTH})"
        )
    return table


def _compare_ids(wanted: pl.Series, have: pl.Series) -> list[str]:
    """Problems with the ids that a file has, each with a count and examples."""
    differences = {
        "missing": wanted.filter(~wanted.is_in(have.implode())),
        "extra": have.filter(~have.is_in(wanted.implode())).unique(maintain_order=True),
        "doubled": have.filter(have.is_duplicated()).unique(maintain_order=True),
    }
    return [
        f"{len(ids)} ids {what}, e.g. {ids[:3].to_list()}"
        for what, ids in differences.items()
        if len(ids)
    ]


def _values(cells: pl.DataFrame) -> list[str]:
    bad = cells.filter(~pl.col("val").is_finite().fill_null(False))
    examples = bad["id"].unique(maintain_order=True)[:3].to_list()
    return [f"{len(bad)} values are not finite, e.g. of ids {examples}"] if len(bad) else []


def _confidence(ids: Sequence[str], confidence: np.ndarray) -> list[str]:
    if confidence.shape != (len(ids),):
        return [f"confidence of shape {confidence.shape} for {len(ids)} ids"]
    bad = np.flatnonzero(~(np.abs(confidence) <= 1))
    examples = {ids[i]: round(float(confidence[i]), 3) for i in bad[:3]}
    return [f"{len(bad)} confidences are not within -1..1, e.g. {examples}"] if len(bad) else []


def _check_copies(path: Path, order: pl.Series, parquet: pl.DataFrame, x: np.ndarray) -> None:
    """Raise unless the .parquet and .npy files hold the ids `order` and the values `x` (n, 384)."""
    csv = display_path(_file(path, ".csv"))
    ids, array = artifacts.load_embeddings(path)
    copies = {
        ".parquet": (parquet["id"].to_list(), parquet["embedding"].to_numpy()),
        ".npy": (ids, array),
    }
    for suffix, (names, values) in copies.items():
        file = _file(path, suffix)
        if values.ndim != 2 or values.shape[1] != WIDTH:
            raise ValueError(
                f"{display_path(file)}: vectors of shape {values.shape}, must be (n, {WIDTH})"
            )
        refuse(display_path(file), _compare_ids(order, pl.Series(names, dtype=pl.String)))
        if names != order.to_list():
            raise ValueError(f"{display_path(file)}: ids are not in the order of {csv}")

        differ = np.flatnonzero((values != x).any(axis=1))
        if len(differ):
            raise ValueError(
                f"{display_path(file)}: {len(differ)} vectors differ from {csv}, "
                f"e.g. {names[differ[0]]!r}"
            )


def _file(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _stem(path: Path) -> Path:
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".csv", ".parquet", ".npy") else path
