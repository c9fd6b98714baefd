"""Images named by a table with an image and a text column, and the competition's prompts.csv."""

import os
from pathlib import Path

import polars as pl

from src.data.layouts.lookup import Finder, ids_of
from src.data.layouts.names import (
    IMAGE_COLUMNS,
    METADATA,
    TABLES,
    TEXT_COLUMNS,
    column_of,
    files_of,
    folder_in,
    folders_of,
    report_skipped,
)
from src.data.layouts.rows import from_rows, rows_of
from src.data.layouts.tables import Table, column_names, delivery_reasons, load_table
from src.paths import display_path, resolve

LOOKED_AT = 50  # rows whose images decide between two image columns

# --- a table with an image and a text column ---


def is_table(path: Path) -> bool:
    """Whether `path` is or holds a table of images and prompts."""
    return bool(_tables(path))


def _tables(path: Path) -> list[Path]:
    """The tables at `path`.

    Itself, its metadata file, every table in it with both columns, or else the metadata files of
    the folders in it, of `train` alone where there is one.
    """
    if path.is_file():
        return files_of(path, TABLES)
    if metadata := _metadata(path):
        return [metadata]

    # every table in the folder that has both columns
    tables = []
    for file in files_of(path, TABLES):
        columns = set(column_names(file))
        if columns & set(IMAGE_COLUMNS) and columns & set(TEXT_COLUMNS):
            tables.append(file)
    if tables:
        return tables

    # a folder for each split, as the Hugging Face hub has them
    below = [metadata for folder in folders_of(path) if (metadata := _metadata(folder))]
    train = [metadata for metadata in below if metadata.parent.name.lower() == "train"]
    return train or below


def _metadata(folder: Path) -> Path | None:
    """The metadata file of a folder of images, in any letter case."""
    files = {file.name.lower(): file for file in files_of(folder, TABLES)}
    return next((files[name] for name in METADATA if name in files), None)


def read_table(path: Path, text_column: str | None) -> pl.DataFrame:
    """The rows of every table at `path`, with paths relative to the table."""
    files = _tables(path) or [path]
    if path.is_dir():
        others = [folder for folder in folders_of(path) if _metadata(folder)]
        left_out = [folder.name for folder in others if _metadata(folder) not in files]
        report_skipped(path, left_out, "folders with metadata are not read")

    parts = []
    for file in files:
        is_named = path.is_file() and file.name.lower() not in METADATA
        source = file.stem if is_named else file.parent.name
        parts.append(rows_of_table(load_table(file), text_column, source))
    return pl.concat(parts)


def rows_of_table(table: Table, text_column: str | None, source: str) -> pl.DataFrame:
    """The rows of one table; images are looked for beside it and below its folder."""
    finder = Finder(table.file.parent)
    names = table.names(_image_column(table, finder))
    prompt_column = column_of(table.columns, TEXT_COLUMNS, text_column, table.file, "text")
    captions = table.captions(prompt_column)
    reasons = _reasons(table)

    # several rows may name one image, each with another prompt
    rows = []
    for name, identifier, prompts, reason in zip(
        names, ids_of(names), captions, reasons, strict=True
    ):
        image, lost = finder.find(name)
        rows += rows_of(identifier, image, prompts, reason or lost)
    return from_rows(rows, source)


def _image_column(table: Table, finder: Finder) -> str:
    """The known column whose first names are files; the first known one where none is.

    Raises ValueError where two columns name as many files, and others.
    """
    first = column_of(table.columns, IMAGE_COLUMNS, None, table.file, "image")
    known = [name for name in IMAGE_COLUMNS if name in table.columns]
    if len(known) == 1:
        return first

    # one of them may hold numbers, or links to where the images came from
    files_of_column = {}
    for column in known:
        images = [finder.find(name)[0] for name in table.names(column)[:LOOKED_AT] if name]
        files_of_column[column] = [image for image in images if os.path.isfile(resolve(image))]

    most = max(map(len, files_of_column.values()))
    best = [column for column in known if len(files_of_column[column]) == most]
    if most and any(files_of_column[column] != files_of_column[best[0]] for column in best):
        raise ValueError(
            f"{display_path(table.file)}: columns {' and '.join(best)} both name images; keep one"
        )
    return best[0] if most else first


def _reasons(table: Table) -> list[str | None]:
    """Why rows cannot be used: they are broken, or img2dataset could not download them."""
    if "status" not in table.columns:
        return table.reasons

    # other sets have a column status too
    statuses = table.names("status")
    if "success" not in statuses:
        return table.reasons
    return [
        reason or undelivered
        for reason, undelivered in zip(table.reasons, delivery_reasons(statuses), strict=True)
    ]


# --- the competition ---


def is_competition(path: Path) -> bool:
    """Whether `path` holds prompts.csv with the column imgId, and the folder images."""
    file = path / "prompts.csv"
    has_images = folder_in(path, "images") is not None
    return has_images and file.is_file() and "imgId" in column_names(file)


def read_competition(path: Path, text_column: str | None) -> pl.DataFrame:
    """The rows of prompts.csv (imgId, prompt); the ids are imgId."""
    file = path / "prompts.csv"
    table = load_table(file)
    if not {"imgId", "prompt"} <= set(table.columns):
        raise ValueError(
            f"{display_path(file)}: columns are {table.columns}, wanted imgId and prompt"
        )

    finder = Finder(folder_in(path, "images") or path / "images")
    rows = []
    for name, captions, reason in zip(
        table.names("imgId"), table.captions("prompt"), table.reasons, strict=True
    ):
        # the competition's images are .png, those of others' sets may be anything
        image, lost = finder.find_any(f"{name}.png", name)
        rows += rows_of(name, image, captions, reason or lost)
    return from_rows(rows, path.name, prefix="")
