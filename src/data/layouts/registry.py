"""The layouts by name: how each is recognized, and how it is read."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import polars as pl

from src.data.layouts.caption_files import is_files, read_files
from src.data.layouts.coco import is_coco, read_coco
from src.data.layouts.diffusiondb import is_diffusiondb, read_diffusiondb
from src.data.layouts.journeydb import is_journeydb, read_journeydb
from src.data.layouts.json_lists import is_json_list, read_json_list
from src.data.layouts.numbered import is_numbered, read_numbered
from src.data.layouts.parquet import is_parquet, read_parquet
from src.data.layouts.table_files import is_competition, is_table, read_competition, read_table
from src.data.layouts.webdataset import is_webdataset, read_webdataset
from src.paths import display_path


class Layout(NamedTuple):
    """`matches` looks at a path; `read` takes it and the text column, or None."""

    matches: Callable[[Path], bool]
    read: Callable[[Path, str | None], pl.DataFrame]


LAYOUTS = {  # in the order they are tried
    "competition": Layout(is_competition, read_competition),
    "diffusiondb": Layout(is_diffusiondb, read_diffusiondb),
    "coco": Layout(is_coco, read_coco),
    "journeydb": Layout(is_journeydb, read_journeydb),
    "webdataset": Layout(is_webdataset, read_webdataset),
    "parquet": Layout(is_parquet, read_parquet),
    "table": Layout(is_table, read_table),
    "numbered": Layout(is_numbered, read_numbered),
    "files": Layout(is_files, read_files),
    "json_list": Layout(is_json_list, read_json_list),
}


def recognize(path: Path) -> str:
    """The name of the layout at `path`.

    Raises ValueError that says what `path` holds and which layouts are known.
    """
    for name, layout in LAYOUTS.items():
        if layout.matches(path):
            return name

    content = sorted(entry.name for entry in path.iterdir())[:5] if path.is_dir() else [path.name]
    raise ValueError(
        f"train: {display_path(path)} has neither prompts.csv with images/ nor a table with an "
        f"image and a text column, nor another known layout ({', '.join(LAYOUTS)}); it holds "
        f"{content}. Name the layout, or name a table"
    )


def read(path: Path, layout: str | None, text_column: str | None) -> pl.DataFrame:
    """The rows at `path` as a table `id, image, prompt, source, reason`.

    Raises ValueError for an unknown layout.
    """
    name = layout or recognize(path)
    if name not in LAYOUTS:
        raise ValueError(
            f"train: layout {name!r} of {display_path(path)} is not one of {', '.join(LAYOUTS)}"
        )
    return LAYOUTS[name].read(path, text_column)
