"""Images of one color each, so that a test can tell which image a row leads to."""

import io
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from src.data import images, sources

COLORS = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".webp": "WEBP", ".avif": "AVIF"}


def encoded(color: str = "red", kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(stream, kind)
    return stream.getvalue()


def save_image(path: Path, color: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(color, KINDS.get(path.suffix.lower(), "PNG")))


def colors_of(locators: pl.Series) -> list[str]:
    """The color that each locator leads to."""
    pixels = [np.asarray(images.decode(locator))[0, 0].astype(int) for locator in locators]
    return [min(COLORS, key=lambda name: np.abs(pixel - COLORS[name]).sum()) for pixel in pixels]


def read(path: Path, **options: str) -> tuple[list[tuple[str, str]], list[str]]:
    """(prompt, color) of every pair, and the reasons of the others; unlisted images left out."""
    pairs, rejected = sources.read_pairs(path, **options)
    assert pairs["id"].is_unique().all()
    reasons = rejected.filter(pl.col("reason") != sources.UNLISTED)["reason"].to_list()
    return list(zip(pairs["prompt"], colors_of(pairs["image"]), strict=True)), reasons
