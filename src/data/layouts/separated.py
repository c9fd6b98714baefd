"""CSV and TSV records, with the quotes of scraped prompts: unclosed, escaped, or characters."""

import csv
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from src.data.layouts.names import is_image

UNCLOSED = "a quote is never closed"
SURPLUS = "more cells than the header has"
LONGEST = 1000  # lines of one record: a quote that stays open for longer was never closed

ESCAPED_QUOTE = re.compile(r'(?<!\\)\\"')

csv.field_size_limit(sys.maxsize)  # prompts of scraped sets can be longer than Python's limit


class Record(NamedTuple):
    """The cells of a record, and the reason why it cannot be used."""

    cells: list[str]
    reason: str | None = None


class _Lines:
    """Lines that can be taken back: `taken` are those of the record at hand."""

    def __init__(self, lines: Iterable[str]):
        self._lines = iter(lines)
        self._again: deque[str] = deque()
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        if len(self.taken) > LONGEST:
            raise csv.Error("a record of too many lines")
        return line

    def rewind(self, keep: int = 0) -> None:
        """Give back all lines of the record at hand but the first `keep`."""
        self._again.extendleft(reversed(self.taken[keep:]))
        self.taken.clear()


def records(lines: Iterable[str], delimiter: str) -> Iterator[Record]:
    """The records of a CSV or TSV, its header first; blank lines are left out.

    A quote that is never closed costs its own line alone: the lines after it are read as they
    stand. A backslash before a quote escapes it where doubled quotes alone make no sense. In a TSV
    a quote that does not enclose its cell is a character.
    """
    source = _Lines(line.replace("\0", "") for line in lines)
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    width = 0
    while True:
        source.taken.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            # text after a closing quote, or a quote that is still open at the end of the file
            record = _mended(source, delimiter, width)
        else:
            record = Record(cells)
            # the next quote of another row may close an open one without an error
            if _swallows(source.taken, delimiter, width):
                record = _mended(source, delimiter, width)
            elif width and any(cells[width:]):
                record = _with_surplus(source, cells, delimiter, width)

        width = width or len(record.cells)
        if record.cells or record.reason:
            yield record


def _swallows(lines: list[str], delimiter: str, width: int) -> bool:
    """Whether a record of several lines holds a line that is a whole record with an image."""
    for line in lines[1:]:
        cells = line.rstrip("\r\n").split(delimiter)
        if len(cells) >= max(width, 2) and any(is_image(cell.strip('"')) for cell in cells):
            return True
    return False


def _with_surplus(source: _Lines, cells: list[str], delimiter: str, width: int) -> Record:
    """A record with more cells than the header: which cell was split cannot be known.

    Unless escaped quotes did it.
    """
    lines = list(source.taken)
    record = _unescaped(source, delimiter, width)
    if record is not None:
        return record

    # the record keeps its lines
    source.rewind()
    for _ in lines:
        next(source)
    return Record(cells[:width], SURPLUS)


def _unescaped(source: _Lines, delimiter: str, width: int) -> Record | None:
    """The record with its backslashes before quotes read as escapes; None where it still fails.

    It may have taken other lines then than before.
    """
    if not any('\\"' in line for line in source.taken):
        return None

    source.rewind()
    doubled = (ESCAPED_QUOTE.sub('""', line) for line in source)
    try:
        cells = next(csv.reader(doubled, delimiter=delimiter, strict=True))
    except (csv.Error, StopIteration):
        cells = []

    has_every_cell = len(cells) == width if width else bool(cells)
    return Record(cells) if has_every_cell else None


def _mended(source: _Lines, delimiter: str, width: int) -> Record:
    """The record that begins where quotes make no sense; the lines after its own are given back."""
    record = _unescaped(source, delimiter, width)
    if record is not None:
        return record

    # only its first line is certain to belong to it
    line = source.taken[0].rstrip("\r\n")
    source.rewind(keep=1)

    # what of it can be told apart, cell by cell
    cells = _loose_cells(line, delimiter)
    opened = [n for n, cell in enumerate(cells) if _is_open(cell)]
    quotes_are_characters = delimiter == "\t"

    # in a CSV everything after the open quote may be part of its cell
    if opened and not quotes_are_characters:
        return Record(cells[: opened[0]], UNCLOSED)
    if width and any(cells[width:]):
        return Record(cells[:width], SURPLUS)
    return Record(cells)


def _is_open(cell: str) -> bool:
    """Whether a cell opens a quote that it does not close."""
    return cell.startswith('"') and ESCAPED_QUOTE.sub("", cell).count('"') % 2 == 1


def _loose_cells(line: str, delimiter: str) -> list[str]:
    """The cells of one line; a quote that is not closed at a cell's end is a character."""
    cells = []
    start = 0
    while start <= len(line):
        end = _end_of_quoted(line, start, delimiter)
        if end is not None:
            cells.append(line[start + 1 : end].replace('""', '"'))
            start = end + 2
            continue

        end = line.find(delimiter, start)
        end = len(line) if end < 0 else end
        cells.append(line[start:end])
        start = end + 1
    return cells


def _end_of_quoted(line: str, start: int, delimiter: str) -> int | None:
    """Where the quote that closes a cell stands; None where the cell opens or closes without."""
    if line[start : start + 1] != '"':
        return None

    end = start
    while (end := line.find('"', end + 1)) > 0:
        if line[end + 1 : end + 2] in ("", delimiter):
            return end
    return None
