"""Any supported layout on disk becomes one table `id, image, prompt, source`.

A bad row is set aside with its reason. The readers of the layouts are in `layouts/`; `image` is a
locator (`locators.py`): a path, relative to the repository's root where it lies inside, or a place
within a tar shard or a Parquet table.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from src.artifacts import load_array
from src.data import layouts, locators, sample_submission
from src.data.images import UNREADABLE
from src.data.layouts.lookup import Finder
from src.data.layouts.names import entries_of, folder_in, is_image, is_sidecar, report_skipped
from src.data.text_only import blank, read_text, text_batches
from src.data.user_tables import read_user_table
from src.paths import as_text, display_path, resolve

__all__ = [
    "bad_share",
    "blank",
    "read_all",
    "read_attributes",
    "read_pairs",
    "read_store",
    "read_test",
    "read_text",
    "read_truth",
    "reason_counts",
    "refusal",
    "text_batches",
]

SCHEMA = {"id": pl.String, "image": pl.String, "prompt": pl.String, "source": pl.String}
SCHEMA_REJECTED = {**SCHEMA, "reason": pl.String}

UNLISTED = "image without a row"
# reasons that the set itself gives: no sign that it is bad
EXPECTED = (layouts.BLURRED, layouts.NOT_DELIVERED, layouts.SIDECAR, UNLISTED)
EMPTY_PROMPT = "empty prompt"
NO_FILE = "no such image"
REPEATED = "id occurs twice"


# --- pairs of an image and a prompt ---


def read_pairs(
    path: str | Path, layout: str | None = None, text_column: str | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The pairs at `path` as a table `id, image, prompt, source`, and the rejected rows.

    Rejected rows are the same table with `reason`. `layout` is one of `layouts.LAYOUTS`, or None to
    see what is there. Raises FileNotFoundError or ValueError naming the path and what is supported.
    """
    return _with_unlisted(*_set_aside(_read(path, layout, text_column)))


def read_all(train: str | list) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Every source of `train` as one pair of tables, as `read_pairs` gives them.

    `train` is a path, or a list of paths and of {path, layout, text_column}. An id that occurs
    twice is rejected where it occurs again; sources of one name are told apart by their folders.
    """
    listed = [train] if isinstance(train, str) else train
    entries = [entry if isinstance(entry, dict) else {"path": entry} for entry in listed]
    wrong = [entry for entry in entries if not _is_source(entry)]
    if wrong or not entries:
        raise ValueError(
            f"train: {wrong[0] if wrong else train} must be a path or "
            "{path: ..., layout: ..., text_column: ...}"
        )

    paths_by_name: dict[str, Path] = {}
    parts = []
    for entry in entries:
        rows = _read(**entry)
        parts.append(_rename_source(rows, resolve(entry["path"]), paths_by_name))
    return _with_unlisted(*_set_aside(pl.concat(parts)))


def _is_source(entry: dict) -> bool:
    """Whether an entry of `train` has a path, and no key but those of a source."""
    known = entry.keys() <= {"path", "layout", "text_column"}
    return known and isinstance(entry.get("path"), str | Path)


def _read(
    path: str | Path, layout: str | None = None, text_column: str | None = None
) -> pl.DataFrame:
    path = resolve(path)
    if not path.exists():
        raise FileNotFoundError(
            f"train: {display_path(path)} does not exist; set common.train to a folder or a table"
        )
    return layouts.read(path, layout, text_column)


def _rename_source(rows: pl.DataFrame, path: Path, paths_by_name: dict[str, Path]) -> pl.DataFrame:
    """Put its folder's name before the name of a source that another path has already taken."""
    for name in rows["source"].unique(maintain_order=True):
        new = name
        parent = path.parent
        while paths_by_name.setdefault(new, path) != path:
            new = f"{parent.name or 'again'}/{new}"
            parent = parent.parent
        if new == name:
            continue

        is_renamed = pl.col("source") == name
        new_id = pl.col("id").str.replace(f"{name}/", f"{new}/", literal=True)
        rows = rows.with_columns(
            pl.when(is_renamed).then(new_id).otherwise("id").alias("id"),
            pl.when(is_renamed).then(pl.lit(new)).otherwise("source").alias("source"),
        )
    return rows


# --- rejected rows ---


def bad_share(n_pairs: int, rejected: pl.DataFrame) -> float:
    """The share of rows that are bad, in [0, 1].

    What the set itself marks (blurred, not downloaded, unlisted) is not counted.
    """
    reasons = rejected["reason"].to_list()
    bad = sum(not reason.startswith(EXPECTED) for reason in reasons)
    return bad / max(n_pairs + bad, 1)


