"""Any supported layout on disk becomes one table `id, image, prompt, source`; a bad row is set aside with its reason.

Read here: the competition's folder, and any table (CSV, TSV, JSON lines, Parquet) with an image column and a text column,
`metadata.csv` of an image folder included. `image` is a path, relative to the repository's root where it lies inside.
"""

import csv
from pathlib import Path

import polars as pl

from src.paths import resolve, shown

IMAGE_COLUMNS = ("image", "image_path", "filepath", "file_name", "image_name", "img_path", "filename", "jpg", "png", "webp")
TEXT_COLUMNS = ("prompt", "Prompt", "text", "TEXT", "caption", "top_caption", "orig_text", "txt", "p")
TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
LAYOUTS = ("competition", "table")
SCHEMA = {"id": pl.String, "image": pl.String, "prompt": pl.String, "source": pl.String}


def read_pairs(path: str | Path, layout: str | None = None, *, text_column: str | None = None
               ) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The pairs at `path` as a table `id, image, prompt, source`, and the rejected rows as the same table with `reason`.

    `layout` is "competition" (images/ and prompts.csv), "table" (a table, or a folder with metadata.csv/.jsonl/.parquet) or
    None to see what is there. Raises FileNotFoundError or ValueError naming the path and what is supported.
    """
    path = resolve(path)
    if not path.exists():
        raise FileNotFoundError(f"train: {shown(path)} does not exist; set common.train to a folder or a table")
    layout = layout or _recognise(path)
    if layout not in LAYOUTS:
        raise ValueError(f"train: layout {layout!r} of {shown(path)} is not one of {', '.join(LAYOUTS)}")
    rows = _read_competition(path) if layout == "competition" else _read_table(path, text_column)
    return _set_aside(rows)


def read_all(train: str | list) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Every source of `train` (a path, or a list of paths and of {path, layout, text_column}) as one pair of tables.

    An id that occurs twice is rejected where it occurs again.
    """
    entries = [entry if isinstance(entry, dict) else {"path": entry} for entry in ([train] if isinstance(train, str) else train)]
    read = [read_pairs(**entry) for entry in entries]
    pairs = pl.concat([kept for kept, _ in read])
    doubled = ~pairs["id"].is_first_distinct()
    again = pairs.filter(doubled).with_columns(pl.lit("id occurs twice").alias("reason"))
    return pairs.filter(~doubled), pl.concat([*(rejected for _, rejected in read), again])


def read_test(folder: str | Path) -> tuple[pl.DataFrame, Path | None]:
    """Test pictures as a table `id, image` sorted by id, and the path of sample_submission.csv (None without one).

    Raises FileNotFoundError when there is no picture, ValueError when an id of the sample has none.
    """
    folder = resolve(folder)
    images = folder / "images" if (folder / "images").is_dir() else folder
    files = sorted(f for f in images.glob("*") if f.suffix.lower() in PICTURES) if images.is_dir() else []
    if not files:
        raise FileNotFoundError(f"test: no pictures in {shown(images)}; set common.test to a folder in the competition's layout")
    table = pl.DataFrame({"id": [f.stem for f in files], "image": [shown(f) for f in files]})
    sample = folder / "sample_submission.csv"
    if not sample.exists():
        return table, None
    wanted = pl.read_csv(sample, columns=["imgId_eId"])["imgId_eId"].str.replace(r"_\d+$", "").unique(maintain_order=True)
    missing = wanted.filter(~wanted.is_in(table["id"].implode()))
    if len(missing):
        raise ValueError(f"{shown(sample)}: {len(missing)} of {len(wanted)} ids have no picture in {shown(images)}, "
                         f"e.g. {missing[:3].to_list()}; add the pictures or take the ids out")
    return table, sample


def read_text(text: str | list | None, *, text_column: str | None = None) -> pl.DataFrame:
    """Text-only prompts as a table `prompt, source`: .txt files with one prompt a line, or tables with a text column."""
    files = [file for entry in ([text] if isinstance(text, str) else text or []) for file in _text_files(resolve(entry))]
    frames = [_read_text_file(file, text_column) for file in files]
    return pl.concat(frames) if frames else pl.DataFrame(schema={"prompt": pl.String, "source": pl.String})


