"""WebDataset: tar shards whose members with one stem are a sample."""

import os
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import polars as pl
from tqdm import tqdm

from src.data import locators
from src.data.layouts.captions import caption_of, not_delivered
from src.data.layouts.names import IMAGE_SUFFIXES
from src.data.layouts.rows import NO_IMAGE, Row, from_rows
from src.paths import display_path


def is_webdataset(path: Path) -> bool:
    """Whether `path` is or holds tar shards."""
    return bool(_shards(path))


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".tar" else []
    return sorted(path.glob("*.tar")) or sorted(path.glob("*/*.tar"))


def read_webdataset(path: Path, text_column: str | None) -> pl.DataFrame:
    """The samples of every shard, and what img2dataset's tables beside them could not download."""
    shards = _shards(path)
    root = path if path.is_dir() else path.parent
    rows = []
    for shard in tqdm(shards, desc="reading shards", unit="shard", disable=len(shards) < 20):
        rows += _rows_of_shard(shard, text_column)
        rows += not_delivered(shard.with_suffix(".parquet"))
    return from_rows(rows, root.name)


def _rows_of_shard(shard: Path, text_column: str | None) -> Iterator[Row]:
    """The samples of a shard; a cut shard gives what is whole and one row for the rest."""
    key = None
    members: dict[str, tarfile.TarInfo] = {}
    with open(shard, "rb") as stream:
        try:
            with tarfile.open(shard, "r:", errors="replace") as tar:
                for member in tar:
                    tar.members.clear()  # tarfile keeps every header otherwise
                    if member.size < 0:  # it would be read over and over
                        raise tarfile.TarError("a member has a negative size")
                    if not member.isfile():
                        continue

                    folder, _, name = member.name.rpartition("/")
                    stem, _, extension = name.partition(".")
                    if (folder, stem) != key and members:
                        yield _row(shard, key, members, stream, text_column)
                        members = {}
                    key = folder, stem
                    members["." + extension.lower()] = member

                # tarfile takes a header that it cannot read for the end
                stream.seek(tar.offset)
                if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise tarfile.TarError("a header is damaged")
        except Exception as error:
            # tarfile raises what it likes on a damaged header: MemoryError, OverflowError, ...
            message = str(error) or type(error).__name__
            reason = f"shard cannot be read on: {message}"
            yield Row(f"{shard.stem}/rest", display_path(shard), None, reason)

        if members:  # the last sample, after the end or before the cut
            yield _row(shard, key, members, stream, text_column)


def _row(
    shard: Path,
    key: tuple[str, str],
    members: dict[str, tarfile.TarInfo],
    stream: BinaryIO,
    text_column: str | None,
) -> Row:
    name = "/".join(filter(None, (shard.stem, *key)))
    contents = {ending: partial(_content, stream, member) for ending, member in members.items()}
    prompt = caption_of(contents, text_column)

    for ending, member in members.items():
        if "." + ending.rpartition(".")[2] in IMAGE_SUFFIXES:
            image = locators.in_tar(shard, member.name, offset=member.offset_data, size=member.size)
            return Row(name, image, prompt)
    return Row(name, display_path(shard), prompt, NO_IMAGE)


def _content(stream: BinaryIO, member: tarfile.TarInfo) -> bytes:
    stream.seek(member.offset_data)
    size_of_shard = os.fstat(stream.fileno()).st_size
    return stream.read(min(member.size, size_of_shard))  # a header can claim any size
