"""CSV, TSV, JSON-lines and Parquet tables: their columns, rows and cells."""

from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import TextIO

import polars as pl

from src import artifacts
from src.data.layouts.names import TABLES, TEXT_COLUMNS, column_of, suffix_of
from src.data.layouts.rows import NOT_DELIVERED
from src.data.layouts.separated import records
from src.data.layouts.text import (
    NOT_TEXT,
    Caption,
    captions_of,
    open_text,
    parse_object,
    printable,
    to_text,
)
from src.paths import display_path

DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
NOT_OBJECT = "its line is not a JSON object"
BEGINNING = 100  # lines of a JSON-lines file in which its columns are looked for


class Table:
    """A table's `columns`, and for each row None or why it cannot be used (`reasons`)."""

    def __init__(self, file: Path, rows: list[dict] | None, reasons: list[str | None]):
        self.file = file
        self.reasons = reasons
        self._rows = rows  # None for Parquet, whose columns are read one by one
        if rows is None:
            self.columns = list(schema_of(file))
        else:
            self.columns = list(dict.fromkeys(name for row in rows for name in row))

    def __len__(self) -> int:
        return len(self.reasons)

    def values(self, column: str) -> list:
        """The cells as they are: text, numbers, lists, bytes; None where a row has none."""
        if self._rows is None:
            return _values(artifacts.load_table(self.file, [column])[column], self.file)
        return [row.get(column) for row in self._rows]

    def names(self, column: str) -> list[str]:
        """The cells as names of images or rows; empty where a row has none.

        Raises ValueError for a Parquet column of lists.
        """
        values = self.values(column)
        if self._rows is None and any(isinstance(value, list) for value in values):
            raise ValueError(f"{display_path(self.file)}: column {column} holds List, wanted names")
        return [
            printable(value if isinstance(value, bytes) else to_text(value) or "")
            for value in values
        ]

    def captions(self, column: str) -> list[list[Caption]]:
        """For each row its prompts, of which there is one unless the cell is a list."""
        return [captions_of(value) for value in self.values(column)]


def load_table(file: Path) -> Table:
    """A CSV, TSV, JSON-lines or Parquet table; a row that is broken has a reason.

    Raises ValueError naming a file that is broken, empty or has a column twice.
    """
    suffix = suffix_of(file)
    if suffix == ".parquet":
        with artifacts.readable(file), open(file, "rb") as stream:
            n_rows = pl.scan_parquet(stream).select(pl.len()).collect().item()
        return Table(file, None, [None] * n_rows)
    if suffix not in TABLES:
        raise ValueError(f"{display_path(file)}: a table must be one of {', '.join(TABLES)}")

    # broken rows stay in their place with a reason, so that none vanishes
    rows = []
    reasons = []
    with artifacts.readable(file), open_rows(file) as stream:
        for row, reason in table_rows(file, stream):
            rows.append(row)
            reasons.append(reason)

    if suffix in JSON_LINES and not any(rows):
        raise ValueError(f"{display_path(file)}: none of its {len(rows)} lines is a JSON object")
    if not rows:
        raise ValueError(f"{display_path(file)}: no rows below the header")
    return Table(file, rows, reasons)


def open_rows(file: Path) -> TextIO:
    """A table's text; in CSV and TSV with its line ends, which a cell may hold."""
    return open_text(file, newline="" if suffix_of(file) in DELIMITERS else None)


def table_rows(file: Path, stream: TextIO) -> Iterator[tuple[dict, str | None]]:
    """Each row of a text table by column, and the reason why it cannot be used."""
    if suffix_of(file) in DELIMITERS:
        yield from _separated_rows(file, stream)
        return

    for line in stream:
        if not line.strip():
            continue

        try:
            yield parse_object(line), None
        except ValueError as error:
            is_no_text = str(error) == NOT_TEXT
            yield {}, NOT_TEXT if is_no_text else NOT_OBJECT


def _separated_rows(file: Path, stream: TextIO) -> Iterator[tuple[dict, str | None]]:
    rows = records(stream, DELIMITERS[suffix_of(file)])
    header = next(rows, None)
    if header is None:
        return

    # a column without a name is an index, as pandas writes it
    columns = [printable(name) for name in header.cells]
    named = [name for name in columns if name]
    doubled = sorted({name for name in named if named.count(name) > 1})
    if doubled:
        raise ValueError(f"{display_path(file)}: columns occur twice: {doubled}")

    # a short row lacks its last cells
    for cells, reason in rows:
        yield dict(zip_longest(columns, cells[: len(columns)])), reason


def text_cells(file: Path, text_column: str | None) -> Iterator[Caption]:
    """The prompts in the text column of a CSV, TSV or JSON-lines table, one by one.

    Raises ValueError naming a table without the column.
    """
    column = column_of(column_names(file), TEXT_COLUMNS, text_column, file, "text")
    with artifacts.readable(file), open_rows(file) as stream:
        for row, reason in table_rows(file, stream):
            if reason:
                yield Caption(None, reason)
            else:
                yield from captions_of(row.get(column))


def column_names(file: Path) -> list[str]:
    """A table's columns, from its beginning alone; of JSON lines those of the first object."""
    suffix = suffix_of(file)
    if suffix == ".parquet":
        return list(schema_of(file))

    with artifacts.readable(file), open_rows(file) as stream:
        if suffix in DELIMITERS:
            header = next(records(islice(stream, BEGINNING), DELIMITERS[suffix]), None)
            return [printable(name) for name in header.cells] if header else []
        for line in islice(stream, BEGINNING):
            try:
                row = parse_object(line)
            except ValueError:
                continue
            if row:
                return list(row)
    return []


def schema_of(file: Path) -> dict[str, pl.DataType]:
    """The columns of a Parquet file and their types. Raises ValueError naming a broken file."""
    # an open file: polars takes brackets and stars in a path for a pattern
    with artifacts.readable(file), open(file, "rb") as stream:
        return dict(pl.read_parquet_schema(stream))


def captions_of_column(column: pl.Series, file: Path) -> list[list[Caption]]:
    """For each row of a Parquet column its prompts. Raises ValueError for a column of structs."""
    return [captions_of(value) for value in _values(column, file)]


def _values(column: pl.Series, file: Path) -> list:
    """The cells of a Parquet column: text, lists or bytes; numbers and dates as text.

    Raises ValueError for structs, of which no one value is the text.
    """
    if isinstance(column.dtype, pl.Struct):
        raise ValueError(
            f"{display_path(file)}: column {column.name} holds {column.dtype}, wanted text"
        )
    if column.dtype.is_nested() or column.dtype == pl.Binary:
        return column.to_list()
    return column.cast(pl.String).to_list()


def delivery_reasons(statuses: Sequence[str | None]) -> list[str | None]:
    """Why rows have no image, by the `status` that img2dataset gives each row."""
    return [None if status == "success" else f"{NOT_DELIVERED}: {status}" for status in statuses]
