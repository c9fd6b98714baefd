"""Any supported layout on disk becomes one table `id, image, prompt, source`; a bad row is set aside with its reason.

The readers of the layouts are in `layouts.py`. `image` is a reference (`references.py`): a path, relative to the repository's
root where it lies inside, or a place within a tar shard or a Parquet table.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl

from src.artifacts import load_array, load_table, readable
from src.data import layouts, locators, sample_submission
from src.data.layouts import IMAGE_SUFFIXES, TEXT_COLUMNS
from src.paths import as_text, display_path, resolve

SCHEMA = {"id": pl.String, "image": pl.String, "prompt": pl.String, "source": pl.String}
TEXTS = (".txt", *layouts.TABLES)
UNLISTED = "image without a row"
EXPECTED = (
    layouts.BLURRED,
    layouts.NOT_DELIVERED,
    UNLISTED,
)  # said by the set itself: no sign that it is bad
BATCH = 500_000  # prompts read at a time from a text-only source


def read_pairs(
    path: str | Path, layout: str | None = None, text_column: str | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The pairs at `path` as a table `id, image, prompt, source`, and the rejected rows as the same table with `reason`.

    `layout` is one of `layouts.LAYOUTS`, or None to see what is there. Raises FileNotFoundError or ValueError naming the path
    and what is supported.
    """
    return _with_unlisted(*_set_aside(_read(path, layout, text_column)))


