"""A JSON file that holds a list of objects with an image and a text, as LAVIS and BLIP have them.

The conversations of LLaVA are refused: which of their sentences is the prompt, only the user knows.
"""

import json
import shlex
from pathlib import Path

import polars as pl

from src import artifacts
from src.data.layouts.names import files_of
from src.data.layouts.table_files import rows_of_table
from src.data.layouts.tables import Table
from src.data.layouts.text import decode, parse_json
from src.paths import display_path

BEGINNING = 64  # bytes in which the bracket stands, behind a mark and blanks
CONVERSATIONS = "conversations"
NOT_OBJECT = "its entry is not a JSON object"
CONVERT = (
    'import json; [print(json.dumps({{"image": row["image"], '
    '"text": row["conversations"][1]["value"]}})) for row in json.load(open({file}, "rb"))]'
)


def is_json_list(path: Path) -> bool:
    """Whether `path` is or holds .json files that begin as a list does."""
    return bool(_lists(path))


def _lists(path: Path) -> list[Path]:
    return [file for file in files_of(path, (".json",)) if _begins_as_list(file)]


def _begins_as_list(file: Path) -> bool:
    with open(file, "rb") as stream:
        beginning = stream.read(BEGINNING)
    # UTF-16 has a zero beside each of these letters
    plain = beginning.lstrip(b"\xef\xbb\xbf\xff\xfe\0").replace(b"\0", b"").lstrip()
    return plain.startswith(b"[")


def read_json_list(path: Path, text_column: str | None) -> pl.DataFrame:
    """The rows of every list at `path`, with paths relative to the file."""
    files = _lists(path) or [path]
    return pl.concat([rows_of_table(_table(file), text_column, file.stem) for file in files])


def _table(file: Path) -> Table:
    """The entries of a list as rows. Raises ValueError naming a file that is no such list."""
    with artifacts.readable(file):
        entries = parse_json(decode(file.read_bytes()))
        if not isinstance(entries, list) or not any(isinstance(e, dict) for e in entries):
            raise ValueError("it is not a list of JSON objects")

    rows = [entry if isinstance(entry, dict) else {} for entry in entries]
    if any(CONVERSATIONS in row for row in rows):
        code = CONVERT.format(file=json.dumps(file.name))
        raise ValueError(
            f"{display_path(file)} holds LLaVA's conversations, questions and answers about an "
            "image, and not prompts. Where the first answer describes the image, write a table of "
            f"them beside it: python -c {shlex.quote(code)} > metadata.jsonl"
        )
    return Table(file, rows, [None if row else NOT_OBJECT for row in rows])
