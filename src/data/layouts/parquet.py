"""Parquet files that hold the images themselves, as the Hugging Face hub and img2dataset do."""

import os
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from src import artifacts
from src.data import locators
from src.data.layouts.lookup import Finder
from src.data.layouts.names import (
    IMAGE_COLUMNS,
    TEXT_COLUMNS,
    column_of,
    files_of,
    folder_in,
    is_image,
    labels_of,
    report_skipped,
)
from src.data.layouts.rows import NO_IMAGE, from_rows, rows_of
from src.data.layouts.tables import column_names, delivery_reasons, load_table, schema_of
from src.paths import display_path, resolve

LOOKED_AT = 8  # cells that decide whether a column holds images
SIGNATURES = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0\x0cjP",
    b"\xff\x4f\xff\x51",
)


def is_parquet(path: Path) -> bool:
    """Whether the first Parquet file at `path` holds images."""
    return any(_image_column(file) for file in _parquet_files(path)[:1])


def _parquet_files(path: Path) -> list[Path]:
    """The Parquet files at `path`, in data/ or one folder deeper; those of `train` where named."""
    if path.is_file():
        return files_of(path, (".parquet",))

    files = files_of(path, (".parquet",))
    data = folder_in(path, "data")
    if not files and data:
        files = files_of(data, (".parquet",))
    if not files:
        files = files_of(path, (".parquet",), depth=2)
    train = [file for file in files if file.name.startswith("train") or file.parent.name == "train"]
    return train or files


# --- which column holds the images ---


def _image_column(file: Path) -> str | None:
    """The column that holds encoded images: bytes, or a struct with `bytes`; None without one.

    Content counts before names. Raises ValueError where several columns could be meant.
    """
    candidates = [name for name, dtype in schema_of(file).items() if _may_hold_images(dtype)]
    if not candidates:
        return None

    # a known name that holds images, else whatever holds images, else a known name
    known = [name for name in IMAGE_COLUMNS if name in candidates]
    holding = _columns_of_images(file, candidates)
    chosen = [name for name in known if name in holding] or holding or known[:1]
    if len(chosen) > 1:
        raise ValueError(
            f"{display_path(file)}: columns {' and '.join(chosen)} all hold images; "
            "keep one, or call the one that the prompts belong to `image`"
        )
    return chosen[0] if chosen else None


def _may_hold_images(dtype: pl.DataType) -> bool:
    if isinstance(dtype, pl.Struct):
        return "bytes" in {field.name for field in dtype.fields}
    return dtype == pl.Binary


def _columns_of_images(file: Path, candidates: list[str]) -> list[str]:
    """The columns whose first cells are images, or name images without holding them."""
    with artifacts.readable(file), pq.ParquetFile(file) as table:
        batch = next(table.iter_batches(batch_size=LOOKED_AT, columns=candidates), None)
    if batch is None:
        return []

    columns = []
    for name in candidates:
        cells = [cell for cell in batch.column(name).to_pylist() if cell is not None]
        if any(map(_is_image_cell, cells)):
            columns.append(name)
    return columns


def _is_image_cell(cell: bytes | dict) -> bool:
    if isinstance(cell, bytes):
        return _is_encoded_image(cell)
    if cell.get("bytes"):
        return _is_encoded_image(cell["bytes"])
    return is_image(cell.get("path") or "")


def _is_encoded_image(content: bytes) -> bool:
    """Whether bytes begin as an image file does."""
    if content.startswith(SIGNATURES):
        return True
    is_webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    is_bmp = content[:2] == b"BM" and content[6:10] == bytes(4)
    is_avif = content[4:8] == b"ftyp"
    is_ppm = content[:2] in (b"P5", b"P6") and content[2:3].isspace()
    return is_webp or is_bmp or is_avif or is_ppm


# --- rows ---


def read_parquet(path: Path, text_column: str | None) -> pl.DataFrame:
    """A row for each cell of the image columns; ids are `<source>/<file>/<row>`."""
    files = _parquet_files(path)
    if not files:
        raise ValueError(f"{display_path(path)}: no .parquet file in it")
    if path.is_dir():
        others = [f for f in files_of(path, (".parquet",), depth=2) if f not in files]
        report_skipped(path, [file.name for file in others], "Parquet files are not of train")

    source = path.name if path.is_dir() else path.stem
    root = path if path.is_dir() else path.parent
    rows = []
    for file, label in zip(files, labels_of(files, root), strict=True):
        columns = column_names(file)
        image_column = _image_column(file)
        if image_column is None:
            raise ValueError(
                f"{display_path(file)}: no column of encoded images among {sorted(columns)}"
            )
        table = load_table(file)
        captions = table.captions(column_of(columns, TEXT_COLUMNS, text_column, file, "text"))
        reasons = table.reasons
        if "status" in columns:
            reasons = delivery_reasons(table.names("status"))

        # a cell without bytes may still name a file beside the table
        missing = _without_bytes(file, image_column)
        for number, (prompts, reason) in enumerate(zip(captions, reasons, strict=True)):
            image = locators.in_table(file, image_column, number)
            if number in missing:
                image = missing[number] or image
                reason = reason or (None if missing[number] else NO_IMAGE)
            rows += rows_of(f"{label}/{number}", image, prompts, reason)
    return from_rows(rows, source)


def _without_bytes(file: Path, column: str) -> dict[int, str | None]:
    """The rows whose cell holds no image, and the locator of the file that it names, if any."""
    finder = Finder(file.parent)

    missing: dict[int, str | None] = {}
    first_row = 0
    with artifacts.readable(file), pq.ParquetFile(file) as table:
        # of a struct its parts are columns of their own
        leaves = [table.schema.column(n).path for n in range(len(table.schema))]
        content = f"{column}.bytes" if f"{column}.bytes" in leaves else column
        names = f"{column}.path" if f"{column}.path" in leaves else None

        for group in range(table.metadata.num_row_groups):
            group_metadata = table.metadata.row_group(group)
            chunk = group_metadata.column(leaves.index(content))
            statistics = chunk.statistics
            is_whole = statistics is not None and statistics.null_count == 0

            # images are only read where the file does not say that all are there
            if not is_whole:
                wanted = [content, names] if names else [content]
                cells = table.read_row_group(group, columns=wanted).column(0).to_pylist()
                for number, cell in enumerate(cells, start=first_row):
                    encoded = cell.get("bytes") if isinstance(cell, dict) else cell
                    if encoded is None:
                        name = cell.get("path") if isinstance(cell, dict) else None
                        missing[number] = _existing(finder, name)
            first_row += group_metadata.num_rows
    return missing


def _existing(finder: Finder, name: str | None) -> str | None:
    """The locator of the file that a cell names; None where there is none."""
    if not name:
        return None
    image, reason = finder.find(name)
    return image if reason is None and os.path.isfile(resolve(image)) else None
