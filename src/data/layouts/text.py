"""Text files and JSON values, whatever their encoding and however damaged."""

import codecs
import gzip
import json
import re
from pathlib import Path
from typing import NamedTuple, TextIO

from src.data.layouts.names import GZIP

# UTF-32's mark begins with UTF-16's, so it is looked for first
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
NOT_TEXT = "its text is neither UTF-8, UTF-16 nor Windows-1252"
NESTED = "its prompt is"  # followed by what it is

# half of a surrogate pair: JSON can spell one out, no UTF-8 file can hold it
HALF_PAIR = re.compile("[\ud800-\udfff]")

# The bytes of Windows-1252, as they stand in a text that is otherwise ASCII: its letters stand
# alone, its rarer signs too, and quotes, dashes and spaces beside anything. \xc2 and \xc3 are left
# out: they begin the Latin letters of UTF-8, and alone they are the rest of a cut one.
LETTERS = rb"\x83\x8a\x8c\x8e\x9a\x9c\x9e\x9f\xc0\xc1\xc4-\xd6\xd8-\xf6\xf8-\xff"
RARE_SIGNS = rb"\xa1-\xaa\xac-\xba\xbc-\xbf\xd7\xf7"
COMMON_SIGNS = rb"\x80\x82\x84-\x89\x8b\x91-\x99\x9b\xa0\xab\xbb"
WESTERN = re.compile(
    rb"(?:[\x00-\x7f" + COMMON_SIGNS + rb"]"
    rb"|(?<![\x80-\xff])[" + RARE_SIGNS + rb"](?![\x80-\xff])"
    rb"|(?<![" + LETTERS + rb"])[" + LETTERS + rb"](?![" + LETTERS + RARE_SIGNS + rb"]))*"
)
UTF8_LETTER = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)
ASCII_LETTER = re.compile(rb"[A-Za-z]")


class Caption(NamedTuple):
    """A prompt, or the reason why there is none."""

    text: str | None
    reason: str | None = None


# --- bytes to text ---


def _mark_undecodable(error: UnicodeError) -> tuple[str, int]:
    """Put a half surrogate pair for each byte that is not text: no decoded text can hold one."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + byte) for byte in lost), error.end


codecs.register_error("mark_undecodable", _mark_undecodable)


def _encoding(beginning: bytes) -> str:
    for mark, encoding in MARKS.items():
        if beginning.startswith(mark):
            return encoding
    return "utf-8-sig"


def open_text(file: Path, newline: str | None = "") -> TextIO:
    """A text file, compressed where it ends in .gz: UTF-16 or 32 by its mark, else UTF-8.

    Bytes that are not text come as half surrogate pairs; `whole` makes text of them or says why
    not.
    """
    opener = gzip.open if file.suffix.lower() == GZIP else open
    with opener(file, "rb") as stream:
        try:
            beginning = stream.read(4)
        except gzip.BadGzipFile as error:  # an OSError, which does not name the file
            raise ValueError(str(error)) from None

    encoding = _encoding(beginning)
    return opener(file, "rt", encoding=encoding, errors="mark_undecodable", newline=newline)


def decode(content: bytes) -> str:
    """The text that bytes spell. Raises ValueError for bytes that are not text."""
    encoding = _encoding(content)
    return whole(content.decode(encoding, errors="mark_undecodable"))


def whole(text: str) -> str:
    """A text read by `open_text`, with its undecodable bytes read as Windows-1252.

    Raises ValueError where they are not that either: a text with some UTF-8 in it is damaged UTF-8,
    and Western letters stand alone between ASCII, where other alphabets stand in rows.
    """
    if text.isascii() or not HALF_PAIR.search(text):
        return text

    # back to the bytes of the file
    try:
        content = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # the rest of a cut UTF-16 or UTF-32 text
        raise ValueError(NOT_TEXT) from None

    is_western = WESTERN.fullmatch(content) and ASCII_LETTER.search(content)
    if UTF8_LETTER.search(content) or not is_western:
        raise ValueError(NOT_TEXT)
    return content.decode("cp1252")


def printable(text: str | bytes) -> str:
    """A name that polars can hold, with U+FFFD in place of bytes that are not text."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="mark_undecodable")
    try:
        return whole(text)
    except ValueError:
        return HALF_PAIR.sub("\ufffd", text)


# --- JSON ---


def parse_json(text: str) -> object:
    """The value of a JSON text, with U+FFFD for half a surrogate pair that it spells out.

    Undecodable bytes stay in its strings as `open_text` left them, so that they cost one value and
    not the line. Raises ValueError for what is not JSON or nested too deep, or holds both.
    """
    try:
        spells_out = "\\ud" in text.lower()
        value = json.loads(whole(text) if spells_out else text)

        # half a pair that JSON spells out cannot be stored as UTF-8
        if spells_out:
            repaired = HALF_PAIR.sub("\ufffd", json.dumps(value, ensure_ascii=False))
            value = json.loads(repaired)
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value


def parse_object(text: str) -> dict:
    """The JSON object in a text. Raises ValueError where it holds none."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}")
    return value


def to_text(value: object) -> str | None:
    """A JSON value as a name: text and null as they are, all else as JSON."""
    if isinstance(value, str) or value is None:
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def captions_of(value: object) -> list[Caption]:
    """The prompts in a cell or JSON value: one, or one for each entry of a list.

    An object, which has no one text, is refused.
    """
    if isinstance(value, list) and value:
        return [_caption_of(entry, "a list of ") for entry in value]
    if isinstance(value, list):
        return [Caption(None)]
    return [_caption_of(value, "")]


def _caption_of(value: object, within: str) -> Caption:
    if isinstance(value, dict):
        return Caption(None, f"{NESTED} {within or 'a '}JSON object{'s' if within else ''}")
    if isinstance(value, list):
        return Caption(None, f"{NESTED} {within}lists")
    if value is None:
        return Caption(None)
    try:
        if isinstance(value, bytes):
            return Caption(decode(value))
        return Caption(whole(to_text(value) or ""))
    except ValueError as error:
        return Caption(None, str(error))
