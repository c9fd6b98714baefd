"""Each layout that training images come in, recognised by what is on disk: one reader each, one table out.

Every reader takes (path, text_column) and returns `id, image, prompt, source, reason`; `image` is a reference as
`references.py` defines it, `reason` is set where the layout itself says that a row is no good.
"""

import codecs
import csv
import json
import os
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path, PureWindowsPath
from typing import TextIO

import polars as pl
from tqdm import tqdm

from src import artifacts
from src.data import locators
from src.paths import as_text, display_path, resolve

IMAGE_COLUMNS = (
    "image",
    "image_path",
    "filepath",
    "file_name",
    "image_name",
    "img_path",
    "filename",
    "jpg",
    "png",
    "webp",
)
TEXT_COLUMNS = (
    "prompt",
    "Prompt",
    "text",
    "TEXT",
    "caption",
    "top_caption",
    "orig_text",
    "txt",
    "p",
)
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
BEGINNING = 100  # lines of a JSON-lines file in which its columns are looked for
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ROW = {
    "id": pl.String,
    "image": pl.String,
    "prompt": pl.String,
    "source": pl.String,
    "reason": pl.String,
}
BLURRED = "blurred by the publisher"  # DiffusionDB's image_nsfw == 2.0
NO_IMAGE = "no image in the sample"
NOT_DELIVERED = "not downloaded"  # img2dataset's status is not "success"

# Midjourney's flags end a prompt: "a fox --ar 16:9 --v 4 --no text, frame"; phones write a long dash for two
FLAG = re.compile(
    r"(?:--|—)(?:no\s+(?:(?!--|—).)*|[a-zA-Z][a-zA-Z0-9]*(?:\s+(?:[\d.:]+%?|raw|cute|expressive|scenic)(?=\s|$|,))?)"
)
URL = re.compile(r"<?https?://\S+>?")
HALF_PAIR = re.compile(
    "[\ud800-\udfff]"
)  # of surrogates: JSON can spell one out, no UTF-8 file can hold it

csv.field_size_limit(sys.maxsize)  # prompts of scraped sets can be longer than Python's limit


def recognise(path: Path) -> str:
    """The layout at `path`. Raises ValueError naming what is there and what is known."""
    found = next((layout for layout, (is_so, _) in LAYOUTS.items() if is_so(path)), None)
    if found is None:
        there = sorted(p.name for p in path.iterdir())[:5] if path.is_dir() else [path.name]
        raise ValueError(
            f"train: {display_path(path)} has neither prompts.csv with images/ nor a table with an image and a text column, "
            f"nor another known layout ({', '.join(LAYOUTS)}); it holds {there}. Name the layout, or name a table"
        )
    return found


def read(path: Path, layout: str | None, text_column: str | None) -> pl.DataFrame:
    """The rows at `path` as a table `id, image, prompt, source, reason`. Raises ValueError for an unknown layout."""
    layout = layout or recognise(path)
    if layout not in LAYOUTS:
        raise ValueError(
            f"train: layout {layout!r} of {display_path(path)} is not one of {', '.join(LAYOUTS)}"
        )
    return LAYOUTS[layout][1](path, text_column)


# --- tables ---


def load_table(file: Path) -> pl.DataFrame:
    """A CSV, TSV, JSON-lines or Parquet table; text formats as strings, a row that is no JSON or has too many cells as nulls.

    Raises ValueError naming a file that is broken, empty or has a column twice.
    """
    if file.suffix == ".parquet":
        return artifacts.load_table(file)
    if file.suffix in (".jsonl", ".ndjson"):
        return _json_lines(file)
    if file.suffix not in TABLES:
        raise ValueError(f"{display_path(file)}: a table must be one of {', '.join(TABLES)}")
    with opened(file) as stream:
        rows = list(_cells(file, stream))
    if not rows:
        raise ValueError(f"{display_path(file)}: no rows below the header")
    columns = list(dict.fromkeys(chain.from_iterable(rows)))
    return pl.DataFrame(
        {name: [row.get(name) for row in rows] for name in columns},
        schema=dict.fromkeys(columns, pl.String),
    )


