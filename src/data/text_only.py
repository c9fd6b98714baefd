"""Prompts without images: text files with one prompt a line, tables, and folders of them."""

import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from src.artifacts import readable
from src.data.layouts.names import (
    TABLES,
    TEXT_COLUMNS,
    column_of,
    is_sidecar,
    report_skipped,
    suffix_of,
)
from src.data.layouts.tables import captions_of_column, text_cells
from src.data.layouts.text import Caption, captions_of, open_text
from src.paths import as_text, display_path, resolve

SCHEMA = {"prompt": pl.String, "source": pl.String}
SUFFIXES = (".txt", *TABLES)
BATCH = 500_000  # prompts read at a time


def blank(prompts: pl.Series) -> pl.Series:
    """Whether each prompt shows nothing: null, or spaces, control and format characters alone."""
    return prompts.fill_null("").str.replace_all(r"[\s\p{Z}\p{Cc}\p{Cf}]+", "") == ""


def read_text(text: str | list | None, *, text_column: str | None = None) -> pl.DataFrame:
    """Text-only prompts as one table `prompt, source`; see `text_batches`."""
    batches = list(text_batches(text, text_column=text_column))
    return pl.concat(batches) if batches else pl.DataFrame(schema=SCHEMA)


def text_batches(
    text: str | list | None, *, text_column: str | None = None, rows: int = BATCH
) -> Iterator[pl.DataFrame]:
    """The prompts of text-only sources in tables `prompt, source` of about `rows` rows at most.

    A source is a .txt file with one prompt a line, a table with a text column, or a folder of them.
    Blank prompts are left out; broken rows too, and they are counted in a printed line. Raises
    FileNotFoundError naming a source that is not there, ValueError naming a table without a text
    column.
    """
    entries = [text] if isinstance(text, str) else text or []
    for entry in entries:
        for file in text_files(resolve(entry)):
            reasons: Counter[str] = Counter()
            for captions in _batches(file, text_column, rows):
                reasons.update(caption.reason for caption in captions if caption.reason)

                texts = [caption.text for caption in captions if caption.text is not None]
                prompts = pl.Series("prompt", texts, dtype=pl.String)
                prompts = prompts.str.replace_all("\0", "", literal=True)
                prompts = prompts.filter(~blank(prompts))

                source = pl.lit(as_text(_stem(file))).alias("source")
                yield pl.DataFrame({"prompt": prompts}).with_columns(source)
            if reasons:
                print(f"{display_path(file)}: {reasons.total()} rows left out: {dict(reasons)}")


def text_files(path: Path) -> list[Path]:
    """The text files and tables at `path`: itself, or those in the folder and below it, sorted.

    Links are followed. Other files there are named in a printed line. Raises FileNotFoundError
    where `path` does not exist.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"text: {display_path(path)} does not exist; "
            "set common.text_only to a file, a folder or null"
        )
    if not path.is_dir():
        return [path]

    # what is neither read nor a folder is named at the end
    files: list[Path] = []
    others: list[str] = []
    seen_folders: set[str] = set()
    for folder, subfolders, names in os.walk(path, followlinks=True):
        # a link to a folder above would be followed forever
        real = os.path.realpath(folder)
        if real in seen_folders:
            subfolders.clear()
            continue
        seen_folders.add(real)

        hidden = [name for name in subfolders if is_sidecar(name)]
        subfolders[:] = sorted(set(subfolders) - set(hidden))
        others += hidden
        for name in names:
            file = Path(folder, name)
            is_source = suffix_of(name) in SUFFIXES and not is_sidecar(name) and file.is_file()
            if is_source:
                files.append(file)
            else:
                others.append(name)
    report_skipped(path, sorted(map(as_text, others)), "files are not text")
    return sorted(files)


def _stem(file: Path) -> str:
    """`a` of `a.csv` and of `a.csv.gz`."""
    return Path(file.stem).stem if file.suffix.lower() == ".gz" else file.stem


def _batches(file: Path, text_column: str | None, rows: int) -> Iterator[list[Caption]]:
    """The prompts of a file in lists of about `rows`."""
    suffix = suffix_of(file)
    if suffix == ".parquet":
        yield from _parquet_batches(file, text_column, rows)
        return

    prompts = _lines(file) if suffix == ".txt" else text_cells(file, text_column)
    while batch := list(islice(prompts, rows)):
        yield batch


def _lines(file: Path) -> Iterator[Caption]:
    with readable(file), open_text(file, newline="\n") as stream:
        for line in stream:
            yield captions_of(line.rstrip("\r\n"))[0]


def _parquet_batches(file: Path, text_column: str | None, rows: int) -> Iterator[list[Caption]]:
    with readable(file):
        table = pq.ParquetFile(file)
    column = column_of(table.schema_arrow.names, TEXT_COLUMNS, text_column, file, "text")
    with readable(file):
        for batch in table.iter_batches(batch_size=rows, columns=[column]):
            cells = pl.DataFrame(pl.from_arrow(batch))[column]
            captions = captions_of_column(cells, file)
            yield [caption for captions_of_row in captions for caption in captions_of_row]
