"""`./run_all.sh search FILE.parquet "a text"`: the images of a result nearest to a query."""

import argparse
import os
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import polars as pl

from src import artifacts
from src.errors import UserError
from src.paths import display_path
from src.submit import command_line
from src.submit.index import Duplicates, Index

ID_WIDTH = 40  # characters of an id in the table
SHOWN_GROUPS = 20  # groups of duplicates that are printed


def query_vector(index: Index, options: argparse.Namespace) -> tuple[np.ndarray, str]:
    """The unit vector of what is searched for, and a title for it."""
    if options.text is not None:
        return index.encode(options.text), options.text
    if options.near is not None:
        row = index.row(options.near)
        return index.vectors(np.array([row]))[0], f"near {options.near}"
    image = Path(options.image).absolute()
    if not image.is_file():
        raise UserError(f"--image: {display_path(image)} is not a file")

    from src.submit.predictor import Predictor  # only this query needs the models

    predictor = Predictor(options.output, device=options.device)
    if predictor.sentence_model != index.sentence_model:
        raise UserError(
            f"{options.output} predicts embeddings of {predictor.sentence_model!r}, "
            f"{display_path(index.file)} holds those of {index.sentence_model!r}"
        )
    try:
        prediction = predictor([image])
    except (OSError, ValueError) as error:
        raise UserError(f"--image: {display_path(image)} cannot be read ({error})") from error
    return prediction.embedding[0], f"like {image.name}"


def printable(text: str | None, width: int) -> str:
    """`text` on one line of a terminal: no control character of a stranger's gets through."""
    if text is None:
        return ""
    clean = "".join(" " if unicodedata.category(c)[0] == "C" else c for c in text[: 4 * width])
    return clean if len(clean) <= width else clean[: width - 1] + "…"


def one_line(message: str) -> str:
    """A message that may name what a stranger's file holds."""
    return printable(message, 1000)


def print_results(results: pl.DataFrame) -> None:
    """A table: rank, similarity, confidence, id, nearest prompt."""
    columns = shutil.get_terminal_size((120, 24)).columns
    widest = max((len(identifier or "") for identifier in results["id"]), default=2)
    id_width = max(2, min(ID_WIDTH, widest))
    prompt_width = max(20, columns - id_width - 28)

    print(f"rank  similarity  confidence  {'id':{id_width}}  nearest prompt")
    for row in results.iter_rows(named=True):
        similarity = "" if row["similarity"] is None else f"{row['similarity']:.3f}"
        confidence = "" if row["confidence"] is None else f"{row['confidence']:.3f}"
        identifier = printable(row["id"], id_width)
        prompt = printable(row["prompt"], prompt_width)
        print(
            f"{row['rank']:4}  {similarity:>10}  {confidence:>10}  "
            f"{identifier:{id_width}}  {prompt}"
        )


def print_duplicates(index: Index, duplicates: Duplicates, threshold: float) -> None:
    """The largest groups of near-duplicates, and how many there are."""
    groups = duplicates.groups.group_by("group", maintain_order=True).agg("id")
    for number, ids in groups.head(SHOWN_GROUPS).iter_rows():
        names = ", ".join(printable(identifier, ID_WIDTH) for identifier in ids[:4])
        print(f"{number:4}  {len(ids):6} images  {names}{', ...' if len(ids) > 4 else ''}")

    # n - 1 pairs hold a group of n together: one for each repeat
    remaining = len(index) - len(duplicates.pairs)
    print(
        f"{len(groups)} groups of {len(duplicates.groups)} images above {threshold}; "
        f"without the repeats {remaining:,} of {len(index):,} images remain"
    )


# --- the command line ---


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="./run_all.sh search",
        description="The images of a result of predict that are nearest to a text, to an image or "
        "to one of themselves; or the near-duplicates among them.",
    )
    command_line.add_result(parser)
    option = parser.add_argument
    option("text", nargs="?", metavar="TEXT", help="what the image should show")
    option("--near", metavar="ID", help="instead of a text: an id of the file")
    option("--image", metavar="FILE", help="instead of a text: an image, read by --output's models")
    option(
        "--duplicates",
        type=float,
        metavar="COSINE",
        help="instead of a text: groups of images nearer to each other than this",
    )
    option("-k", type=int, default=20, metavar="N", help="results (default: %(default)s)")
    option("--min-confidence", type=float, metavar="C", help="leave out less confident images")
    option("--html", metavar="PAGE", help="also write a page with thumbnails")
    option("--out", metavar="TABLE", help="also write the results, .csv or .parquet")
    command_line.add_output(parser, "for --image: ")
    command_line.add_engine(parser)
    command_line.add_device(parser)

    options = parser.parse_args(argv)
    queries = (options.text, options.near, options.image, options.duplicates)
    if sum(query is not None for query in queries) != 1:
        parser.error("give a text, or one of --near, --image and --duplicates")
    if options.duplicates is not None and options.html:
        parser.error("--html shows the results of a query, not --duplicates")
    if options.out and Path(options.out).suffix not in (".csv", ".parquet"):
        parser.error(f"--out must end in .csv or .parquet, got {options.out}")
    return options


def main(argv: list[str] | None = None) -> int:
    """Entry point: 0 done, 2 refused."""
    options = arguments(argv)
    try:
        return command_line.exit_status(_search, options, tell=one_line)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _search(options: argparse.Namespace) -> None:
    out = _target(options.out)
    page = _target(options.html)
    index = Index(options.file, images=options.images, engine=options.engine)

    # files before the table: `| head` ends the command while it prints
    if options.duplicates is not None:
        duplicates = index.duplicates(options.duplicates, progress=True)
        if out is not None:
            artifacts.save_table(out, duplicates.pairs)
        print_duplicates(index, duplicates, options.duplicates)
    else:
        vector, title = query_vector(index, options)
        results = index.by_vector(vector, options.k, min_confidence=options.min_confidence)
        if out is not None:
            artifacts.save_table(out, results.drop("row"))
        if page is not None:
            _write_page(page, index, results, title)
        print_results(results)

    for file in (out, page):
        if file is not None:
            print(f"written: {display_path(file)}")


def _write_page(page: Path, index: Index, results: pl.DataFrame, title: str) -> None:
    from src.submit.pages import result_page  # only this needs the templates

    with artifacts.atomic(page) as temporary:
        temporary.write_text(result_page(index, results, title), encoding="utf-8")


def _target(name: str | None) -> Path | None:
    """A file to be written, refused before the search where that is impossible."""
    return None if name is None else artifacts.check_writable(Path(name).absolute())


if __name__ == "__main__":
    sys.exit(main())
