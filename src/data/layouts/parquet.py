"""Parquet files that hold the images themselves, as the Hugging Face hub stores them."""

from pathlib import Path

import polars as pl

from src import artifacts
from src.data import locators
from src.data.layouts.names import TEXT_COLUMNS, column_of
from src.data.layouts.rows import from_columns
from src.data.layouts.tables import column_names, schema_of, texts_of
from src.paths import display_path


def is_parquet(path: Path) -> bool:
    """Whether the first Parquet file at `path` holds images."""
    return any(_image_column(file) for file in _parquet_files(path)[:1])


def _parquet_files(path: Path) -> list[Path]:
    """The Parquet files at `path`, in data/ or one folder deeper; those of `train` where named."""
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []

    for pattern in ("*.parquet", "data/*.parquet", "*/*.parquet"):
        files = sorted(path.glob(pattern))
        if files:
            return [file for file in files if file.name.startswith("train")] or files
    return []


def _image_column(file: Path) -> str | None:
    """The column that holds encoded images: bytes, or a struct with `bytes`."""
    for name, dtype in schema_of(file).items():
        if dtype == pl.Binary:
            return name
        if isinstance(dtype, pl.Struct) and "bytes" in {field.name for field in dtype.fields}:
            return name
    return None


def read_parquet(path: Path, text_column: str | None) -> pl.DataFrame:
    """A row for each cell of the image columns; ids are `<source>/<file>/<row>`."""
    source = path.name if path.is_dir() else path.stem
    parts = []
    for file in _parquet_files(path):
        columns = column_names(file)
        image_column = _image_column(file)
        if image_column is None:
            raise ValueError(
                f"{display_path(file)}: no column of encoded images among {sorted(columns)}"
            )
        prompt_column = column_of(columns, TEXT_COLUMNS, text_column, file, "text")
        prompts = texts_of(artifacts.load_table(file, [prompt_column])[prompt_column], file)

        numbers = range(len(prompts))
        part = from_columns(
            ids=[f"{source}/{file.stem}/{number}" for number in numbers],
            images=[locators.in_table(file, image_column, number) for number in numbers],
            prompts=prompts,
            source=source,
        )
        parts.append(part)

    if not parts:
        raise ValueError(f"{display_path(path)}: no .parquet file in it")
    return pl.concat(parts)