def opened(file: Path, newline: str | None = "") -> TextIO:
    """A text file: UTF-16 by its mark, as spreadsheets write it, else UTF-8, with U+FFFD for what is neither."""
    with open(file, "rb") as raw:
        encoding = (
            "utf-16" if raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
        )
    return open(file, encoding=encoding, errors="replace", newline=newline)


def _cells(file: Path, stream: TextIO) -> Iterator[dict[str, str | None]]:
    """The rows of a CSV or TSV by column. Empty for one with more cells than the header: which cell was split cannot be known."""
    # Python's reader takes the short and oddly quoted rows that scraped prompts have
    rows = csv.DictReader(
        (line.replace("\0", "") for line in stream),
        delimiter="\t" if file.suffix == ".tsv" else ",",
    )
    names = [name for name in rows.fieldnames or [] if name]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"{display_path(file)}: columns are there twice: {doubled}")
    for row in rows:
        yield {} if any(row.pop(None, [])) else row


def _json_lines(file: Path) -> pl.DataFrame:
    with opened(file, newline=None) as stream:
        rows = [_json(line) for line in stream if line.strip()]
    columns = list(dict.fromkeys(chain.from_iterable(rows)))
    if not columns:
        raise ValueError(f"{display_path(file)}: none of its {len(rows)} lines is a JSON object")
    return pl.DataFrame(
        {c: [_text(row.get(c)) for row in rows] for c in columns},
        schema=dict.fromkeys(columns, pl.String),
    )


def _text(value: object) -> str | None:
    return (
        value if isinstance(value, str) or value is None else json.dumps(value, ensure_ascii=False)
    )


def column_of(
    columns: Iterable[str], known: tuple[str, ...], named: str | None, file: Path, what: str
) -> str:
    """The column called `named`, else the first of `known` that is there. Raises ValueError naming the file and its columns."""
    columns = list(columns)
    found = next((c for c in ([named] if named else known) if c in columns), None)
    if found is None:
        called = f" {named}" if named else ""
        raise ValueError(
            f"{display_path(file)}: no {what} column{called} among {columns}; known names are {', '.join(known)}"
        )
    return found


def column_cells(file: Path, text_column: str | None) -> Iterator[str | None]:
    """The text column of a CSV, TSV or JSON-lines table, cell by cell, so that a file of any size can be read."""
    column = column_of(_columns(file), TEXT_COLUMNS, text_column, file, "text")
    plain = file.suffix in (".csv", ".tsv")
    with opened(file, newline="" if plain else None) as stream:
        yield from (
            _text(row.get(column))
            for row in (_cells(file, stream) if plain else map(_json, stream))
        )


