"""A table of prompts beside images that are named by its id column or by its row number."""

import re
from pathlib import Path
from typing import NamedTuple

import polars as pl

from src.data.layouts.names import (
    TABLES,
    TEXT_COLUMNS,
    column_of,
    entries_of,
    files_of,
    folders_of,
    is_image,
    suffix_of,
)
from src.data.layouts.rows import AMBIGUOUS, from_rows, rows_of
from src.data.layouts.tables import Table, column_names, load_table
from src.paths import display_path

# "" is the index that pandas writes
KEY_COLUMNS = ("imgId", "image_id", "img_id", "id", "idx", "index", "key", "number", "")


class Place(NamedTuple):
    """A table of prompts, and the folder of the images that it numbers."""

    table: Path
    folder: Path


def is_numbered(path: Path) -> bool:
    """Whether a table of prompts lies beside images named by row number or by its id column."""
    return _place(path) is not None


def _place(path: Path) -> Place | None:
    """The table of prompts and the folder of its images at `path`."""
    for file in files_of(path, TABLES):
        columns = column_names(file)
        if not set(columns) & set(TEXT_COLUMNS):
            continue
        for folder in (file.with_suffix(""), file.parent, *folders_of(file.parent)):
            images = _images(folder)

            # by row number, or by an id
            if "0" in images or "1" in images:
                return Place(file, folder)
            if images and _keys(load_table(file)).intersection(images):
                return Place(file, folder)
    return None


def _images(folder: Path) -> dict[str, list[Path]]:
    """The images of a folder by key."""
    images: dict[str, list[Path]] = {}
    if folder.is_dir():
        for entry in entries_of(folder):
            if is_image(entry) and entry.is_file():
                images.setdefault(_key(entry.stem), []).append(entry)
    return images


def _key(name: str) -> str:
    """What a row and its image share: the name, of a number without leading zeros."""
    stem = name.strip()
    if is_image(stem):
        stem = Path(stem).stem
    return re.sub(r"^0+(?=\d+$)", "", stem)


def _keys(table: Table) -> set[str]:
    """Every key in the table's id columns."""
    keys: set[str] = set()
    for column in KEY_COLUMNS:
        if column in table.columns:
            keys.update(map(_key, table.names(column)))
    return keys - {""}


def read_numbered(path: Path, text_column: str | None) -> pl.DataFrame:
    """The rows of a table of prompts, each with the image that its id names.

    Without an id column that names images, row i belongs to image i, counted from 0 or from 1.
    Raises ValueError where ids and row numbers both fit, and differ.
    """
    place = _place(path)
    if place is None:
        raise ValueError(
            f"{display_path(path)}: no table with a text column beside a folder of images named by "
            "row number (0.png, ...)"
        )

    table = load_table(place.table)
    column = column_of(table.columns, TEXT_COLUMNS, text_column, place.table, "text")
    images = _images(place.folder)
    keys = _row_keys(table, images, place)

    # the ending of the images that are there is what a missing one would have had
    ending = suffix_of(next(iter(images.values()))[0])
    rows = []
    for key, captions, reason in zip(keys, table.captions(column), table.reasons, strict=True):
        # 1.png and 01.png have one key
        files = images.get(key, [])
        image = files[0] if files else place.folder / f"{key}{ending}"
        lost = AMBIGUOUS if len(files) > 1 else None
        rows += rows_of(key, display_path(image), captions, reason or lost)
    return from_rows(rows, place.table.stem)


def _row_keys(table: Table, images: dict[str, list[Path]], place: Place) -> list[str]:
    """The key of each row's image: by the id column that names most images, else its number."""
    first = 0 if "0" in images else 1
    numbers = [str(number) for number in range(first, first + len(table))]
    n_numbered = sum(number in images for number in numbers)

    # an id column counts where it names more images than any other
    best = numbers
    n_best = 0
    for column in KEY_COLUMNS:
        if column in table.columns:
            keys = [_key(name) for name in table.names(column)]
            n_named = sum(key in images for key in keys)
            if n_named > n_best:
                best = keys
                n_best = n_named

    # ids from 1 beside images from 0: both fit most rows, and they mean different images
    if 0 < n_best < n_numbered and best != numbers:
        raise ValueError(
            f"{display_path(place.table)}: {n_best} of {len(table)} ids and {n_numbered} row "
            f"numbers name images in {display_path(place.folder)}, and they differ; "
            "add a column file_name"
        )
    return best
