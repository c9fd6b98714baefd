"""The rows that every layout is read into."""

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from src.data.layouts.text import Caption
from src.paths import as_text

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
SIDECAR = "a system's own file"  # ._1.jpg, .DS_Store, Thumbs.db
AMBIGUOUS = "several files fit its name"
SEVERAL_IMAGES = "several images in the sample"
SEVERAL_TEXTS = "several texts in the sample"


class Row(NamedTuple):
    """One image with its prompt; `name` is the id within its source, `image` a locator."""

    name: str
    image: str
    prompt: str | None
    reason: str | None = None


def rows_of(
    name: str, image: str, captions: Sequence[Caption], reason: str | None = None
) -> list[Row]:
    """A row for each caption of an image; `reason` goes before a caption's own."""
    return [Row(name, image, caption.text, reason or caption.reason) for caption in captions]


def from_rows(rows: Sequence[Row], source: str, prefix: str | None = None) -> pl.DataFrame:
    """A table `id, image, prompt, source, reason`; ids are `<prefix or source>/<name>`.

    With an empty prefix they are the names.
    """
    before = f"{source}/" if prefix is None else prefix
    return pl.DataFrame(
        {
            "id": [as_text(f"{before}{row.name}") for row in rows],
            "image": [row.image for row in rows],
            "prompt": [row.prompt for row in rows],
            "source": [source] * len(rows),
            "reason": [row.reason for row in rows],
        },
        schema=SCHEMA,
    )
