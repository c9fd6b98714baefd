"""What img2dataset and WebDataset store beside an image: captions, and what was not downloaded."""

from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from src import artifacts
from src.data.layouts.names import TEXT_COLUMNS
from src.data.layouts.rows import NOT_DELIVERED, Row
from src.data.layouts.tables import column_names
from src.data.layouts.text import parse_object, to_text
from src.paths import display_path


def caption_of(members: dict[str, Callable[[], bytes]], text_column: str | None) -> str | None:
    """The prompt of a sample from its .txt, else from its .json.

    `members` gives, by ending, a function that reads the file's bytes.
    """
    if ".txt" in members and text_column is None:
        return members[".txt"]().decode("utf-8", errors="replace")
    if ".json" not in members:
        return None

    values = parse_object(members[".json"]().decode("utf-8", errors="replace"))
    for name in [text_column] if text_column else TEXT_COLUMNS:
        if name in values:
            return to_text(values[name])
    return None


def not_delivered(table: Path) -> Iterator[Row]:
    """The rows that img2dataset's own table, beside a shard or a folder, could not download."""
    if not table.exists() or not {"key", "status"} <= column_names(table):
        return

    failed = artifacts.load_table(table).filter(pl.col("status") != "success")
    column = next((name for name in TEXT_COLUMNS if name in failed.columns), None)
    for entry in failed.iter_rows(named=True):
        yield Row(
            name=f"{table.stem}/{entry['key']}",
            image=display_path(table),
            prompt=to_text(entry[column]) if column else None,
            reason=f"{NOT_DELIVERED}: {entry['status']}",
        )
