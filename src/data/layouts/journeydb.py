"""JourneyDB: JSON lines with img_path, prompt and Task2.Caption beside folders of images."""

import re
from itertools import chain
from pathlib import Path

import polars as pl

from src.data.layouts.names import column_of
from src.data.layouts.rows import first_folder, from_columns, ids_of, locate
from src.data.layouts.tables import column_names, load_table
from src.data.layouts.text import parse_object, to_text

# Midjourney's flags end a prompt: "a fox --ar 16:9 --v 4 --no text, frame"
# phones write a long dash for two
FLAG = re.compile(
    r"(?:--|—)(?:no\s+(?:(?!--|—).)*|"
    r"[a-zA-Z][a-zA-Z0-9]*(?:\s+(?:[\d.:]+%?|raw|cute|expressive|scenic)(?=\s|$|,))?)"
)
URL = re.compile(r"<?https?://\S+>?")


def without_flags(prompt: str) -> str:
    """A Midjourney prompt without its flags (`--ar 16:9`) and URLs."""
    words = FLAG.sub(" ", URL.sub(" ", prompt)).split()
    return " ".join(words).rstrip(" ,")


def is_journeydb(path: Path) -> bool:
    """Whether a JSON-lines table at `path` has img_path and Task2."""
    return any("Task2" in column_names(file) for file in _tables(path))


def _tables(path: Path) -> list[Path]:
    files = [path]
    if path.is_dir():
        files = sorted(chain(path.glob("*.jsonl"), path.glob("*/*.jsonl")))
    return [file for file in files if file.suffix == ".jsonl" and "img_path" in column_names(file)]


def read_journeydb(path: Path, text_column: str | None) -> pl.DataFrame:
    """The rows of every table; `text_column` may name a value in a column: `Task2.Caption`."""
    root = path if path.is_dir() else path.parent
    parts = []
    for file in _tables(path):
        table = load_table(file)
        outer, _, inner = (text_column or "prompt").partition(".")
        cells = table[column_of(table.columns, (), outer, file, "text")]
        prompts = [_inner(cell, inner) for cell in cells]

        names = table["img_path"].fill_null("").str.strip_prefix("./")
        folders = (file.parent, file.parent / "imgs", root / "imgs")
        folder = first_folder(folders, names) or file.parent
        part = from_columns(
            ids=ids_of(root.name, names),
            images=locate(folder, names),
            prompts=[None if prompt is None else without_flags(prompt) for prompt in prompts],
            source=root.name,
        )
        parts.append(part)
    return pl.concat(parts)


def _inner(cell: str | None, name: str) -> str | None:
    """The value `name` of the JSON object in a cell; without a name the cell itself."""
    if cell is None or not name:
        return cell
    return to_text(parse_object(cell).get(name))
