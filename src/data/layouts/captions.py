"""What img2dataset and WebDataset store beside an image: captions, and what was not downloaded."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from src.data.layouts.names import TEXT_COLUMNS
from src.data.layouts.rows import SEVERAL_TEXTS, Row
from src.data.layouts.tables import column_names, delivery_reasons, load_table
from src.data.layouts.text import Caption, captions_of, decode, parse_object
from src.paths import display_path

TEXT_SUFFIXES = (".txt", ".text", ".caption")
CAPTION_SUFFIXES = (*TEXT_SUFFIXES, ".json")
NOT_JSON = "its .json is not a JSON object"


def captions_in(
    members: Mapping[str, Callable[[], bytes]], text_column: str | None
) -> list[Caption]:
    """The prompts of a sample from its text file, else from its .json; at least one entry.

    `members` gives, by ending, a function that reads the file's bytes. Of several texts the one
    with the plain ending counts; without it they are refused.
    """
    # a named column is one of the JSON file
    caption = _text_file(members) if text_column is None else None
    if caption is not None:
        return [caption]

    member = _member(members, ".json")
    if member is None:
        return [Caption(None)]
    try:
        values = parse_object(decode(members[member]()))
    except ValueError:
        return [Caption(None, NOT_JSON)]

    # the first of the usual names that is there
    for name in [text_column] if text_column else TEXT_COLUMNS:
        if name in values:
            return captions_of(values[name])
    return [Caption(None)]


def _text_file(members: Mapping[str, Callable[[], bytes]]) -> Caption | None:
    """The prompt of a sample's text file; None where it has none."""
    for suffix in TEXT_SUFFIXES:
        if member := _member(members, suffix):
            return _text(members[member])

    several = sum(name.endswith(TEXT_SUFFIXES) for name in members) > 1
    return Caption(None, SEVERAL_TEXTS) if several else None


def _member(members: Mapping[str, Callable[[], bytes]], suffix: str) -> str | None:
    """The member with exactly this ending, else the only one that ends with it."""
    if suffix in members:
        return suffix
    names = [name for name in members if name.endswith(suffix)]
    return names[0] if len(names) == 1 else None


def _text(read: Callable[[], bytes]) -> Caption:
    try:
        return Caption(decode(read()))
    except ValueError as error:
        return Caption(None, str(error))


def not_delivered(file: Path, label: str) -> Iterator[Row]:
    """The rows that img2dataset's own table, beside a shard or a folder, could not download."""
    if not file.exists() or not {"key", "status"} <= set(column_names(file)):
        return

    # what was downloaded is in the shard itself; here only the others are of interest
    table = load_table(file)
    column = next((name for name in TEXT_COLUMNS if name in table.columns), None)
    captions = table.captions(column) if column else [[Caption(None)]] * len(table)
    reasons = delivery_reasons(table.names("status"))
    for key, prompts, reason in zip(table.names("key"), captions, reasons, strict=True):
        if reason:
            yield Row(f"{label}/{key}", display_path(file), prompts[0].text, reason)
