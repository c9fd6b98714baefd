"""CSV, TSV, JSON-lines and Parquet tables: their columns, rows and cells."""

import csv
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

import polars as pl

from src import artifacts
from src.data.layouts.names import TABLES, TEXT_COLUMNS, column_of
from src.data.layouts.text import open_text, parse_object, to_text
from src.paths import display_path

SEPARATED = {".csv": ",", ".tsv": "\t"}
JSON_LINES = (".jsonl", ".ndjson")
BEGINNING = 100  # lines of a JSON-lines file in which its columns are looked for

csv.field_size_limit(sys.maxsize)  # prompts of scraped sets can be longer than Python's limit


def load_table(file: Path) -> pl.DataFrame:
    """A CSV, TSV, JSON-lines or Parquet table; text formats as strings.

    A line that is no JSON and a row with too many cells come as nulls. Raises ValueError naming a
    file that is broken, empty or has a column twice.
    """
    if file.suffix == ".parquet":
        return artifacts.load_table(file)
    if file.suffix not in TABLES:
        raise ValueError(f"{display_path(file)}: a table must be one of {', '.join(TABLES)}")

    if file.suffix in JSON_LINES:
        with open_text(file, newline=None) as stream:
            rows = [parse_object(line) for line in stream if line.strip()]
        if not any(rows):
            count = len(rows)
            raise ValueError(f"{display_path(file)}: none of its {count} lines is a JSON object")
    else:
        with open_text(file) as stream:
            rows = list(_separated_rows(file, stream))
        if not rows:
            raise ValueError(f"{display_path(file)}: no rows below the header")

    columns = dict.fromkeys(chain.from_iterable(rows))
    cells = {name: [to_text(row.get(name)) for row in rows] for name in columns}
    return pl.DataFrame(cells, schema=dict.fromkeys(columns, pl.String))


def _separated_rows(file: Path, stream: TextIO) -> Iterator[dict[str, str | None]]:
    """The rows of a CSV or TSV by column.

    A row with more cells than the header is empty: which of its cells was split cannot be known.
    """
    # Python's reader takes the short and oddly quoted rows that scraped prompts have
    lines = (line.replace("\0", "") for line in stream)
    rows = csv.DictReader(lines, delimiter=SEPARATED[file.suffix])

    names = [name for name in rows.fieldnames or [] if name]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"{display_path(file)}: columns are there twice: {doubled}")

    for row in rows:
        surplus = row.pop(None, [])
        yield {} if any(surplus) else row


def text_cells(file: Path, text_column: str | None) -> Iterator[str | None]:
    """The text column of a CSV, TSV or JSON-lines table, cell by cell: a file of any size."""
    column = column_of(column_names(file), TEXT_COLUMNS, text_column, file, "text")
    is_separated = file.suffix in SEPARATED
    with open_text(file, newline="" if is_separated else None) as stream:
        rows = _separated_rows(file, stream) if is_separated else map(parse_object, stream)
        for row in rows:
            yield to_text(row.get(column))


def column_names(file: Path) -> set[str]:
    """A table's column names, from its beginning alone; of JSON lines those of the first object."""
    if file.suffix == ".parquet":
        return set(schema_of(file))

    with open_text(file, newline=None) as stream:
        if file.suffix in SEPARATED:
            header = stream.readline().replace("\0", "")
            return set(next(csv.reader([header], delimiter=SEPARATED[file.suffix]), []))
        for line in islice(stream, BEGINNING):
            if row := parse_object(line):
                return set(row)
    return set()


def schema_of(file: Path) -> dict[str, pl.DataType]:
    """The columns of a Parquet file and their types. Raises ValueError naming a broken file."""
    with artifacts.readable(file):
        return pl.read_parquet_schema(file)


def texts_of(column: pl.Series, file: Path) -> pl.Series:
    """A text column as strings, bytes as the text they spell.

    Raises ValueError for what is no text, such as lists.
    """
    if column.dtype.is_nested():
        raise ValueError(
            f"{display_path(file)}: column {column.name} holds {column.dtype}, wanted text"
        )
    if column.dtype != pl.Binary:
        return column.cast(pl.String)

    texts = [None if cell is None else cell.decode("utf-8", errors="replace") for cell in column]
    return pl.Series(column.name, texts, dtype=pl.String)