def _text_files(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"text: {shown(path)} does not exist; set common.text to a file, a folder or null")
    return sorted(f for f in path.iterdir() if f.suffix in (".txt", ".csv", ".parquet")) if path.is_dir() else [path]


def _read_text_file(file: Path, text_column: str | None) -> pl.DataFrame:
    if file.suffix == ".txt":
        prompts = pl.Series("prompt", file.read_text(encoding="utf-8", errors="replace").split("\n"), dtype=pl.String)
    else:
        table = _load(file)
        prompts = table[_column(table, TEXT_COLUMNS, text_column, file, "text")].cast(pl.String).alias("prompt")
    kept = prompts.drop_nulls().filter(prompts.drop_nulls().str.strip_chars() != "")
    return pl.DataFrame({"prompt": kept}).with_columns(pl.lit(file.stem).alias("source"))


def _recognise(path: Path) -> str:
    if path.is_dir() and (path / "prompts.csv").exists() and (path / "images").is_dir():
        return "competition"
    if path.is_file() or any((path / name).exists() for name in TABLES):
        return "table"
    raise ValueError(f"train: {shown(path)} has neither prompts.csv with images/ nor one of {', '.join(TABLES)}; "
                     "name a table with an image and a text column instead")


def _read_competition(folder: Path) -> pl.DataFrame:
    table = _load(folder / "prompts.csv")
    if not {"imgId", "prompt"} <= set(table.columns):
        raise ValueError(f"{shown(folder / 'prompts.csv')}: columns are {table.columns}, wanted imgId and prompt")
    return table.select(id=pl.col("imgId"), image=pl.format("{}/images/{}.png", pl.lit(shown(folder)), "imgId"),
                        prompt="prompt", source=pl.lit(folder.name))


def _read_table(path: Path, text_column: str | None) -> pl.DataFrame:
    file = path if path.is_file() else next(path / name for name in TABLES if (path / name).exists())
    table = _load(file)
    image = _column(table, IMAGE_COLUMNS, None, file, "image")
    text = _column(table, TEXT_COLUMNS, text_column, file, "text")
    source = file.parent.name if file.stem == "metadata" else file.stem
    name = pl.col(image).cast(pl.String).fill_null("")
    return table.select(id=pl.lit(source + "/") + name.str.replace(r"\.[A-Za-z0-9]+$", ""),
                        image=pl.lit(shown(file.parent) + "/") + name, prompt=pl.col(text).cast(pl.String), source=pl.lit(source))


def _load(file: Path) -> pl.DataFrame:
    if file.suffix == ".parquet":
        return pl.read_parquet(file)
    if file.suffix in (".jsonl", ".ndjson"):
        return pl.read_ndjson(file)
    if file.suffix not in (".csv", ".tsv"):
        raise ValueError(f"{shown(file)}: a table must be .csv, .tsv, .jsonl or .parquet")
    # Python's reader takes the ragged and oddly quoted rows that scraped prompts have
    with open(file, encoding="utf-8-sig", errors="replace", newline="") as stream:
        rows = list(csv.DictReader((line.replace("\0", "") for line in stream),
                                   delimiter="\t" if file.suffix == ".tsv" else ","))
    if not rows:
        raise ValueError(f"{shown(file)}: no rows below the header")
    columns = [name for name in rows[0] if name is not None]
    return pl.DataFrame({name: [row.get(name) for row in rows] for name in columns}, schema=dict.fromkeys(columns, pl.String))


def _column(table: pl.DataFrame, known: tuple[str, ...], named: str | None, file: Path, what: str) -> str:
    found = named if named in table.columns else next((c for c in known if c in table.columns), None) if named is None else None
    if found is None:
        raise ValueError(f"{shown(file)}: no {what} column {named or ''}among {table.columns}; known names are {', '.join(known)}")
    return found


def _set_aside(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    exists = pl.Series([resolve(image).is_file() for image in rows["image"]], dtype=pl.Boolean)
    blank = rows["prompt"].fill_null("").str.strip_chars() == ""
    judged = rows.cast(SCHEMA).with_columns(
        reason=pl.when(blank).then(pl.lit("empty prompt")).when(~exists).then(pl.lit("no such picture"))
    )
    good = judged["reason"].is_null()
    return judged.filter(good).drop("reason"), judged.filter(~good)