def _json(line: str) -> dict:
    """The JSON object in a line; empty where there is none."""
    try:
        row = parsed(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def parsed(text: str) -> object:
    """The value of a JSON text, with U+FFFD for half a surrogate pair. Raises ValueError for what is no JSON or nested too deep."""
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():
            value = json.loads(HALF_PAIR.sub("\ufffd", json.dumps(value, ensure_ascii=False)))
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value


def _columns(file: Path) -> set[str]:
    """A table's column names, from its beginning alone; of JSON lines those of the first object."""
    if file.suffix == ".parquet":
        return set(schema_of(file))
    with opened(file, newline=None) as stream:
        if file.suffix in (".csv", ".tsv"):
            first = stream.readline().replace("\0", "")
            return set(
                next(csv.reader([first], delimiter="\t" if file.suffix == ".tsv" else ","), [])
            )
        return set(next(filter(None, map(_json, islice(stream, BEGINNING))), {}))


def schema_of(file: Path) -> dict[str, pl.DataType]:
    """The columns of a Parquet file. Raises ValueError naming one that is broken."""
    with artifacts.readable(file):
        return pl.read_parquet_schema(file)


def texts_of(column: pl.Series, file: Path) -> pl.Series:
    """A text column as strings, bytes as the text they spell. Raises ValueError for what is no text, such as lists."""
    if column.dtype.is_nested():
        raise ValueError(
            f"{display_path(file)}: column {column.name} holds {column.dtype}, wanted text"
        )
    if column.dtype == pl.Binary:
        texts = [
            None if cell is None else cell.decode("utf-8", errors="replace") for cell in column
        ]
        return pl.Series(column.name, texts, dtype=pl.String)
    return column.cast(pl.String)


def _tables(path: Path) -> list[Path]:
    """The tables of images and prompts at `path`: itself, its metadata file, or every table in it that has both columns."""
    if path.is_file():
        return [path] if path.suffix in TABLES else []
    metadata = [path / name for name in METADATA if (path / name).exists()]
    if metadata:
        return metadata[:1]
    files = sorted(f for f in path.iterdir() if f.suffix in TABLES and f.is_file())
    return [
        f for f in files if _columns(f) & set(IMAGE_COLUMNS) and _columns(f) & set(TEXT_COLUMNS)
    ]


def _is_table(path: Path) -> bool:
    return bool(_tables(path))


def _read_table(path: Path, text_column: str | None) -> pl.DataFrame:
    parts = []
    for file in _tables(path) or [path]:
        table = load_table(file)
        image = column_of(table.columns, IMAGE_COLUMNS, None, file, "image")
        text = column_of(table.columns, TEXT_COLUMNS, text_column, file, "text")
        source = file.stem if path.is_file() and file.name not in METADATA else file.parent.name
        names = texts_of(table[image], file).fill_null("")
        parts.append(
            _rows(
                ids=_ids(source, names),
                images=located(file.parent, names),
                prompts=texts_of(table[text], file),
                source=source,
            )
        )
    return pl.concat(parts)


def _rows(*, ids, images, prompts, source: str, reasons=None) -> pl.DataFrame:
    reasons = [None] * len(ids) if reasons is None else reasons
    frame = pl.DataFrame(
        {"id": ids, "image": images, "prompt": prompts},
        schema={k: ROW[k] for k in ("id", "image", "prompt")},
    )
    return frame.with_columns(
        pl.lit(source).alias("source"), pl.Series("reason", reasons, dtype=pl.String)
    )


def _ids(source: str, names: pl.Series) -> pl.Series:
    return pl.select(pl.lit(source + "/") + names.str.replace(r"\.[A-Za-z0-9]+$", "")).to_series()


def located(folder: Path, names: Iterable[str]) -> list[str]:
    """Where each named image lies: in `folder`, or, for a path of another machine, at the longest tail that is there."""
    found, cut = [], 0
    for name in names:
        parts = PureWindowsPath(name).parts  # splits at / and \ alike
        absolute = bool(parts) and (PureWindowsPath(name).root != "" or ":" in parts[0])
        if not absolute or os.path.isfile(resolve(name)):
            found.append(display_path(folder / name) if not absolute else display_path(Path(name)))
            continue
        tails = (
            k
            for k in dict.fromkeys((cut, *range(1, len(parts))))
            if os.path.isfile(folder.joinpath(*parts[max(k, 1) :]))
        )
        cut = max(next(tails, 1), 1)
        found.append(display_path(folder.joinpath(*parts[cut:])))
    return found


# --- the competition ---


def _is_competition(path: Path) -> bool:
    return (path / "prompts.csv").exists() and (path / "images").is_dir()


def _read_competition(path: Path, text_column: str | None) -> pl.DataFrame:
    table = load_table(path / "prompts.csv")
    if not {"imgId", "prompt"} <= set(table.columns):
        raise ValueError(
            f"{display_path(path / 'prompts.csv')}: columns are {table.columns}, wanted imgId and prompt"
        )
    ids = table["imgId"].fill_null("")
    return _rows(
        ids=ids,
        images=[display_path(path / "images" / f"{i}.png") for i in ids],
        prompts=table["prompt"],
        source=path.name,
    )


# --- a table of prompts beside <row number>.png ---


def _numbered(path: Path) -> tuple[Path, Path] | None:
    """The table of prompts and the folder of numbered images at `path`."""
    tables = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in TABLES)
    for file in (f for f in tables if f.suffix in TABLES and _columns(f) & set(TEXT_COLUMNS)):
        for folder in (
            file.with_suffix(""),
            file.parent,
            *sorted(p for p in file.parent.iterdir() if p.is_dir()),
        ):
            if any(
                (folder / f"{row}{suffix}").exists() for row in (0, 1) for suffix in IMAGE_SUFFIXES
            ):
                return file, folder
    return None


