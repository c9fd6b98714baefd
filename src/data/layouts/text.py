"""Text files and JSON values, whatever their encoding and however damaged."""

import codecs
import json
import re
from pathlib import Path
from typing import TextIO

# half of a surrogate pair: JSON can spell one out, no UTF-8 file can hold it
HALF_PAIR = re.compile("[\ud800-\udfff]")


def open_text(file: Path, newline: str | None = "") -> TextIO:
    """A text file: UTF-16 by its byte order mark, as spreadsheets write it, else UTF-8.

    Bytes that are neither come as U+FFFD.
    """
    with open(file, "rb") as stream:
        mark = stream.read(2)

    is_utf16 = mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    encoding = "utf-16" if is_utf16 else "utf-8-sig"
    return open(file, encoding=encoding, errors="replace", newline=newline)


def parse_json(text: str) -> object:
    """The value of a JSON text, with U+FFFD for half a surrogate pair.

    Raises ValueError for what is no JSON or nested too deep.
    """
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():
            whole = HALF_PAIR.sub("\ufffd", json.dumps(value, ensure_ascii=False))
            value = json.loads(whole)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value


def parse_object(text: str) -> dict:
    """The JSON object in a text; empty where there is none."""
    try:
        value = parse_json(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def to_text(value: object) -> str | None:
    """A JSON value as a table's cell: text and null as they are, all else as JSON."""
    if isinstance(value, str) or value is None:
        return value
    return json.dumps(value, ensure_ascii=False)
