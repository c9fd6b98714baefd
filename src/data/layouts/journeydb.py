"""JourneyDB: JSON lines with img_path, prompt and Task2.Caption beside folders of images."""

import re
from pathlib import Path

import polars as pl

from src.data.layouts.lookup import Finder, first_folder, ids_of
from src.data.layouts.names import column_of, files_of
from src.data.layouts.rows import from_rows, rows_of
from src.data.layouts.tables import column_names, load_table
from src.data.layouts.text import Caption, captions_of, parse_object

URL = re.compile(r"<?https?://\S+>?")

# Midjourney's parameters end a prompt: "a fox --ar 16:9 --v 4 --no text, frame".
# Each with what may follow it: nothing, a number or ratio, a code or link, a word, or any text.
NUMBER = r"[\d.:/x]+%?"
VALUES = {
    r"": "tile|hd|test|testp|mp|creative|upbeta|upanime|uplight|video|fast|relax|turbo|raw|draft|"
    "beta|vibe|vibefast|newclip|nostretch|fun|stealth|public|loop|niji",
    NUMBER: "ar|aspect|v|version|q|quality|s|stylize|c|chaos|seed|sameseed|stop|iw|niji|w|width|h|"
    "height|weird|repeat|r|sw|cw|ow|exp|sv|bs",
    r"[\w.:/-]+": "style|sref|cref|oref|p|profile|personalize|motion",
}
FLAGS = "|".join(
    rf"(?:{names})(?:\s+{value})?" if value else rf"(?:{names})" for value, names in VALUES.items()
)
# phones write a long dash for two
DASHES = r"(?:^|(?<=\s))(?:--|—|–)"
LAST_FLAG = re.compile(rf"{DASHES}(?:{FLAGS})[\s,.;]*$", re.IGNORECASE)
LAST_NO = re.compile(rf"{DASHES}no(?:\s+(?:(?!\s(?:--|—|–)\w).)*)?$", re.IGNORECASE | re.DOTALL)


def without_flags(prompt: str) -> str:
    """A Midjourney prompt without URLs, and without the flags that end it (`--ar 16:9`).

    A dash inside a word or a sentence, as in `half cat--half dog`, stays.
    """
    # one flag at a time from the end: what a flag may be followed by depends on the flag
    text = " ".join(URL.sub(" ", prompt).split())
    while True:
        shorter = LAST_FLAG.sub("", text)
        if shorter == text:
            shorter = LAST_NO.sub("", text)
        if shorter == text:
            return text.rstrip(" ,")
        text = shorter.rstrip()


def is_journeydb(path: Path) -> bool:
    """Whether a JSON-lines table at `path` has img_path and Task2."""
    return any("Task2" in column_names(file) for file in _tables(path))


def _tables(path: Path) -> list[Path]:
    files = files_of(path, (".jsonl",), depth=2)
    return [file for file in files if "img_path" in column_names(file)]


def read_journeydb(path: Path, text_column: str | None) -> pl.DataFrame:
    """The rows of every table; `text_column` may name a value in a column: `Task2.Caption`."""
    root = path if path.is_dir() else path.parent
    parts = []
    for file in _tables(path):
        table = load_table(file)
        outer, _, inner = (text_column or "prompt").partition(".")
        cells = table.values(column_of(table.columns, (), outer, file, "text"))

        # the images lie beside the table, or where the original archives put them
        names = [name.removeprefix("./") for name in table.names("img_path")]
        folders = (file.parent, file.parent / "imgs", root / "imgs")
        finder = Finder(first_folder(folders, names) or file.parent)
        rows = []
        for name, identifier, cell, reason in zip(
            names, ids_of(names), cells, table.reasons, strict=True
        ):
            image, lost = finder.find(name)
            captions = [_clean(caption) for caption in captions_of(_inner(cell, inner))]
            rows += rows_of(identifier, image, captions, reason or lost)
        parts.append(from_rows(rows, root.name))
    return pl.concat(parts)


def _clean(caption: Caption) -> Caption:
    if caption.text is None:
        return caption
    return Caption(without_flags(caption.text), caption.reason)


def _inner(cell: object, name: str) -> object:
    """The value `name` of the object in a cell, or of its JSON text; without a name the cell."""
    if cell is None or not name:
        return cell
    if isinstance(cell, dict):
        return cell.get(name)
    try:
        return parse_object(str(cell)).get(name)
    except ValueError:
        return None
