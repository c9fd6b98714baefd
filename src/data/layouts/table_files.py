"""Images named by a table: any table with both columns, the competition's, and by row number."""

from pathlib import Path

import polars as pl

from src.data.layouts.names import (
    IMAGE_COLUMNS,
    IMAGE_SUFFIXES,
    METADATA,
    TABLES,
    TEXT_COLUMNS,
    column_of,
)
from src.data.layouts.rows import from_columns, ids_of, locate
from src.data.layouts.tables import column_names, load_table, texts_of
from src.paths import display_path

# --- a table with an image and a text column ---


def is_table(path: Path) -> bool:
    """Whether `path` is or holds a table of images and prompts."""
    return bool(_tables(path))


def _tables(path: Path) -> list[Path]:
    """The tables at `path`: itself, its metadata file, or every table in it with both columns."""
    if path.is_file():
        return [path] if path.suffix in TABLES else []

    for name in METADATA:
        if (path / name).exists():
            return [path / name]

    tables = []
    for file in sorted(path.iterdir()):
        if file.suffix in TABLES and file.is_file():
            columns = column_names(file)
            if columns & set(IMAGE_COLUMNS) and columns & set(TEXT_COLUMNS):
                tables.append(file)
    return tables


def read_table(path: Path, text_column: str | None) -> pl.DataFrame:
    """The rows of every table at `path`, with paths relative to the table."""
    parts = []
    for file in _tables(path) or [path]:
        table = load_table(file)
        image_column = column_of(table.columns, IMAGE_COLUMNS, None, file, "image")
        prompt_column = column_of(table.columns, TEXT_COLUMNS, text_column, file, "text")

        is_named = path.is_file() and file.name not in METADATA
        source = file.stem if is_named else file.parent.name
        names = texts_of(table[image_column], file).fill_null("")
        part = from_columns(
            ids=ids_of(source, names),
            images=locate(file.parent, names),
            prompts=texts_of(table[prompt_column], file),
            source=source,
        )
        parts.append(part)
    return pl.concat(parts)


# --- the competition ---


def is_competition(path: Path) -> bool:
    """Whether `path` holds prompts.csv and the folder images."""
    return (path / "prompts.csv").exists() and (path / "images").is_dir()


def read_competition(path: Path, text_column: str | None) -> pl.DataFrame:
    """The rows of prompts.csv (imgId, prompt); the ids are imgId."""
    file = path / "prompts.csv"
    table = load_table(file)
    if not {"imgId", "prompt"} <= set(table.columns):
        raise ValueError(
            f"{display_path(file)}: columns are {table.columns}, wanted imgId and prompt"
        )

    ids = table["imgId"].fill_null("")
    return from_columns(
        ids=ids,
        images=[display_path(path / "images" / f"{name}.png") for name in ids],
        prompts=table["prompt"],
        source=path.name,
    )


# --- a table of prompts beside <row number>.png ---


def is_numbered(path: Path) -> bool:
    """Whether a table of prompts lies beside images named by row number."""
    return _numbered(path) is not None


def _numbered(path: Path) -> tuple[Path, Path] | None:
    """The table of prompts and the folder of numbered images at `path`."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    for file in files:
        if file.suffix not in TABLES or not column_names(file) & set(TEXT_COLUMNS):
            continue
        beside = sorted(folder for folder in file.parent.iterdir() if folder.is_dir())
        for folder in (file.with_suffix(""), file.parent, *beside):
            if any(_is_numbered_by(folder, suffix) for suffix in IMAGE_SUFFIXES):
                return file, folder
    return None


def _is_numbered_by(folder: Path, suffix: str) -> bool:
    """Whether `folder` holds the image 0 or 1 with this ending."""
    return (folder / f"0{suffix}").exists() or (folder / f"1{suffix}").exists()


def read_numbered(path: Path, text_column: str | None) -> pl.DataFrame:
    """The rows of a table of prompts; row i belongs to image i, counted from 0 or from 1."""
    place = _numbered(path)
    if place is None:
        raise ValueError(
            f"{display_path(path)}: no table with a text column beside a folder of images named by "
            "row number (0.png, ...)"
        )

    file, folder = place
    table = load_table(file)
    column = column_of(table.columns, TEXT_COLUMNS, text_column, file, "text")

    suffix = next(s for s in IMAGE_SUFFIXES if _is_numbered_by(folder, s))
    first = 0 if (folder / f"0{suffix}").exists() else 1
    numbers = range(first, first + len(table))
    return from_columns(
        ids=[f"{file.stem}/{number}" for number in numbers],
        images=[display_path(folder / f"{number}{suffix}") for number in numbers],
        prompts=texts_of(table[column], file),
        source=file.stem,
    )
