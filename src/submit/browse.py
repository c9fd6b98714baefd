"""`./run_all.sh browse FILE.parquet`: a result as a local page, to search and to look at.

The page is served on the loopback address alone and loads nothing from another host. An image is
asked for by its row, never by a path.
"""

import argparse
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode

import numpy as np
import polars as pl
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from src.errors import UserError
from src.paths import display_path
from src.submit import command_line, pages
from src.submit.index import Index
from src.submit.search import one_line

Number = TypeVar("Number", int, float)

HOST = "127.0.0.1"
HOSTS = [HOST, "localhost"]  # another Host header is another site asking through the browser
PAGE_SIZE = 60  # images on a page
MAX_RESULTS = 600  # of a query, over all its pages
THUMBNAILS = 2000  # kept in memory, some 10 kB each
SORTS = ("best first", "most confident", "least confident", "name")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class View:
    """What a page shows: a query or the images near a row, or all; in which order; which page."""

    query: str = ""
    near: int | None = None
    min_confidence: float | None = None
    sort: str = SORTS[0]
    page: int = 1

    @property
    def address(self) -> str:
        """The page's own address."""
        values = {"q": self.query, "near": self.near, "min_confidence": self.min_confidence}
        given = {name: value for name, value in values.items() if value not in ("", None)}
        return "/?" + urlencode({**given, "sort": self.sort, "page": self.page})


def read_view(values: Mapping[str, str], count: int) -> View:
    """The view that an address asks for. UserError names the value that makes no sense."""
    query = values.get("q", "").strip()
    near = _number(values, "near", int)
    if near is not None and not 0 <= near < count:
        raise UserError(f"near: there is no image {near}; images are numbered 0 to {count - 1}")
    if query:
        near = None  # a text that was typed replaces the image that was clicked

    confidence = _number(values, "min_confidence", float)
    if confidence is not None and not -1 <= confidence <= 1:
        raise UserError(f"min_confidence: {confidence} is not within -1..1")
    sort = values.get("sort", SORTS[0])
    if sort not in SORTS:
        raise UserError(f"sort: {sort[:40]!r} is not one of {', '.join(SORTS)}")
    page = _number(values, "page", int) or 1
    return View(query, near, confidence, sort, max(1, page))


def _number(values: Mapping[str, str], name: str, kind: Callable[[str], Number]) -> Number | None:
    text = values.get(name, "").strip()
    if not text:
        return None
    try:
        return kind(text[:40])
    except ValueError:
        raise UserError(f"{name}: {text[:40]!r} is not a number") from None


# --- what a view shows ---


