"""DiffusionDB: folders part-*, each with a JSON file of its prompts, and a Parquet table of all."""

import re
from itertools import chain
from pathlib import Path

import polars as pl
from tqdm import tqdm

from src import artifacts
from src.data.layouts.lookup import Finder
from src.data.layouts.rows import BLURRED, Row, from_rows, rows_of
from src.data.layouts.tables import column_names
from src.data.layouts.text import captions_of, decode, parse_object
from src.paths import display_path

NOT_JSON = "part is not JSON"  # followed by what is wrong
TABLE_FILES = ("metadata.parquet", "metadata-large.parquet")
TABLE_COLUMNS = ("image_name", "part_id", "prompt", "image_nsfw")
NSFW_BLURRED = 2.0  # the value of image_nsfw for an image that was blurred


def is_diffusiondb(path: Path) -> bool:
    """Whether `path` holds DiffusionDB's parts, with their JSON files or with its table."""
    if _part_files(path):
        return True
    return path.is_dir() and bool(_table_files(path)) and bool(_part_folders(path))


def _part_files(path: Path) -> list[Path]:
    """The part-*.json files, which lie beside a part's images or above them."""
    if path.is_file():
        return [path] if re.fullmatch(r"part-\d+\.json", path.name) else []
    patterns = ("part-*.json", "*/part-*.json", "*/*/part-*.json")
    return sorted(chain.from_iterable(path.glob(pattern) for pattern in patterns))


def _part_folders(path: Path) -> dict[int, Path]:
    """The folders part-* by their number."""
    folders = {}
    for folder in chain(path.glob("part-*"), path.glob("*/part-*")):
        number = folder.name.removeprefix("part-")
        if folder.is_dir() and number.isdigit():
            folders[int(number)] = folder
    return folders


def _table_files(path: Path) -> list[Path]:
    files = [path / name for name in TABLE_FILES]
    return [f for f in files if f.exists() and {"image_name", "part_id"} <= set(column_names(f))]


def read_diffusiondb(path: Path, text_column: str | None) -> pl.DataFrame:
    """The rows of the parts' JSON files, or without them of the table; blurred images rejected."""
    root = path if path.is_dir() else path.parent
    tables = []
    for file in _table_files(root):
        columns = column_names(file)
        wanted = [name for name in TABLE_COLUMNS if name in columns]
        tables.append(artifacts.load_table(file, wanted))

    # the parts know which images were delivered; the table lists all two or fourteen million
    parts = _part_files(path)
    rows = _rows_of_parts(parts) if parts else _rows_of_tables(tables, _part_folders(root))

    blurred = _blurred(tables)
    rows = [
        row._replace(reason=BLURRED) if Path(row.image).name in blurred else row for row in rows
    ]
    return from_rows(rows, root.name)


def _blurred(tables: list[pl.DataFrame]) -> set[str]:
    """The file names of the images that were blurred."""
    names: set[str] = set()
    for table in tables:
        if "image_nsfw" in table.columns:
            names.update(table.filter(pl.col("image_nsfw") == NSFW_BLURRED)["image_name"])
    return names


def _rows_of_parts(parts: list[Path]) -> list[Row]:
    rows = []
    for part in tqdm(parts, desc="reading parts", unit="part", disable=len(parts) < 20):
        try:
            entries = parse_object(decode(part.read_bytes()))
        except ValueError as error:
            rows.append(Row(part.stem, display_path(part), None, f"{NOT_JSON}: {error}"))
            continue

        # part-000001.json lies in part-000001/ or beside it; its images in images/ or beside it
        folder = part.with_suffix("") if part.with_suffix("").is_dir() else part.parent
        if (folder / "images").is_dir():
            folder = folder / "images"

        finder = Finder(folder)
        for name, entry in entries.items():
            prompt = entry.get("p") if isinstance(entry, dict) else None
            rows += _rows(finder, name, prompt)
    return rows


def _rows_of_tables(tables: list[pl.DataFrame], folders: dict[int, Path]) -> list[Row]:
    # a table row whose part is not on the disk is not a missing image
    finders = {number: Finder(folder) for number, folder in folders.items()}
    rows = []
    for table in tables:
        delivered = table.filter(pl.col("part_id").is_in(list(folders)))
        for entry in delivered.iter_rows(named=True):
            finder = finders[entry["part_id"]]
            rows += _rows(finder, entry["image_name"] or "", entry.get("prompt"))
    return rows


def _rows(finder: Finder, name: str, prompt: object) -> list[Row]:
    image, reason = finder.find(name)
    return rows_of(Path(image).stem, image, captions_of(prompt), reason)