def reason_counts(rejected: pl.DataFrame) -> pl.DataFrame:
    """How many `rows` were set aside for each `reason`, without what differs by image."""
    reason = pl.col("reason").str.replace(rf"({UNREADABLE}: \w+).*", "$1")
    counts = rejected.group_by(reason).len("rows")
    return counts.sort("rows", "reason", descending=[True, False])


def refusal(
    pairs: pl.DataFrame, rejected: pl.DataFrame, max_rejected: float, *, file: Path
) -> str | None:
    """Why a run on these rows is refused, with an example; None where enough rows are good.

    `file` is where the rejected rows are written.
    """
    share = bad_share(len(pairs), rejected)
    if len(pairs) and share <= max_rejected:
        return None

    counts = dict(reason_counts(rejected).rows())
    message = (
        f"{len(pairs)} rows can be used and {len(rejected)} cannot, {share:.1%} are bad "
        f"(max_rejected = {max_rejected}, all of them in {display_path(file)}): {counts}"
    )
    bad = rejected.filter(~pl.any_horizontal(*map(pl.col("reason").str.starts_with, EXPECTED)))
    if bad.is_empty():
        return message

    example = bad.row(0, named=True)
    return f"{message}; e.g. {example['id']!r} at {example['image']}: {example['reason']}"