def _read_numbered(path: Path, text_column: str | None) -> pl.DataFrame:
    found = _numbered(path)
    if found is None:
        raise ValueError(
            f"{display_path(path)}: no table with a text column beside a folder of images named by row number (0.png, ...)"
        )
    file, folder = found
    table = load_table(file)
    text = column_of(table.columns, TEXT_COLUMNS, text_column, file, "text")
    suffix = next(
        s for s in IMAGE_SUFFIXES if any((folder / f"{row}{s}").exists() for row in (0, 1))
    )
    first = 0 if (folder / f"0{suffix}").exists() else 1
    names = [str(row) for row in range(first, first + len(table))]
    return _rows(
        ids=[f"{file.stem}/{name}" for name in names],
        images=[display_path(folder / (name + suffix)) for name in names],
        prompts=texts_of(table[text], file),
        source=file.stem,
    )


# --- DiffusionDB ---


def _parts(path: Path) -> list[Path]:
    """The part-*.json files of a DiffusionDB folder, which lie beside the part's images or above them."""
    if path.is_file():
        return [path] if re.fullmatch(r"part-\d+\.json", path.name) else []
    return sorted(
        chain(path.glob("part-*.json"), path.glob("*/part-*.json"), path.glob("*/*/part-*.json"))
    )


def _part_folders(path: Path) -> dict[int, Path]:
    folders = (p for p in chain(path.glob("part-*"), path.glob("*/part-*")) if p.is_dir())
    return {
        int(p.name.removeprefix("part-")): p
        for p in folders
        if p.name.removeprefix("part-").isdigit()
    }


def _is_diffusiondb(path: Path) -> bool:
    return bool(_parts(path)) or (
        path.is_dir() and bool(_diffusiondb_tables(path)) and bool(_part_folders(path))
    )


def _diffusiondb_tables(path: Path) -> list[Path]:
    files = (path / name for name in ("metadata.parquet", "metadata-large.parquet"))
    return [f for f in files if f.exists() and {"image_name", "part_id"} <= _columns(f)]


def _read_diffusiondb(path: Path, text_column: str | None) -> pl.DataFrame:
    root = path if path.is_dir() else path.parent
    tables = [
        artifacts.load_table(
            f, [c for c in ("image_name", "part_id", "prompt", "image_nsfw") if c in _columns(f)]
        )
        for f in _diffusiondb_tables(root)
    ]
    parts = _parts(path)
    named = (
        _diffusiondb_from_parts(parts)
        if parts
        else _diffusiondb_from_tables(tables, _part_folders(root))
    )
    blurred = {
        name
        for t in tables
        if "image_nsfw" in t.columns
        for name in t.filter(pl.col("image_nsfw") == 2.0)["image_name"]
    }
    return _rows(
        ids=[f"{root.name}/{Path(image).stem}" for image, _, _ in named],
        images=[image for image, _, _ in named],
        prompts=[prompt for _, prompt, _ in named],
        source=root.name,
        reasons=[BLURRED if Path(image).name in blurred else reason for image, _, reason in named],
    )


def _diffusiondb_from_parts(parts: list[Path]) -> list[tuple[str, str | None, str | None]]:
    found = []
    for part in tqdm(parts, desc="reading parts", unit="part", disable=len(parts) < 20):
        try:
            rows = parsed(part.read_text(encoding="utf-8", errors="replace"))
            if not isinstance(rows, dict):
                raise ValueError(f"it holds a {type(rows).__name__}")
        except ValueError as error:
            found.append((display_path(part), None, f"part is no JSON: {error}"))
            continue
        folder = part.with_suffix("") if part.with_suffix("").is_dir() else part.parent
        nested = next((f for f in (folder / "images", folder) if f.is_dir()), folder)
        found += [
            (
                display_path(nested / name),
                _text(row.get("p")) if isinstance(row, dict) else None,
                None,
            )
            for name, row in rows.items()
        ]
    return found


