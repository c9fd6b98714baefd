"""The rows that every layout is read into, and where their images lie."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import polars as pl

from src.paths import as_text, display_path, resolve

SCHEMA = {
    "id": pl.String,
    "image": pl.String,
    "prompt": pl.String,
    "source": pl.String,
    "reason": pl.String,
}

# reasons that a layout itself gives
BLURRED = "blurred by the publisher"  # DiffusionDB's image_nsfw == 2.0
NO_IMAGE = "no image in the sample"
NOT_DELIVERED = "not downloaded"  # img2dataset's status is not "success"


class Row(NamedTuple):
    """One image with its prompt; `name` is the id within its source, `image` a locator."""

    name: str
    image: str
    prompt: str | None
    reason: str | None = None


def from_columns(
    *,
    ids: Sequence[str] | pl.Series,
    images: Sequence[str],
    prompts: Sequence[str | None] | pl.Series,
    source: str,
    reasons: Sequence[str | None] | None = None,
) -> pl.DataFrame:
    """A table `id, image, prompt, source, reason`; no reason anywhere without `reasons`."""
    if reasons is None:
        reasons = [None] * len(ids)
    columns = {"id": ids, "image": images, "prompt": prompts}
    frame = pl.DataFrame(columns, schema={name: SCHEMA[name] for name in columns})
    return frame.with_columns(
        pl.lit(source).alias("source"),
        pl.Series("reason", reasons, dtype=pl.String),
    )


def from_rows(rows: Sequence[Row], source: str) -> pl.DataFrame:
    """A table `id, image, prompt, source, reason`; ids are `<source>/<name>`."""
    return from_columns(
        ids=[as_text(f"{source}/{row.name}") for row in rows],
        images=[row.image for row in rows],
        prompts=[row.prompt for row in rows],
        source=source,
        reasons=[row.reason for row in rows],
    )


def ids_of(source: str, names: pl.Series) -> pl.Series:
    """The ids of images called `names`: `<source>/<name without its ending>`."""
    stems = names.str.replace(r"\.[A-Za-z0-9]+$", "")
    return pl.select(pl.lit(source + "/") + stems).to_series()


def locate(folder: Path, names: Iterable[str]) -> list[str]:
    """The locator of each named image in `folder`.

    A path of another machine is taken at the longest tail of it that exists in `folder`.
    """
    images = []
    cut = 0
    for name in names:
        parts = PureWindowsPath(name).parts  # splits at / and \ alike
        is_absolute = bool(parts) and (PureWindowsPath(name).root != "" or ":" in parts[0])
        if not is_absolute:
            images.append(display_path(folder / name))
            continue
        if os.path.isfile(resolve(name)):
            images.append(display_path(Path(name)))
            continue

        # the cut that fitted the row before usually fits this one too
        cuts = dict.fromkeys((cut, *range(1, len(parts))))
        cut = 1
        for candidate in cuts:
            start = max(candidate, 1)
            if os.path.isfile(folder.joinpath(*parts[start:])):
                cut = start
                break
        images.append(display_path(folder.joinpath(*parts[cut:])))
    return images


def first_folder(folders: Iterable[Path], names: Sequence[str]) -> Path | None:
    """The first of `folders` that holds one of the first 50 `names`; None where none does."""
    for folder in folders:
        if any(os.path.isfile(folder / name) for name in names[:50]):
            return folder
    return None
