"""Images beside text or JSON files of the same stem, such as img2dataset's output as files."""

from itertools import chain
from pathlib import Path

import polars as pl

from src.data.layouts.captions import caption_of, not_delivered
from src.data.layouts.names import IMAGE_SUFFIXES
from src.data.layouts.rows import NO_IMAGE, Row, from_rows
from src.paths import display_path

CAPTION_SUFFIXES = (".txt", ".json")


def is_files(path: Path) -> bool:
    """Whether `path` or a folder in it holds an image with a text or JSON file of its stem."""
    if not path.is_dir():
        return False
    patterns = ("*.txt", "*.json", "*/*.txt", "*/*.json")
    captions = chain.from_iterable(path.glob(pattern) for pattern in patterns)
    return any(
        caption.with_suffix(suffix).exists() for caption in captions for suffix in IMAGE_SUFFIXES
    )


def read_files(path: Path, text_column: str | None) -> pl.DataFrame:
    """The samples of `path` and of each folder in it."""
    rows = _rows_of_folder(path, "", text_column)
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
        rows += _rows_of_folder(folder, f"{folder.name}/", text_column)
        rows += not_delivered(folder.with_suffix(".parquet"))
    return from_rows(rows, path.name)


def _rows_of_folder(folder: Path, prefix: str, text_column: str | None) -> list[Row]:
    samples: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.iterdir()):
        suffix = file.suffix.lower()
        if suffix in (*IMAGE_SUFFIXES, *CAPTION_SUFFIXES) and file.is_file():
            samples.setdefault(file.stem, {})[suffix] = file

    rows = []
    for stem, members in samples.items():
        image = next((file for suffix, file in members.items() if suffix in IMAGE_SUFFIXES), None)
        if image is None and ".txt" not in members:
            continue  # img2dataset's own 00000_stats.json is no sample

        contents = {suffix: file.read_bytes for suffix, file in members.items()}
        row = Row(
            name=prefix + stem,
            image=display_path(image or folder / stem),
            prompt=caption_of(contents, text_column),
            reason=None if image else NO_IMAGE,
        )
        rows.append(row)
    return rows