class Browser:
    """An index and the pages that show it."""

    def __init__(self, index: Index):
        self.index = index
        self.template = pages.template("browse.html.jinja")
        self.thumbnail = lru_cache(THUMBNAILS)(self._thumbnail)
        self._encode = lru_cache(256)(index.encode)
        self._decoding = threading.Semaphore(4)  # images in memory at a time
        self._orders: dict[str, np.ndarray] = {}

    def page(self, view: View) -> str:
        """The HTML of a view."""
        # a page beyond the last one is the last one: a filter may have shortened the list
        rows, cosine, note = self._rows(view)
        last = max(1, -(-len(rows) // PAGE_SIZE))
        view = replace(view, page=min(view.page, last))
        part = slice((view.page - 1) * PAGE_SIZE, view.page * PAGE_SIZE)
        table = self.index.rows(rows[part], None if cosine is None else cosine[part])

        # an image is asked for by its row, so that no path of a stranger's reaches the disk
        shown = [f"/image/{row}" if self._has_image(row) else None for row in table["row"]]
        return self._render(
            view, note=note, cards=pages.cards(self.index, table, shown), pages=last
        )

    def problem(self, message: str, view: View | None = None) -> str:
        """A page that says what is wrong."""
        view = view or View()
        return self._render(view, problem=one_line(message), note="", cards=[], pages=1)

    def _render(self, view: View, *, pages: int, **facts: object) -> str:
        following = replace(view, page=view.page + 1).address if view.page < pages else None
        previous = replace(view, page=view.page - 1).address if view.page > 1 else None
        facts = {"problem": "", **facts}
        return self.template.render(
            view=view, sorts=SORTS, pages=pages, next=following, previous=previous, **facts
        )

    def _rows(self, view: View) -> tuple[np.ndarray, np.ndarray | None, str]:
        """The rows of a view in order, their similarity to the query, and a line about them."""
        if view.query:
            vector = self._encode(view.query)
            about = f"nearest to “{view.query}”"
        elif view.near is not None:
            vector = self.index.vectors(np.array([view.near]))[0]
            about = f"nearest to {self.index.table['id'][view.near]}"
        else:
            return self._all_rows(view)

        nearest = self.index.by_vector(vector, MAX_RESULTS, min_confidence=view.min_confidence)
        nearest = _sorted(nearest, view.sort)
        note = _note(len(nearest), f"images {about}", view)
        return nearest["row"].to_numpy(), nearest["similarity"].to_numpy(), note

    def _all_rows(self, view: View) -> tuple[np.ndarray, None, str]:
        """Every row that is confident enough, in the view's order."""
        rows = self._order(view.sort)
        if view.min_confidence is not None:
            allowed = (self.index.table["confidence"] >= view.min_confidence).fill_null(False)
            rows = rows[allowed.to_numpy()[rows]]
        return rows, None, _note(len(rows), f"of {len(self.index):,} images", view)

    def _order(self, sort: str) -> np.ndarray:
        """All rows in an order, made once."""
        if sort not in self._orders:
            table = self.index.table.with_row_index("row")
            self._orders[sort] = _sorted(table, sort)["row"].to_numpy().astype(np.int64)
        return self._orders[sort]

    def _has_image(self, row: int) -> bool:
        return self.index.image_path(row) is not None

    def _thumbnail(self, row: int) -> bytes | None:
        """The thumbnail of a row, None where it has no image that can be decoded."""
        file = self.index.image_path(row)
        if file is None:
            return None
        try:
            with self._decoding:
                return pages.thumbnail(file)
        except Exception:  # decoders raise anything on a broken image
            return None


def _note(count: int, what: str, view: View) -> str:
    """A line above the images: how many there are, and of what."""
    if count == 0 and view.min_confidence is not None:
        return f"no image has a confidence of {view.min_confidence} or more"
    return f"{count:,} {what}"


def _sorted(table: pl.DataFrame, sort: str) -> pl.DataFrame:
    """Rows in an order of `SORTS`, ties as they stand. Best first is nearest first for a query,
    most confident first for all images.
    """
    if sort == "best first" and "similarity" in table.columns:
        return table
    column = "id" if sort == "name" else "confidence"
    descending = sort in ("best first", "most confident")
    return table.sort(column, descending=descending, nulls_last=True, maintain_order=True)


# --- the server ---


def application(index: Index) -> Starlette:
    """The pages of an index as a web application."""
    browser = Browser(index)
    routes = [
        Route("/", partial(_home, browser)),
        Route("/image/{row:int}", partial(_image, browser)),
        Route("/style.css", _style),
        Route("/favicon.ico", _no_icon),
    ]
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    return Starlette(routes=routes, middleware=[guard])


def _home(browser: Browser, request: Request) -> Response:
    try:
        view = read_view(request.query_params, len(browser.index))
        return HTMLResponse(browser.page(view), headers=HEADERS)
    except UserError as problem:
        return HTMLResponse(browser.problem(str(problem)), status_code=400, headers=HEADERS)


def _image(browser: Browser, request: Request) -> Response:
    row = request.path_params["row"]
    content = browser.thumbnail(row) if row < len(browser.index) else None
    if content is None:
        return Response("no image", status_code=404, headers=HEADERS)
    caching = {"Cache-Control": "private, max-age=3600"}
    return Response(content, media_type="image/jpeg", headers={**HEADERS, **caching})


def _style(request: Request) -> Response:
    return Response(pages.style(), media_type="text/css", headers=HEADERS)


def _no_icon(request: Request) -> Response:
    """Every browser asks for an icon; an empty answer keeps errors out of its console."""
    return Response(status_code=204, headers=HEADERS)


def bound_socket(port: int) -> socket.socket:
    """A socket on the loopback address. UserError when the port is taken."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    # a server that has just been stopped would otherwise hold the port for a minute
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((HOST, port))
        bound.listen()
    except OSError as error:
        bound.close()
        raise UserError(
            f"port {port} cannot be used ({error.strerror}): choose another with --port, "
            "or 0 for any that is free"
        ) from error
    return bound


def serve(index: Index, port: int, announce: Callable[[str], None] = print) -> None:
    """Serve an index on 127.0.0.1 until interrupted; `announce` gets the address."""
    app = application(index)
    with bound_socket(port) as listening:
        announce(f"http://{HOST}:{listening.getsockname()[1]}/  (stop with Ctrl+C)")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        server.run(sockets=[listening])


# --- the command line ---


def main(argv: list[str] | None = None) -> int:
    """Entry point: 0 stopped, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="./run_all.sh browse",
        description="A result of predict as a page on this machine: search by text, thumbnails, "
        "nearest prompts, confidence, more like this.",
    )
    command_line.add_result(parser)
    parser.add_argument(
        "--port", type=int, default=8765, metavar="N", help="0 for any (default: %(default)s)"
    )
    command_line.add_engine(parser)
    options = parser.parse_args(argv)
    if not 0 <= options.port <= 65535:
        parser.error(f"--port must be within 0..65535, got {options.port}")

    try:
        return command_line.exit_status(_browse, options, tell=one_line)
    except KeyboardInterrupt:
        return 0


def _browse(options: argparse.Namespace) -> None:
    # whatever can fail does so before the address is printed
    bound_socket(options.port).close()  # refused before the vectors are opened
    index = Index(options.file, images=options.images, engine=options.engine)
    if index.images is None:
        print("the folder of the images does not exist: name it with --images to see them")
    print(f"{display_path(Path(options.file).absolute())}: {len(index):,} images", flush=True)
    index.search("a first query", 1)  # loads the sentence encoder and the search
    serve(index, options.port, partial(print, flush=True))


if __name__ == "__main__":
    sys.exit(main())
