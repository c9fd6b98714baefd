"""Members from outside: the embeddings or the texts of another system, joined by id.

Each is `{name, oof, test}`: a name and two files, one for the rows that data filter 2 kept (ids of
`01_dedup/pairs.parquet`), one for the test images (ids of `01_dedup/test.parquet`). A file is

* a CSV, TSV, JSON-lines or Parquet table with `id` and `text`: captions, encoded here, or
* `.parquet` with `id` and `embedding`: lists of 384 numbers, or
* `.npy`, (n, 384), with the ids beside it in `<name>.ids.parquet`.

Further ids do no harm. An out-of-fold file must hold predictions by models that have not learned
from the row that they predict.

Captions may also be searched by Model B (`captions` of notebook 03): a file of `id` and `text` for
the images of training, of the test or of both.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from src import artifacts
from src.data import prompts
from src.data.user_tables import read_user_table
from src.metrics import l2_normalize
from src.paths import display_path, resolve

KEYS = {"name", "oof", "test"}


def check_form(extra_members: Sequence[dict], own: Sequence[str] = ()) -> None:
    """ValueError for an entry without name, oof or test, for other keys, and for a name used twice
    or by one of the `own` members.
    """
    # each entry by itself, then its name against all others
    names = list(own)
    for entry in extra_members:
        if set(entry) != KEYS or not all(isinstance(value, str) for value in entry.values()):
            raise ValueError(f"extra_members: {entry} must be {{name: ..., oof: FILE, test: FILE}}")
        if entry["name"] in names:
            raise ValueError(f"extra_members: the name {entry['name']!r} is used twice")
        names.append(entry["name"])


def load_extra(
    extra_members: Sequence[dict],
    ids: Sequence[str],
    what: str,
    *,
    own: Sequence[str] = (),
    sentence_model: str = prompts.EMBEDDED,
) -> dict[str, np.ndarray]:
    """Each member's `what` ("oof" or "test") predictions of `ids`, in that order: name -> (n, 384)
    float32 unit rows.

    Raises what `check_form` and `load` raise; `own` are the names that Models A and B use.
    """
    check_form(extra_members, own)
    return {
        entry["name"]: load(resolve(entry[what]), ids, sentence_model=sentence_model)
        for entry in extra_members
    }


def caption_prompts(files: Sequence[str], ids: Sequence[str]) -> pl.DataFrame:
    """The captions of the images `ids` as prompts for Model B's datastore: id, prompt, source.

    Each text is there once. Raises what `read` raises, and ValueError for a file of embeddings and
    for one that knows none of the images.
    """
    tables = [pl.DataFrame(schema={"id": pl.String, "prompt": pl.String})]
    wanted = set(ids)
    for number, name in enumerate(files, start=1):
        file = resolve(name)
        known, texts = read(file)
        if isinstance(texts, np.ndarray):
            raise ValueError(f"{display_path(file)}: holds embeddings, captions must be texts")

        table = pl.DataFrame({"id": known, "prompt": texts}).filter(pl.col("id").is_in(wanted))
        if table.is_empty():
            raise ValueError(
                f"{display_path(file)}: none of its {len(known)} ids is that of an image here, "
                f"e.g. {known[:3]}"
            )
        tables.append(table.with_columns(id=pl.format("caption_{}_{}", pl.lit(number), "id")))

    captions = pl.concat(tables).unique("prompt", keep="first", maintain_order=True)
    return captions.with_columns(source=pl.lit("captions"))


def load(file: Path, ids: Sequence[str], *, sentence_model: str = prompts.EMBEDDED) -> np.ndarray:
    """The rows of `ids` in that order, (n, 384) float32 of unit length; texts are encoded.

    Raises FileNotFoundError, and ValueError naming the file for ids that are missing or doubled,
    for empty texts, and for rows of another width, with NaN, or of length 0.
    """
    have, rows = read(file)
    indices = artifacts.indices_of_ids(have, ids, display_path(file))

    if isinstance(rows, np.ndarray):
        with artifacts.readable(file):
            return l2_normalize(rows[indices])

    # only the texts that are wanted: the file may hold many more
    return prompts.encode([rows[i] for i in indices], model=sentence_model)


def read(file: Path) -> tuple[list[str], np.ndarray | list[str]]:
    """The ids of a file, and its embeddings (n, 384) float32 or its texts, checked."""
    if file.suffix == ".npy":
        ids = _ids(artifacts.load_table(_ids_file(file), ["id"]), file)
        rows = artifacts.load_array(file)
        return ids, _checked(ids, rows, file)

    table = read_user_table(file)
    present = [name for name in ("embedding", "text") if name in table.columns]
    if len(present) != 1 or "id" not in table.columns:
        raise ValueError(
            f"{display_path(file)}: must have the columns id and either text or embedding; "
            f"there are {table.columns}"
        )

    ids = _ids(table, file)
    if present == ["text"]:
        return ids, _texts(table, file)
    return ids, _checked(ids, _array(table["embedding"], file), file)


def _ids_file(array_file: Path) -> Path:
    """The table with a .npy's ids."""
    ids_file = array_file.with_suffix(".ids.parquet")
    if not ids_file.exists():
        raise FileNotFoundError(
            f"{display_path(ids_file)} does not exist: a .npy needs its ids beside it, "
            "a table with a column id"
        )
    return ids_file


