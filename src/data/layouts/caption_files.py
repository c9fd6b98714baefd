"""Images beside text or JSON files of the same stem, such as img2dataset's output as files."""

import os
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from src.data.layouts.captions import CAPTION_SUFFIXES, TEXT_SUFFIXES, captions_in, not_delivered
from src.data.layouts.names import entries_of, folders_of, is_image
from src.data.layouts.rows import NO_IMAGE, Row, from_rows, rows_of
from src.paths import display_path


def is_files(path: Path) -> bool:
    """Whether `path` or a folder below holds an image with a text or JSON file of its stem."""
    if not path.is_dir():
        return False
    for folder in _folders(path):
        for sample in _samples(folder).values():
            if any(map(is_image, sample)) and not all(map(is_image, sample)):
                return True
    return False


def _folders(path: Path) -> Iterator[Path]:
    """`path` and every folder below it, each once: a link to a folder above is not followed."""
    ahead = [path]
    visited = set()
    while ahead:
        folder = ahead.pop()
        real = os.path.realpath(folder)
        if real not in visited:
            visited.add(real)
            ahead += reversed(folders_of(folder))
            yield folder


def _samples(folder: Path) -> dict[str, list[Path]]:
    """The images and captions of a folder by stem."""
    samples: dict[str, list[Path]] = {}
    for file in entries_of(folder):
        is_caption = file.suffix.lower() in CAPTION_SUFFIXES
        if (is_caption or is_image(file)) and file.is_file():
            samples.setdefault(file.stem, []).append(file)
    return samples


def read_files(path: Path, text_column: str | None) -> pl.DataFrame:
    """The samples of `path` and of every folder below it."""
    rows = []
    for folder in _folders(path):
        if folder == path:
            rows += _rows_of_folder(folder, "", text_column)
            continue
        label = folder.relative_to(path).as_posix()
        rows += _rows_of_folder(folder, f"{label}/", text_column)
        rows += not_delivered(folder.with_suffix(".parquet"), label)
    return from_rows(rows, path.name)


def _rows_of_folder(folder: Path, prefix: str, text_column: str | None) -> list[Row]:
    rows = []
    for stem, files in _samples(folder).items():
        images = [file for file in files if is_image(file)]
        if not images and not any(file.suffix.lower() in TEXT_SUFFIXES for file in files):
            continue  # img2dataset's own 00000_stats.json is not a sample

        contents = {file.suffix.lower(): file.read_bytes for file in files if not is_image(file)}
        captions = captions_in(contents, text_column)
        if not images:
            rows += rows_of(prefix + stem, display_path(folder / stem), captions, NO_IMAGE)
        for image in images:
            # cat.png and cat.jpg are two images
            name = stem if len(images) == 1 else image.name
            rows += rows_of(prefix + name, display_path(image), captions)
    return rows
