"""Where an image lies, as one string that fits a table's cell: a file, a member of a tar shard, or a cell of a Parquet table.

    input/train/images/7.png
    input/shards/00000.tar::000000007.jpg@1536+48211        member @ offset + bytes
    input/data/train-00000.parquet::image@17                column @ row

Images are read there and never unpacked to disk.
"""

import os
import re
from functools import lru_cache
from pathlib import Path
from threading import Lock

from src.paths import display_path, resolve

MEMBER = re.compile(r"(?P<file>.+?\.tar)::(?P<name>.+)@(?P<offset>\d+)\+(?P<size>\d+)", re.DOTALL)
CELL = re.compile(r"(?P<file>.+?\.parquet)::(?P<column>.+)@(?P<row>\d+)", re.DOTALL)
_one_reader = (
    Lock()
)  # neighbouring rows share a row group: threads wait for it instead of reading it twice


def in_tar(file: Path, name: str, *, offset: int, size: int) -> str:
    """The reference to `size` bytes at `offset` of an uncompressed tar shard."""
    return f"{display_path(file)}::{name}@{offset}+{size}"


def in_table(file: Path, column: str, row: int) -> str:
    """The reference to a row of an image column (binary, or a struct with `bytes`) of a Parquet file."""
    return f"{display_path(file)}::{column}@{row}"


def file_of(reference: str | Path) -> Path:
    """The file on disk that holds the image."""
    found = MEMBER.fullmatch(str(reference)) or CELL.fullmatch(str(reference))
    return resolve(found["file"] if found else reference)


def read(reference: str | Path) -> bytes:
    """The image's encoded bytes. Raises OSError when they are not there."""
    if member := MEMBER.fullmatch(str(reference)):
        with open(resolve(member["file"]), "rb") as shard:
            shard.seek(int(member["offset"]))
            content = shard.read(int(member["size"]))
        if len(content) < int(member["size"]):
            raise OSError(
                f"the shard ends after {len(content)} of the image's {member['size']} bytes"
            )
        return content
    if cell := CELL.fullmatch(str(reference)):
        return _cell(resolve(cell["file"]), cell["column"], int(cell["row"]))
    return resolve(reference).read_bytes()


def stamp(file: str | Path) -> str:
    """Size and time of change of a file: as long as they stay, its content is taken to be the same."""
    stat = os.stat(file)
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def _cell(file: Path, column: str, row: int) -> bytes:
    with _one_reader:
        start, content = _row_group(file, stamp(file), column, *_group_of(file, stamp(file), row))
    image = content[row - start].as_py()
    image = image.get("bytes") if isinstance(image, dict) else image
    if not image:
        raise OSError("the table's cell holds no bytes")
    return image


@lru_cache(maxsize=16)
def _opened(file: Path, _stamp: str):
    import pyarrow.parquet as pq

    return pq.ParquetFile(file, memory_map=True)


def _group_of(file: Path, when: str, row: int) -> tuple[int, int]:
    """The row group that holds `row`, and its first row."""
    metadata, start = _opened(file, when).metadata, 0
    for group in range(metadata.num_row_groups):
        if row < start + metadata.row_group(group).num_rows:
            return group, start
        start += metadata.row_group(group).num_rows
    raise OSError(f"the table has {start} rows, row {row} is not there")


@lru_cache(maxsize=2)
def _row_group(file: Path, when: str, column: str, group: int, start: int):
    opened = _opened(file, when)
    nested = f"{column}.bytes" in (opened.schema.column(i).path for i in range(len(opened.schema)))
    return start, opened.read_row_group(
        group, columns=[f"{column}.bytes" if nested else column]
    ).column(0)
