"""HTML of search results: names and prompts are data, so every template escapes what it shows."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import jinja2
import polars as pl

from src import web_page
from src.data import images
from src.submit.index import Index

TEMPLATES = Path(__file__).with_name("templates")
THUMBNAIL = 320  # pixels on the longer side
QUALITY = 80  # of a thumbnail's JPEG


@dataclass(frozen=True)
class Card:
    """One image on a page; `source` is None where it cannot be shown."""

    row: int
    id: str
    source: str | None
    similarity: float | None
    confidence: float | None
    prompts: list[str]


def template(name: str) -> jinja2.Template:
    """A template of the result pages."""
    return web_page.environment(TEMPLATES).get_template(name)


def style() -> str:
    """The style sheet of the result pages."""
    return web_page.style(TEMPLATES / "style.css")


def thumbnail(file: Path) -> bytes:
    """A small JPEG of an image; raises what `images.decode` raises."""
    image = images.decode(str(file))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=QUALITY)
    return stream.getvalue()


def cards(index: Index, results: pl.DataFrame, sources: list[str | None]) -> list[Card]:
    """The rows of a result, each with its image's address and all of its nearest prompts."""
    prompts = index.prompts(results["row"].to_numpy())
    columns = results.select("row", "id", "similarity", "confidence").rows()
    return [
        Card(row, identifier, source, similarity, confidence, texts)
        for (row, identifier, similarity, confidence), source, texts in zip(
            columns, sources, prompts, strict=True
        )
    ]


def result_page(index: Index, results: pl.DataFrame, title: str) -> str:
    """One self-contained page: the thumbnails are in it, and it loads nothing from a network."""
    sources = [_data_address(index, row) for row in results["row"]]
    page = template("results.html.jinja")
    return page.render(title=title, style=style(), cards=cards(index, results, sources))


def _data_address(index: Index, row: int) -> str | None:
    file = index.image_path(row)
    if file is None:
        return None
    try:
        content = thumbnail(file)
    except Exception:  # decoders raise anything on a broken image; the page shows its name
        return None
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()