def _set_aside(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The usable rows, and the others with their first reason. NULs are taken out of prompts."""
    prompt = rows["prompt"].str.replace_all("\0", "", literal=True)
    exists = [os.path.isfile(locators.file_of(image)) for image in rows["image"]]
    reason = (
        pl.when(pl.col("reason").is_not_null())
        .then("reason")
        .when(blank(prompt))
        .then(pl.lit(EMPTY_PROMPT))
        .when(~pl.Series(exists, dtype=pl.Boolean))
        .then(pl.lit(NO_FILE))
    )
    rows = _number_captions(rows.with_columns(prompt).with_columns(reason=reason))

    # an id belongs to the first good row that has it
    good = rows["reason"].is_null().to_numpy()
    repeated = np.zeros(len(rows), bool)
    repeated[good] = ~rows.filter(good)["id"].is_first_distinct().to_numpy()
    repeated_reason = pl.when(pl.Series(repeated)).then(pl.lit(REPEATED))
    rows = rows.with_columns(reason=repeated_reason.otherwise("reason"))

    is_good = rows["reason"].is_null()
    return rows.filter(is_good).drop("reason"), rows.filter(~is_good)


def _number_captions(rows: pl.DataFrame) -> pl.DataFrame:
    """Give the second and later captions of an image the ids `<id>#2`, `<id>#3`, ...

    A caption that an image has twice keeps its id, and so does the row of another image.
    """
    rows = rows.with_row_index("row")

    # an id with another image is not a caption of this one, and a repeated caption is not a new one
    good = rows.filter(pl.col("reason").is_null())
    is_same_image = pl.col("image") == pl.col("image").first().over("id")
    is_new_caption = pl.struct("id", "image", "prompt").is_first_distinct()
    captions = good.filter(is_same_image).filter(is_new_caption)

    number = pl.int_range(1, pl.len() + 1).over("id")
    numbered = captions.select(
        "row", new_id=pl.when(number > 1).then(pl.format("{}#{}", "id", number))
    )
    joined = rows.join(numbered, on="row", how="left", maintain_order="left")
    return joined.with_columns(id=pl.coalesce("new_id", "id")).drop("row", "new_id")


def _with_unlisted(
    pairs: pl.DataFrame, rejected: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Add to the rejected rows the files that lie among the listed images without a row.

    Those are images that no row names, and what a system has left there.
    """
    source_of_folder = {}
    listed = {str(resolve(image)) for image in rejected["image"]}
    for image, source in pairs.select("image", "source").rows():
        if "::" not in image:
            file = str(resolve(image))
            listed.add(file)
            source_of_folder[os.path.dirname(file)] = source

    # one listing a folder, however many images it holds
    rows = []
    for folder, source in sorted(source_of_folder.items()):
        for name in sorted(os.listdir(folder)):
            file = f"{folder}/{name}"
            identifier = f"{source}/{as_text(Path(file).stem)}"
            if is_sidecar(name):
                rows.append((identifier, display_path(file), None, source, layouts.SIDECAR))
            elif is_image(name) and file not in listed:
                rows.append((identifier, display_path(file), None, source, UNLISTED))

    unlisted = pl.DataFrame(rows, schema=SCHEMA_REJECTED, orient="row")
    return pairs, pl.concat([rejected, unlisted])


# --- the test images, and what is known of images ---


def read_test(folder: str | Path) -> tuple[pl.DataFrame, Path | None]:
    """Test images as a table `id, image` sorted by id, and the path of sample_submission.csv.

    The path is None without a sample. Raises FileNotFoundError when there is no image, ValueError
    unless each id of the sample has one image, and each image an id there.
    """
    folder = resolve(folder)
    images = folder_in(folder, "images") or folder
    files = []
    if images.is_dir():
        files = [file for file in entries_of(images) if file.suffix and is_image(file)]
        others = {entry.name for entry in images.iterdir()} - {file.name for file in files}
        if images != folder:
            report_skipped(images, sorted(others), "files are not test images")
    if not files:
        raise FileNotFoundError(
            f"test: no images in {display_path(images)}; set common.test to a folder of images"
        )

    table = pl.DataFrame(
        {
            "id": [as_text(file.stem) for file in files],
            "image": [display_path(file) for file in files],
        }
    )
    doubled = table.filter(pl.col("id").is_duplicated())["image"].to_list()
    if doubled:
        raise ValueError(
            "test: images that differ only in their ending have one id, e.g. "
            f"{doubled[:2]}; take one of them out"
        )

    sample = folder / "sample_submission.csv"
    if not sample.exists():
        return table, None
    _check_sample(sample, table["id"].to_list(), images)
    return table, sample


def _check_sample(sample: Path, ids: list[str], images: Path) -> None:
    """Raise ValueError unless the sample's ids are those of the test images."""
    wanted = sample_submission.sample_ids(sample)
    have = set(ids)
    missing = [identifier for identifier in wanted if identifier not in have]
    if missing:
        raise ValueError(
            f"{display_path(sample)}: {len(missing)} of {len(wanted)} ids have no image in "
            f"{display_path(images)}, e.g. {missing[:3]}; add the images or take the ids out"
        )

    extra = sorted(have - set(wanted))
    if extra:
        raise ValueError(
            f"{display_path(sample)}: {len(extra)} of {len(ids)} images are not in it, e.g. "
            f"{extra[:3]}; add their rows or take the images out"
        )


def read_truth(file: str | Path) -> pl.DataFrame:
    """The true prompts of test images, `imgId, prompt`, both text, from a table of any form.

    Raises what `read_user_table` raises, and ValueError for rows without an id or a prompt.
    """
    file = resolve(file)
    table = read_user_table(file, ["imgId", "prompt"]).cast(pl.String)
    incomplete = table.filter(pl.any_horizontal(pl.all().is_null()))
    if len(incomplete):
        raise ValueError(
            f"{display_path(file)}: {len(incomplete)} of {len(table)} rows lack their imgId or "
            f"prompt, e.g. {incomplete.row(0, named=True)}"
        )
    return table


def read_attributes(table: str | Path, columns: Sequence[str], images: pl.Series) -> pl.DataFrame:
    """The `columns` of a table as text beside `image`, for those of `images` that it describes.

    The table's `file_name` is relative to its folder. Raises ValueError when it describes none of
    the images, or a column is missing.
    """
    file = resolve(table)
    finder = Finder(file.parent)
    attributes = read_user_table(file, ["file_name", *columns]).cast(pl.String)
    located = [finder.find(name or "")[0] for name in attributes["file_name"]]
    attributes = attributes.select(*columns, image=pl.Series(located, dtype=pl.String))

    described = attributes.filter(pl.col("image").is_in(images.implode()))
    if described.is_empty():
        first = attributes["image"].to_list()[:1]
        raise ValueError(
            f"attributes: {display_path(file)} describes none of the {len(images)} training "
            f"images; its first file is {first}, the first image {images.to_list()[:1]}"
        )
    return described


# --- a precomputed store ---


def read_store(folder: str | Path, *, width: int = 384) -> list[tuple[Path, Path]]:
    """A precomputed store: (keys, values) of each pair of row-aligned .npy shards, in order.

    Values are the files `width` wide (sentence embeddings), keys the others (CLIP's), in `folder`
    and below it. Raises ValueError where the two lists or a pair's rows differ in number.
    """
    folder = resolve(folder)
    files = [file for file in sorted(folder.rglob("*.npy")) if not is_sidecar(file.name)]
    shapes = {file: load_array(file, "r").shape for file in files}
    keys: list[Path] = []
    values: list[Path] = []
    for file, shape in shapes.items():
        if len(shape) == 2:
            (values if shape[1] == width else keys).append(file)

    if not keys or len(keys) != len(values):
        raise ValueError(
            f"stores: {display_path(folder)} holds {len(keys)} shards of keys and {len(values)} of "
            f"values ({width} wide)"
        )
    for key, value in zip(keys, values, strict=True):
        if shapes[key][0] != shapes[value][0]:
            raise ValueError(
                f"stores: {display_path(key)} has {shapes[key][0]} rows, "
                f"{display_path(value)} {shapes[value][0]}"
            )
    return list(zip(keys, values, strict=True))