def _ids(table: pl.DataFrame, file: Path) -> list[str]:
    """The column `id` as text, each id once."""
    ids = table["id"].cast(pl.String)
    if ids.null_count():
        raise ValueError(f"{display_path(file)}: {ids.null_count()} ids are null")

    doubled = ids.filter(ids.is_duplicated()).unique(maintain_order=True)
    if len(doubled):
        examples = doubled[:3].to_list()
        raise ValueError(
            f"{display_path(file)}: {len(doubled)} ids occur more than once, e.g. {examples}"
        )
    return ids.to_list()


def _texts(table: pl.DataFrame, file: Path) -> list[str]:
    """The column `text`, none of it empty."""
    if table["text"].dtype != pl.String:
        raise ValueError(f"{display_path(file)}: text is {table['text'].dtype}, must be text")

    empty = table.filter(pl.col("text").str.strip_chars().fill_null("") == "")
    if len(empty):
        raise ValueError(
            f"{display_path(file)}: {len(empty)} of {len(table)} texts are empty, "
            f"e.g. that of id {empty['id'][0]!r}"
        )
    return table["text"].to_list()


def _array(column: pl.Series, file: Path) -> np.ndarray:
    """A column of lists of numbers as (n, d)."""
    if not column.dtype.is_nested():
        raise ValueError(f"{display_path(file)}: embedding is {column.dtype}, must be lists")

    # rows of one width lie behind each other, so they reshape without a copy of each
    lists = column.cast(pl.List(pl.Float32))
    widths = sorted(set(lists.list.len().fill_null(0).to_list()))
    if len(widths) > 1:
        raise ValueError(
            f"{display_path(file)}: embeddings have {widths[0]} to {widths[-1]} numbers"
        )
    width = widths[0] if widths else prompts.WIDTH
    return lists.explode().to_numpy().reshape(len(lists), width)


def _checked(ids: list[str], rows: np.ndarray, file: Path) -> np.ndarray:
    """`rows` as float32; ValueError for another shape, width or kind of number, or for NaN."""
    shown = display_path(file)
    if rows.ndim != 2 or rows.shape[1] != prompts.WIDTH:
        raise ValueError(f"{shown}: embeddings of shape {rows.shape}, must be (n, {prompts.WIDTH})")
    if not np.issubdtype(rows.dtype, np.floating):
        raise ValueError(f"{shown}: embeddings are {rows.dtype}, must be floating-point numbers")

    # finite, and one row for each id
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    artifacts.check_embeddings(ids, rows, shown)
    return rows