def _diffusiondb_from_tables(
    tables: list[pl.DataFrame], folders: dict[int, Path]
) -> list[tuple[str, str | None, None]]:
    rows = (
        row
        for table in tables
        for row in table.filter(pl.col("part_id").is_in(list(folders))).iter_rows(named=True)
    )
    return [
        (display_path(folders[row["part_id"]] / (row["image_name"] or "")), row.get("prompt"), None)
        for row in rows
    ]


# --- samples of files with one stem: WebDataset shards, and img2dataset's output as shards or files ---


def _is_shards(path: Path) -> bool:
    return bool(_shards(path))


def _shards(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".tar" else []
    return sorted(path.glob("*.tar")) or sorted(path.glob("*/*.tar"))


def _read_shards(path: Path, text_column: str | None) -> pl.DataFrame:
    shards, root = _shards(path), path if path.is_dir() else path.parent
    rows = [
        row
        for shard in tqdm(shards, desc="reading shards", unit="shard", disable=len(shards) < 20)
        for row in chain(
            _shard_rows(shard, text_column), _not_delivered(shard.with_suffix(".parquet"))
        )
    ]
    return _samples(rows, root.name)


def _samples(rows: list[tuple], source: str) -> pl.DataFrame:
    ids, images, prompts, reasons = zip(*rows, strict=True) if rows else ([], [], [], [])
    return _rows(
        ids=[as_text(f"{source}/{i}") for i in ids],
        images=list(images),
        prompts=list(prompts),
        source=source,
        reasons=list(reasons),
    )


def _shard_rows(
    shard: Path, text_column: str | None
) -> Iterator[tuple[str, str, str | None, str | None]]:
    """(id, image, prompt, reason) of each sample of a tar shard; a cut shard gives what is whole and one row for the rest."""
    key, members = None, {}
    with open(shard, "rb") as raw:
        try:
            with tarfile.open(shard, "r:", errors="replace") as tar:
                for member in tar:
                    tar.members.clear()  # tarfile keeps every header otherwise
                    if member.size < 0:  # it would be read over and over
                        raise tarfile.TarError("a member has a negative size")
                    if not member.isfile():
                        continue
                    folder, _, name = member.name.rpartition("/")
                    stem, _, extension = name.partition(".")
                    if (folder, stem) != key and members:
                        yield _sample(shard, key, members, raw, text_column)
                        members = {}
                    key = folder, stem
                    members["." + extension.lower()] = member
                raw.seek(tar.offset)
                if raw.read(tarfile.BLOCKSIZE).strip(
                    b"\0"
                ):  # tarfile takes what it cannot read for the end
                    raise tarfile.TarError("a header is damaged")
        except Exception as error:  # tarfile raises what it likes on a damaged header: MemoryError, OverflowError, ...
            said = str(error) or type(error).__name__
            yield (
                f"{shard.stem}/rest",
                display_path(shard),
                None,
                f"shard cannot be read on: {said}",
            )
        if members:  # the last sample, after the end or before the cut
            yield _sample(shard, key, members, raw, text_column)


def _sample(
    shard: Path, key: tuple[str, str], members: dict, raw, text_column: str | None
) -> tuple:
    def content(member: tarfile.TarInfo) -> bytes:
        raw.seek(member.offset_data)
        return raw.read(
            min(member.size, os.fstat(raw.fileno()).st_size)
        )  # a header can claim any size

    picture = next(
        (members[e] for e in members if "." + e.rpartition(".")[2] in IMAGE_SUFFIXES), None
    )
    name = "/".join(filter(None, (shard.stem, *key)))
    prompt = _prompt_of({e: lambda m=m: content(m) for e, m in members.items()}, text_column)
    if picture is None:
        return name, display_path(shard), prompt, NO_IMAGE
    return (
        name,
        locators.in_tar(shard, picture.name, offset=picture.offset_data, size=picture.size),
        prompt,
        None,
    )


def _prompt_of(members: dict, text_column: str | None) -> str | None:
    """The prompt of a sample from its .txt, else from its .json; `members` are functions that give a file's bytes."""
    if ".txt" in members and text_column is None:
        return members[".txt"]().decode("utf-8", errors="replace")
    if ".json" not in members:
        return None
    try:
        values = parsed(members[".json"]().decode("utf-8", errors="replace"))
    except ValueError:
        return None
    return (
        next(
            (
                _text(values[c])
                for c in ([text_column] if text_column else TEXT_COLUMNS)
                if c in values
            ),
            None,
        )
        if isinstance(values, dict)
        else None
    )


def _not_delivered(table: Path) -> Iterator[tuple[str, str, str | None, str]]:
    """The rows that img2dataset's own table, beside a shard or a folder, says it could not download."""
    if not table.exists() or not {"key", "status"} <= _columns(table):
        return
    frame = artifacts.load_table(table).filter(pl.col("status") != "success")
    text = next((c for c in TEXT_COLUMNS if c in frame.columns), None)
    for row in frame.iter_rows(named=True):
        yield (
            f"{table.stem}/{row['key']}",
            display_path(table),
            _text(row[text]) if text else None,
            f"{NOT_DELIVERED}: {row['status']}",
        )


def _is_files(path: Path) -> bool:
    """Whether images lie with a text or JSON file of the same stem, in `path` or in folders of it."""
    if not path.is_dir():
        return False
    texts = chain(
        path.glob("*.txt"), path.glob("*.json"), path.glob("*/*.txt"), path.glob("*/*.json")
    )
    return any(text.with_suffix(suffix).exists() for text in texts for suffix in IMAGE_SUFFIXES)


def _read_files(path: Path, text_column: str | None) -> pl.DataFrame:
    rows = []
    for folder in (path, *sorted(p for p in path.iterdir() if p.is_dir())):
        samples: dict[str, dict[str, Path]] = {}
        for file in sorted(
            f
            for f in folder.iterdir()
            if f.is_file() and f.suffix.lower() in (*IMAGE_SUFFIXES, ".txt", ".json")
        ):
            samples.setdefault(file.stem, {})[file.suffix.lower()] = file
        prefix = "" if folder == path else f"{folder.name}/"
        for stem, members in samples.items():
            picture = next((f for suffix, f in members.items() if suffix in IMAGE_SUFFIXES), None)
            if picture or ".txt" in members:  # img2dataset's own 00000_stats.json is no sample
                prompt = _prompt_of({e: f.read_bytes for e, f in members.items()}, text_column)
                rows.append(
                    (
                        prefix + stem,
                        display_path(picture or folder / stem),
                        prompt,
                        None if picture else NO_IMAGE,
                    )
                )
        rows += _not_delivered(folder.with_suffix(".parquet")) if folder != path else []
    return _samples(rows, path.name)


# --- images inside Parquet files ---


def _parquet_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    files = (
        sorted(path.glob("*.parquet"))
        or sorted(path.glob("data/*.parquet"))
        or sorted(path.glob("*/*.parquet"))
    )
    return [f for f in files if f.name.startswith("train")] or files


def _image_column(file: Path) -> str | None:
    """The column that holds encoded images: bytes, or a struct with `bytes`."""
    for name, kind in schema_of(file).items():
        if kind == pl.Binary or (
            isinstance(kind, pl.Struct) and "bytes" in {f.name for f in kind.fields}
        ):
            return name
    return None


def _is_parquet(path: Path) -> bool:
    return any(_image_column(file) for file in _parquet_files(path)[:1])


def _read_parquet(path: Path, text_column: str | None) -> pl.DataFrame:
    parts, source = [], path.name if path.is_dir() else path.stem
    for file in _parquet_files(path):
        image = _image_column(file)
        if image is None:
            raise ValueError(
                f"{display_path(file)}: no column of encoded images among {sorted(_columns(file))}"
            )
        text = column_of(_columns(file), TEXT_COLUMNS, text_column, file, "text")
        prompts = texts_of(artifacts.load_table(file, [text])[text], file)
        parts.append(
            _rows(
                ids=[f"{source}/{file.stem}/{row}" for row in range(len(prompts))],
                prompts=prompts,
                source=source,
                images=[locators.in_table(file, image, row) for row in range(len(prompts))],
            )
        )
    if not parts:
        raise ValueError(f"{display_path(path)}: no .parquet file in it")
    return pl.concat(parts)


# --- JourneyDB ---


def without_flags(prompt: str) -> str:
    """A Midjourney prompt without its flags (`--ar 16:9`) and URLs."""
    return " ".join(FLAG.sub(" ", URL.sub(" ", prompt)).split()).rstrip(" ,")


def _journeydb_tables(path: Path) -> list[Path]:
    files = (
        [path] if path.is_file() else sorted(chain(path.glob("*.jsonl"), path.glob("*/*.jsonl")))
    )
    return [f for f in files if f.suffix == ".jsonl" and "img_path" in _columns(f)]


def _is_journeydb(path: Path) -> bool:
    return any("Task2" in _columns(f) for f in _journeydb_tables(path))


def _read_journeydb(path: Path, text_column: str | None) -> pl.DataFrame:
    parts, root = [], path if path.is_dir() else path.parent
    for file in _journeydb_tables(path):
        table = load_table(file)
        outer, _, inner = (text_column or "prompt").partition(".")
        prompts = [
            _inner(value, inner)
            for value in table[column_of(table.columns, (), outer, file, "text")]
        ]
        names = table["img_path"].fill_null("").str.strip_prefix("./")
        folder = next(
            (
                f
                for f in (file.parent, file.parent / "imgs", root / "imgs")
                if any(os.path.isfile(f / name) for name in names[:50])
            ),
            file.parent,
        )
        parts.append(
            _rows(
                ids=_ids(root.name, names),
                images=located(folder, names),
                source=root.name,
                prompts=[None if p is None else without_flags(p) for p in prompts],
            )
        )
    return pl.concat(parts)


def _inner(value: str | None, name: str) -> str | None:
    """`Caption` of the JSON text that a cell such as `Task2` holds; the cell itself without a name."""
    if value is None or not name:
        return value
    try:
        return _text(parsed(value).get(name))
    except (ValueError, AttributeError):
        return None


# --- COCO captions ---


COCO = {
    "images": {"id": int | str, "file_name": str},
    "annotations": {"image_id": int | str},
}  # what a row is made of


def _coco_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".json" and path.name.startswith("captions_") else []
    return sorted(path.glob("annotations/captions_*.json")) or sorted(path.glob("captions_*.json"))


def _is_coco(path: Path) -> bool:
    return bool(_coco_files(path))


def _coco(file: Path) -> dict:
    """The content of a COCO file. Raises ValueError naming one that is no JSON or lacks what makes a row."""
    with artifacts.readable(file):
        content = parsed(file.read_text(encoding="utf-8"))
        for part, wanted in COCO.items():
            if not all(
                isinstance(entry.get(name), kind)
                for entry in content[part]
                for name, kind in wanted.items()
            ):
                raise ValueError(f"not every entry of its {part} has {' and '.join(wanted)}")
        return content


def _read_coco(path: Path, text_column: str | None) -> pl.DataFrame:
    rows = []
    for file in _coco_files(path) or [path]:
        root = file.parent.parent if file.parent.name == "annotations" else file.parent
        content = _coco(file)
        names = {image["id"]: image["file_name"] for image in content["images"]}
        split = file.stem.removeprefix("captions_")
        folder = next(
            (
                f
                for f in (root / split, root / "images" / split, root / "images", root)
                if any(os.path.isfile(f / name) for name in list(names.values())[:50])
            ),
            root / split,
        )
        for note in content["annotations"]:
            name = names.get(note["image_id"])
            rows.append(
                (
                    f"{split}/{Path(name or str(note['image_id'])).stem}#{note.get('id', len(rows))}",
                    display_path(folder / (name or str(note["image_id"]))),
                    _text(note.get("caption")),
                    None if name else "its image is not listed",
                )
            )
    return _samples(rows, (path if path.is_dir() else path.parent.parent).name)


LAYOUTS = {  # in the order they are tried
    "competition": (_is_competition, _read_competition),
    "diffusiondb": (_is_diffusiondb, _read_diffusiondb),
    "coco": (_is_coco, _read_coco),
    "journeydb": (_is_journeydb, _read_journeydb),
    "webdataset": (_is_shards, _read_shards),
    "parquet": (_is_parquet, _read_parquet),
    "table": (_is_table, _read_table),
    "numbered": (_numbered, _read_numbered),
    "files": (_is_files, _read_files),
}