def read_all(train: str | list) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Every source of `train` (a path, or a list of paths and of {path, layout, text_column}) as one pair of tables.

    An id that occurs twice is rejected where it occurs again; two sources of one name are told apart by their folders.
    """
    entries = [
        entry if isinstance(entry, dict) else {"path": entry}
        for entry in ([train] if isinstance(train, str) else train)
    ]
    wrong = [
        e
        for e in entries
        if not isinstance(e.get("path"), str | Path)
        or not e.keys() <= {"path", "layout", "text_column"}
    ]
    if wrong or not entries:
        raise ValueError(
            f"train: {wrong[0] if wrong else train} must be a path or {{path: ..., layout: ..., text_column: ...}}"
        )
    names: dict[str, Path] = {}
    read = [_told_apart(_read(**entry), resolve(entry["path"]), names) for entry in entries]
    return _with_unlisted(*_set_aside(pl.concat(read)))


def bad_share(n_pairs: int, rejected: pl.DataFrame) -> float:
    """The share of rows that are bad; what the set itself marks (blurred, not downloaded, unlisted) is not counted."""
    reasons = rejected["reason"]
    bad = len(rejected) - sum(reasons.str.starts_with(reason).sum() for reason in EXPECTED)
    return bad / max(n_pairs + bad, 1)


def reason_counts(rejected: pl.DataFrame) -> pl.DataFrame:
    """How many rows were set aside for each `reason`; what differs from image to image is left out of it."""
    return (
        rejected.group_by(pl.col("reason").str.replace(r"(unreadable image: \w+).*", "$1"))
        .len("rows")
        .sort("rows", "reason", descending=[True, False])
    )


def read_test(folder: str | Path) -> tuple[pl.DataFrame, Path | None]:
    """Test images as a table `id, image` sorted by id, and the path of sample_submission.csv (None without one).

    Raises FileNotFoundError when there is no image, ValueError unless each id of the sample has one image, and each image
    an id there.
    """
    folder = resolve(folder)
    images = folder / "images" if (folder / "images").is_dir() else folder
    files = (
        sorted(f for f in images.glob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
        if images.is_dir()
        else []
    )
    if not files:
        raise FileNotFoundError(
            f"test: no images in {display_path(images)}; set common.test to a folder in the competition's layout"
        )
    table = pl.DataFrame(
        {"id": [as_text(f.stem) for f in files], "image": [display_path(f) for f in files]}
    )
    doubled = table.filter(pl.col("id").is_duplicated())["image"].to_list()
    if doubled:
        raise ValueError(
            f"test: images that differ only in their ending have one id, e.g. {doubled[:2]}; take one of them out"
        )
    sample = folder / "sample_submission.csv"
    if not sample.exists():
        return table, None
    wanted, there = sample_submission.sample_ids(sample), set(table["id"])
    missing, extra = [i for i in wanted if i not in there], sorted(there - set(wanted))
    if missing:
        raise ValueError(
            f"{display_path(sample)}: {len(missing)} of {len(wanted)} ids have no image in {display_path(images)}, "
            f"e.g. {missing[:3]}; add the images or take the ids out"
        )
    if extra:
        raise ValueError(
            f"{display_path(sample)}: {len(extra)} of {len(table)} images are not in it, e.g. {extra[:3]}; "
            "add their rows or take the images out"
        )
    return table, sample


def read_truth(file: str | Path) -> pl.DataFrame:
    """The true prompts of test images, `imgId, prompt`, both text, from a CSV or Parquet table.

    Raises FileNotFoundError, ValueError naming a file that is broken or lacks a column.
    """
    return load_table(resolve(file), ["imgId", "prompt"], as_text=True).cast(pl.String)


# --- prompts without images ---


def read_text(text: str | list | None, *, text_column: str | None = None) -> pl.DataFrame:
    """Text-only prompts as a table `prompt, source`: .txt files with one prompt a line, or tables with a text column."""
    frames = list(text_batches(text, text_column=text_column))
    return (
        pl.concat(frames)
        if frames
        else pl.DataFrame(schema={"prompt": pl.String, "source": pl.String})
    )


def text_batches(
    text: str | list | None, *, text_column: str | None = None, rows: int = BATCH
) -> Iterator[pl.DataFrame]:
    """The prompts of text-only sources in tables `prompt, source` of at most `rows` rows, blank ones left out.

    Raises FileNotFoundError naming a source that is not there, ValueError naming a table without a text column.
    """
    for entry in [text] if isinstance(text, str) else text or []:
        for file in _text_files(resolve(entry)):
            for prompts in _prompt_batches(file, text_column, rows):
                prompts = (
                    layouts.texts_of(prompts, file)
                    .drop_nulls()
                    .str.replace_all("\0", "", literal=True)
                )
                prompts = prompts.filter(~blank(prompts))
                yield pl.DataFrame({"prompt": prompts}).with_columns(
                    pl.lit(file.stem).alias("source")
                )


def _text_files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(
            f"text: {display_path(path)} does not exist; set common.text to a file, a folder or null"
        )
    return sorted(f for f in path.iterdir() if f.suffix in TEXTS) if path.is_dir() else [path]


def _prompt_batches(file: Path, text_column: str | None, rows: int) -> Iterator[pl.Series]:
    if file.suffix == ".txt":
        with layouts.opened(file, newline="\n") as stream:
            lines = (line.rstrip("\r\n") for line in stream)
            while batch := list(islice(lines, rows)):
                yield pl.Series("prompt", batch, dtype=pl.String)
    elif file.suffix == ".parquet":
        import pyarrow.parquet as pq

        with readable(file):
            table = pq.ParquetFile(file)
        column = layouts.column_of(
            table.schema_arrow.names, TEXT_COLUMNS, text_column, file, "text"
        )
        with readable(file):
            for batch in table.iter_batches(batch_size=rows, columns=[column]):
                yield pl.from_arrow(batch)[column]
    else:
        yield from _column_batches(file, text_column, rows)


def _column_batches(file: Path, text_column: str | None, rows: int) -> Iterator[pl.Series]:
    cells = layouts.column_cells(file, text_column)
    while batch := list(islice(cells, rows)):
        yield pl.Series("prompt", batch, dtype=pl.String)


def read_store(folder: str | Path, *, width: int = 384) -> list[tuple[Path, Path]]:
    """A precomputed store: (keys, values) of each pair of row-aligned .npy shards in `folder` and its folders, in order.

    Values are the files `width` wide (sentence embeddings), keys the others (CLIP's). Raises ValueError where the two lists or a
    pair's rows differ in number.
    """
    folder = resolve(folder)
    shapes = {file: load_array(file, "r").shape for file in sorted(folder.rglob("*.npy"))}
    values = [file for file, shape in shapes.items() if len(shape) == 2 and shape[1] == width]
    keys = [file for file, shape in shapes.items() if len(shape) == 2 and shape[1] != width]
    if not keys or len(keys) != len(values):
        raise ValueError(
            f"store: {display_path(folder)} holds {len(keys)} shards of keys and {len(values)} of values ({width} wide)"
        )
    for key, value in zip(keys, values, strict=True):
        if shapes[key][0] != shapes[value][0]:
            raise ValueError(
                f"store: {display_path(key)} has {shapes[key][0]} rows, {display_path(value)} {shapes[value][0]}"
            )
    return list(zip(keys, values, strict=True))


def read_attributes(table: str | Path, columns: Sequence[str], images: pl.Series) -> pl.DataFrame:
    """What a table (file_name, `columns`) says of training images: `image` and the columns as text, for those of `images` alone.

    `file_name` is relative to the table's folder. Raises ValueError when it describes none of them, or a column is missing.
    """
    file = resolve(table)
    told = load_table(file, ["file_name", *columns], as_text=True).select(
        pl.col(columns).cast(pl.String),
        image=pl.format("{}/{}", pl.lit(display_path(file.parent)), "file_name"),
    )
    found = told.filter(pl.col("image").is_in(images.implode()))
    if found.is_empty():
        raise ValueError(
            f"attributes: {display_path(file)} describes none of the {len(images)} training images; its first is "
            f"{told['image'].first()}, theirs {images.first()}"
        )
    return found


# --- bad rows ---


def _read(
    path: str | Path, layout: str | None = None, text_column: str | None = None
) -> pl.DataFrame:
    path = resolve(path)
    if not path.exists():
        raise FileNotFoundError(
            f"train: {display_path(path)} does not exist; set common.train to a folder or a table"
        )
    return layouts.read(path, layout, text_column)


def _told_apart(rows: pl.DataFrame, path: Path, names: dict[str, Path]) -> pl.DataFrame:
    """Give a source whose name another path has already taken a name with its folder's."""
    for name in rows["source"].unique(maintain_order=True):
        new, parents = name, path.parent
        while names.setdefault(new, path) != path:
            new, parents = f"{parents.name or 'again'}/{new}", parents.parent
        if new != name:
            renamed = pl.col("id").str.replace(f"{name}/", f"{new}/", literal=True), pl.lit(new)
            rows = rows.with_columns(
                pl.when(pl.col("source") == name).then(value).otherwise(column).alias(column)
                for column, value in zip(("id", "source"), renamed, strict=True)
            )
    return rows


def blank(prompts: pl.Series) -> pl.Series:
    """Whether each prompt shows nothing: null, or spaces, control and format characters of Unicode alone."""
    return prompts.fill_null("").str.replace_all(r"[\s\p{Z}\p{Cc}\p{Cf}]+", "") == ""


def _set_aside(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The usable rows, and the others with their first reason. NULs are taken out of prompts."""
    prompt = rows["prompt"].str.replace_all("\0", "", literal=True)
    exists = pl.Series(
        [os.path.isfile(locators.file_of(image)) for image in rows["image"]], dtype=pl.Boolean
    )
    reason = (
        pl.when(pl.col("reason").is_not_null())
        .then("reason")
        .when(blank(prompt))
        .then(pl.lit("empty prompt"))
        .when(~exists)
        .then(pl.lit("no such image"))
    )
    rows = rows.with_columns(prompt).with_columns(reason=reason)
    good = rows["reason"].is_null().to_numpy()
    again = np.zeros(len(rows), bool)
    again[good] = ~rows.filter(good)["id"].is_first_distinct().to_numpy()
    rows = rows.with_columns(
        reason=pl.when(pl.Series(again)).then(pl.lit("id occurs twice")).otherwise("reason")
    )
    good = rows["reason"].is_null()
    return rows.filter(good).drop("reason"), rows.filter(~good)


def _with_unlisted(
    pairs: pl.DataFrame, rejected: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Add to the rejected rows the image files that lie among the listed ones and are named by no row."""
    files = [
        (str(resolve(image)), source)
        for image, source in pairs.select("image", "source").rows()
        if "::" not in image
    ]
    listed = {*(file for file, _ in files), *(str(resolve(image)) for image in rejected["image"])}
    folders = {os.path.dirname(file): source for file, source in files}
    found = [
        (f"{folder}/{name}", source)
        for folder, source in sorted(folders.items())
        for name in sorted(os.listdir(folder))
        if name.lower().endswith(IMAGE_SUFFIXES) and f"{folder}/{name}" not in listed
    ]
    unlisted = pl.DataFrame(
        {
            "id": [f"{source}/{as_text(Path(file).stem)}" for file, source in found],
            "image": [display_path(file) for file, _ in found],
            "prompt": [None] * len(found),
            "source": [source for _, source in found],
            "reason": [UNLISTED] * len(found),
        },
        schema={**SCHEMA, "reason": pl.String},
    )
    return pairs, pl.concat([rejected, unlisted])
