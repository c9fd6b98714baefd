"""Where an image lies, as one string that fits a table's cell.

    input/train/images/7.png                                a file
    input/shards/00000.tar::000000007.jpg@1536+48211        member of a tar @ offset + bytes
    input/data/train-00000.parquet::image@17                column of a Parquet table @ row

Images are read there and never unpacked to disk.
"""

import os
import re
from functools import lru_cache
from pathlib import Path
from threading import Lock

import pyarrow.parquet as pq

from src.paths import display_path, resolve

MEMBER = re.compile(
    r"(?P<file>.+?(?i:\.tar))::(?P<name>.+)@(?P<offset>\d+)\+(?P<size>\d+)", re.DOTALL
)
CELL = re.compile(r"(?P<file>.+?(?i:\.parquet))::(?P<column>.+)@(?P<row>\d+)", re.DOTALL)

# neighboring rows share a row group: threads wait for it instead of reading it twice
_one_reader = Lock()


def in_tar(file: Path, name: str, *, offset: int, size: int) -> str:
    """The locator of `size` bytes at `offset` of an uncompressed tar shard."""
    return f"{display_path(file)}::{name}@{offset}+{size}"


def in_table(file: Path, column: str, row: int) -> str:
    """The locator of a row of a Parquet file's image column (binary, or a struct with `bytes`)."""
    return f"{display_path(file)}::{column}@{row}"


def file_of(locator: str | Path) -> Path:
    """The file on disk that holds the image."""
    inside = MEMBER.fullmatch(str(locator)) or CELL.fullmatch(str(locator))
    return resolve(inside["file"] if inside else locator)


def read(locator: str | Path) -> bytes:
    """The image's encoded bytes. Raises OSError when they are not there."""
    if member := MEMBER.fullmatch(str(locator)):
        return _member(resolve(member["file"]), int(member["offset"]), int(member["size"]))
    if cell := CELL.fullmatch(str(locator)):
        return _cell(resolve(cell["file"]), cell["column"], int(cell["row"]))
    return resolve(locator).read_bytes()


def stamp(file: str | Path) -> str:
    """Size and time of change of a file: while they stay, its content is taken to be the same."""
    stat = os.stat(file)
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def _member(file: Path, offset: int, size: int) -> bytes:
    with open(file, "rb") as shard:
        shard.seek(offset)
        content = shard.read(size)

    # a decoder would only say that the image is broken, not that the shard is truncated
    if len(content) < size:
        raise OSError(f"the shard ends after {len(content)} of the image's {size} bytes")
    return content


def _cell(file: Path, column: str, row: int) -> bytes:
    with _one_reader:
        group, first_row = _group_of(file, stamp(file), row)
        cells = _row_group(file, stamp(file), column, group)

    # the hub's own images are structs of bytes and path
    image = cells[row - first_row].as_py()
    if isinstance(image, dict):
        image = image.get("bytes")
    if not image:
        raise OSError("the table's cell holds no bytes")
    return image


@lru_cache(maxsize=16)
def _opened(file: Path, _stamp: str) -> pq.ParquetFile:
    return pq.ParquetFile(file, memory_map=True)


def _group_of(file: Path, stamp: str, row: int) -> tuple[int, int]:
    """The row group that holds `row`, and its first row."""
    metadata = _opened(file, stamp).metadata
    first_row = 0
    for group in range(metadata.num_row_groups):
        next_row = first_row + metadata.row_group(group).num_rows
        if row < next_row:
            return group, first_row
        first_row = next_row
    raise OSError(f"the table has {first_row} rows, row {row} is not there")


@lru_cache(maxsize=2)
def _row_group(file: Path, stamp: str, column: str, group: int):
    """The column's cells of one row group; of a struct its `bytes` alone."""
    table = _opened(file, stamp)
    columns = [table.schema.column(i).path for i in range(len(table.schema))]
    wanted = f"{column}.bytes" if f"{column}.bytes" in columns else column
    return table.read_row_group(group, columns=[wanted]).column(0)
