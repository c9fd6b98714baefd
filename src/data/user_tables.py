"""The tables beside the images: folds, truth, attributes, captions from outside, runs.csv.

They come from the same spreadsheets and scripts as the training tables, so they are read with the
same care: any encoding, damaged quotes, and ids that look like numbers.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from src import artifacts
from src.data.layouts.names import TABLES, suffix_of
from src.data.layouts.tables import column_names, open_rows, table_rows
from src.data.layouts.text import to_text, whole
from src.paths import display_path


def read_user_table(file: Path, columns: Sequence[str] = ()) -> pl.DataFrame:
    """The table at `file`, or `columns` of it: CSV, TSV and JSON lines as text, Parquet as it is.

    An empty cell is null. Raises FileNotFoundError, IsADirectoryError, and ValueError naming a file
    that is not a table, lacks a column, or has rows that cannot be used, with their number and one
    example: here each row counts.
    """
    if file.is_dir():
        raise IsADirectoryError(f"{display_path(file)} is not a file")
    if not file.exists():
        raise FileNotFoundError(f"{display_path(file)} does not exist")
    if suffix_of(file) == ".parquet":
        return artifacts.load_table(file, columns)
    if suffix_of(file) not in TABLES:
        raise ValueError(f"{display_path(file)}: a table must be one of {', '.join(TABLES)}")

    # a column without a name cannot be asked for
    there = [name for name in column_names(file) if name]
    missing = [name for name in columns if name not in there]
    if missing:
        lacking = ", ".join(missing)
        raise ValueError(f"{display_path(file)} has no column {lacking}; there are {there}")
    return _read_text_table(file, columns or there)


def _read_text_table(file: Path, columns: Sequence[str]) -> pl.DataFrame:
    cells: dict[str, list[str | None]] = {name: [] for name in columns}
    reasons: list[str] = []
    with artifacts.readable(file), open_rows(file) as stream:
        for number, (row, reason) in enumerate(table_rows(file, stream), start=1):
            try:
                texts = [_cell(row.get(name)) for name in columns]
            except ValueError as error:
                texts = [None] * len(columns)
                reason = reason or str(error)
            if reason:
                reasons.append(f"row {number}: {reason}")
            _append(cells, texts)

    if reasons:
        rows = len(cells[columns[0]])
        raise ValueError(
            f"{display_path(file)}: {len(reasons)} of {rows} rows cannot be used, e.g. {reasons[0]}"
        )
    return pl.DataFrame(cells, schema=dict.fromkeys(columns, pl.String))


def _append(cells: dict[str, list[str | None]], texts: Iterable[str | None]) -> None:
    for column, text in zip(cells.values(), texts, strict=True):
        column.append(text)


def _cell(value: object) -> str | None:
    """A cell as text, None where it is empty. Raises ValueError for bytes that are not text."""
    text = to_text(value)
    return whole(text) if text else None
