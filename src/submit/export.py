"""`./run_all.sh export FILE.parquet --to parquet|lance|faiss`: a result for other programs.

The table has path, vector, text, the nearest other rows, and a map's x and y: embedding-atlas and
LanceDB open it as it is. The Faiss index holds the vectors, row by row as in the result.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from src import artifacts, knn
from src.data.sample_submission import WIDTH
from src.errors import UserError
from src.paths import as_text, display_path
from src.submit import command_line
from src.submit.index import Index
from src.submit.map import METHODS, coordinates

FORMATS = ("parquet", "lance", "faiss")
ROW_GROUP = 10_000
TABLE = "images"  # the table's name in a LanceDB folder


def table(index: Index, *, neighbors: int = 15, method: str = "auto") -> pa.Table:
    """id, path, text, confidence, vector, neighbors (ids and distances by row), x, y.

    `path` is the image's file where it is there, else the id; a distance is 1 - cosine, and a row
    is not its own neighbor.
    """
    x = np.asarray(index.vectors())
    rows = np.arange(len(index))
    paths = [index.image_path(row) for row in rows.tolist()]
    ids = index.table["id"].to_list()
    places, _ = coordinates(x, method)
    columns = {
        "id": pa.array(ids, pa.string()),
        "path": pa.array(
            [as_text(str(path)) if path else i for path, i in zip(paths, ids, strict=True)]
        ),
        "text": pa.array(index.rows(rows)["prompt"].to_list(), pa.string()),
        "confidence": pa.array(index.table["confidence"].to_numpy(), pa.float32()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH),
        "x": pa.array(places[:, 0]),
        "y": pa.array(places[:, 1]),
    }
    neighbors = min(neighbors, len(index) - 1)
    if neighbors > 0:
        columns["neighbors"] = _neighbors(x, neighbors, index.engine)
    return pa.table(columns)


def _neighbors(x: np.ndarray, count: int, engine: str) -> pa.Array:
    """For each row the `count` nearest others: a struct of `ids` (rows) and `distances`."""
    cosine, nearest = knn.search(x, x, count + 1, engine)
    # a row is first in its own list, unless it has copies: then whichever is last makes room
    own = nearest == np.arange(len(x))[:, None]
    own[~own.any(axis=1), -1] = True

    offsets = np.arange(0, len(x) * count + 1, count, dtype=np.int32)
    lists = [
        pa.ListArray.from_arrays(offsets, nearest[~own].astype(np.int64)),
        pa.ListArray.from_arrays(offsets, (1 - cosine[~own]).astype(np.float32)),
    ]
    return pa.StructArray.from_arrays(lists, ["ids", "distances"])


def write_parquet(content: pa.Table, out: Path) -> None:
    """One Parquet file."""
    with artifacts.atomic(out) as temporary:
        pq.write_table(content, temporary, row_group_size=ROW_GROUP)


def write_lance(content: pa.Table, out: Path) -> None:
    """A LanceDB folder with one table."""
    import lancedb

    lancedb.connect(str(out)).create_table(TABLE, data=content)


def write_faiss(index: Index, out: Path) -> None:
    """An exact Faiss index by inner product, and `<out>.ids.parquet` with the id of each row."""
    import faiss

    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(np.ascontiguousarray(index.vectors()))
    with artifacts.atomic(out) as temporary:
        faiss.write_index(flat, str(temporary))
    ids = pl.DataFrame({"id": index.table["id"]})
    artifacts.save_table(out.with_name(out.name + ".ids.parquet"), ids)


# --- the command line ---


def check_target(out: Path, to: str) -> None:
    """UserError or ValueError where `out` cannot be written in the format `to`."""
    if to != "lance":
        artifacts.check_writable(out)
        return
    if out.exists():
        raise UserError(f"{display_path(out)} already exists: --to lance writes a new folder")
    if importlib.util.find_spec("lancedb") is None:
        raise UserError(
            "--to lance needs the package lancedb, which requirements.txt leaves out; the table of "
            "--to parquet can be imported by it as it is"
        )


def main(argv: list[str] | None = None) -> int:
    """Entry point: 0 done, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="./run_all.sh export", description="A result of predict for other programs."
    )
    command_line.add_result(parser)
    option = parser.add_argument
    option("--to", choices=FORMATS, default="parquet", help="default: %(default)s")
    option("--out", metavar="FILE", required=True, help="what to write (a folder for lance)")
    option(
        "--neighbors",
        type=int,
        default=15,
        metavar="K",
        help="nearest rows of each row, 0 for none (default: %(default)s)",
    )
    option(
        "--map",
        choices=METHODS,
        default="auto",
        help="what x and y are: auto is UMAP on a GPU or where umap-learn is installed, else PCA",
    )
    command_line.add_engine(parser)
    options = parser.parse_args(argv)
    if options.neighbors < 0:
        parser.error(f"--neighbors must be at least 0, got {options.neighbors}")
    return command_line.exit_status(_export, options)


def _export(options: argparse.Namespace) -> None:
    out = Path(options.out).absolute()
    check_target(out, options.to)
    index = Index(options.file, images=options.images, engine=options.engine)
    if options.to == "faiss":
        write_faiss(index, out)
    else:
        write = write_parquet if options.to == "parquet" else write_lance
        write(table(index, neighbors=options.neighbors, method=options.map), out)
    print(f"{display_path(out)}: {len(index):,} images")


if __name__ == "__main__":
    sys.exit(main())
