"""Files made for the tests of bad inputs: images, tables and arrays as bytes."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from src.data import sources

Spoil = Callable[[Path], object]  # changes files of a folder
RED = (255, 0, 0)
LIME = (0, 255, 0)
BLUE = (0, 0, 255)
WHITE = (255, 255, 255)
FORMATS = {
    "jpeg": {"quality": 95, "subsampling": 0},
    "png": {},
    "webp": {"lossless": True},
    "gif": {},
    "bmp": {},
    "tiff": {},
}


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **{**FORMATS.get(kind, {}), **options})
    return stream.getvalue()


def flipped(content: bytes, *places: int) -> bytes:
    changed = bytearray(content)
    for place in places:
        changed[place] ^= 0xFF
    return bytes(changed)


def parquet(**columns) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def deep(n: int) -> str:
    return '{"file_name": "fox.png", "prompt": ' + "[" * n + "]" * n + "}"


def row(name="fox.png", prompt: object = "a red fox") -> dict:
    return {"file_name": name, "prompt": prompt}


ONE = [
    ("a red fox", None)
]  # (prompt, reason): what must be there; an image without a row is not counted
BOTH = [("a red fox", None), ("an owl", None)]
NO_OBJECT = (None, "its line is not a JSON object")
NOT_TEXT = (None, "its text is neither UTF-8, UTF-16 nor Windows-1252")
SURPLUS = ("an owl", "more cells than the header has")
EMPTY = (None, "empty prompt")
GONE = (None, "no such image")


def outcome(folder: Path) -> list[tuple[str | None, str | None]]:
    """(prompt, reason) of every row, sorted; without the images that have no row."""
    pairs, rejected = sources.read_pairs(folder)
    assert sources.reason_counts(rejected)["rows"].sum() == len(rejected)
    rejected = rejected.filter(pl.col("reason") != sources.UNLISTED)
    return [
        *((prompt, None) for prompt in pairs["prompt"]),
        *rejected.select("prompt", "reason").rows(),
    ]


def assert_rows(rows: list[tuple], expected: list[tuple]) -> None:
    """The rows of `outcome` are those expected: prompts in order, and how each reason begins."""
    assert [prompt for prompt, reason in rows if reason is None] == [
        prompt for prompt, reason in expected if reason is None
    ], rows
    reasons = sorted(reason for _, reason in rows if reason)
    beginnings = sorted(reason for _, reason in expected if reason)
    assert len(reasons) == len(beginnings), rows
    assert all(map(str.startswith, reasons, beginnings)), rows


class Hostile:
    """A pickle that makes a folder where it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.makedirs, (str(self.mark),)


# --- files of a folder spoilt; a name may be a pattern ---


def cut(name: str, share: float) -> Spoil:
    """Only the first `share` of the file stays."""

    def spoil(folder: Path) -> None:
        file = next(folder.glob(name))
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * share)])

    return spoil


def in_place(name: str, content: bytes) -> Spoil:
    """Other content in the file's place."""
    return lambda folder: (folder / name).write_bytes(content)


def removed(name: str) -> Spoil:
    return lambda folder: next(folder.glob(name)).unlink()
