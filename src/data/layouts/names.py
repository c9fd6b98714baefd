"""The names that columns and files are known by."""

from collections.abc import Iterable
from pathlib import Path

from src.paths import display_path

IMAGE_COLUMNS = (
    "image",
    "image_path",
    "filepath",
    "file_name",
    "image_name",
    "img_path",
    "filename",
    "jpg",
    "png",
    "webp",
)
TEXT_COLUMNS = (
    "prompt",
    "Prompt",
    "text",
    "TEXT",
    "caption",
    "top_caption",
    "orig_text",
    "txt",
    "p",
)
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def column_of(
    columns: Iterable[str], known: tuple[str, ...], named: str | None, file: Path, what: str
) -> str:
    """The column called `named`, else the first of `known` that `columns` has.

    Raises ValueError naming the file and its columns.
    """
    columns = list(columns)
    wanted = [named] if named else known
    for column in wanted:
        if column in columns:
            return column

    called = f" {named}" if named else ""
    raise ValueError(
        f"{display_path(file)}: no {what} column{called} among {columns}; "
        f"known names are {', '.join(known)}"
    )
