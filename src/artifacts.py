"""Reads and writes the files between notebooks: aligned, checked, and whole.

Two artifacts meet by id, never by position; a file is written under a temporary name and then
renamed, so a file that exists is whole.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from src.paths import META, ROOT, display_path

VERSIONS = (
    "torch",
    "open_clip_torch",
    "timm",
    "sentence-transformers",
    "numpy",
    "polars",
    "faiss-cpu",
    "cuml-cu13",
)

BEGINNING = 256  # bytes of a file that tell what it is
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, which becomes `path` when the block succeeds.

    Otherwise the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> Path:
    """`path` itself, where a file can be written there; ValueError names what is in the way."""
    if path.is_dir():
        raise ValueError(f"{display_path(path)} is a folder: a file is to be written there")

    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise ValueError(f"{display_path(path)} cannot be written: {parent.name} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{display_path(path)} cannot be written: no permission")
    return path


def reserved(path: Path, dtype: np.dtype | type, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy file mapped for writing, with its disk space reserved at once.

    A full disk raises OSError here; a page that finds no space later would kill the process
    (SIGBUS).
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    reserve(path, path.stat().st_size)
    return array


def reserve(path: Path, size: int, *, offset: int = 0) -> None:
    """Reserve disk space for `size` bytes of a file from `offset` on; OSError naming it on a full
    disk.

    Nothing happens on a system that cannot reserve space.
    """
    if not hasattr(os, "posix_fallocate"):
        return

    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), offset, size)
        except OSError as error:
            number = error.errno or 0
            raise OSError(number, os.strerror(number), str(path)) from None


def check_embeddings(ids: Sequence[str], x: np.ndarray, what: str) -> None:
    """Raise ValueError with the offending numbers unless `x` is (n, d) float32, n the unique ids.

    Every value must be finite.
    """
    if x.ndim != 2 or x.dtype != np.float32:
        raise ValueError(
            f"{what}: embeddings must be 2-D float32, got {x.ndim}-D {x.dtype} of shape {x.shape}"
        )
    if len(ids) != len(x):
        raise ValueError(f"{what}: {len(ids)} ids for {len(x)} embeddings")

    series = pl.Series(ids, dtype=pl.String)
    if series.null_count():
        raise ValueError(f"{what}: {series.null_count()} ids are null")

    doubled = series.filter(series.is_duplicated()).unique(maintain_order=True)
    if len(doubled):
        raise ValueError(
            f"{what}: {len(doubled)} ids occur more than once, e.g. {doubled[:3].to_list()}"
        )

    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{what}: {len(bad)} rows hold NaN or infinity, e.g. row {bad[0]} (id {ids[bad[0]]!r})"
        )


def _embedding_files(path: Path) -> tuple[Path, Path]:
    return path.with_name(path.name + ".npy"), path.with_name(path.name + ".ids.parquet")


def save_embeddings(path: Path, ids: Sequence[str], x: np.ndarray) -> None:
    """Write `<path>.npy`, (n, d) float32 C order, and `<path>.ids.parquet`, row i beside row i."""
    check_embeddings(ids, x, display_path(path))
    array_file, ids_file = _embedding_files(path)

    # if stopped between the two files, new rows would be paired with old ids
    ids_file.unlink(missing_ok=True)
    with atomic(array_file) as temporary:
        np.save(temporary, np.ascontiguousarray(x))
    save_table(ids_file, pl.DataFrame({"id": pl.Series(ids, dtype=pl.String)}))


def load_embeddings(path: Path, ids: Sequence[str] | None = None) -> tuple[list[str], np.ndarray]:
    """Ids and (n, d) float32 rows of `path`; with `ids`, exactly those rows in that order.

    Raises FileNotFoundError naming the stage to run, ValueError when the two files disagree or an
    id is missing.
    """
    array_file, ids_file = _embedding_files(path)
    column = load_table(ids_file, ["id"])["id"]
    if column.dtype != pl.String:
        raise ValueError(f"{display_path(ids_file)}: ids are {column.dtype}, must be text")

    have = column.to_list()
    x = load_array(_existing(array_file))
    check_embeddings(have, x, display_path(path))

    if ids is None:
        return have, x
    return list(ids), x[indices_of_ids(have, ids, display_path(path))]


def indices_of_ids(have: Sequence[str], wanted: Sequence[str], what: str) -> np.ndarray:
    """(len(wanted),) int64: where each wanted id stands in `have`.

    ValueError counts and shows the missing ones.
    """
    where = {identifier: i for i, identifier in enumerate(have)}
    missing = [identifier for identifier in wanted if identifier not in where]
    if missing:
        raise ValueError(
            f"{what}: {len(missing)} of {len(wanted)} ids are missing, e.g. {missing[:3]}"
        )

    indices = (where[identifier] for identifier in wanted)
    return np.fromiter(indices, dtype=np.int64, count=len(wanted))


def save_table(path: Path, frame: pl.DataFrame) -> None:
    """Write `frame` as Parquet, or as CSV when `path` ends in .csv."""
    with atomic(path) as temporary:
        if path.suffix == ".csv":
            frame.write_csv(temporary)
        else:
            frame.write_parquet(temporary)


def load_table(path: Path, columns: Sequence[str] = ()) -> pl.DataFrame:
    """The table that a stage wrote at `path` (.parquet or .csv), or `columns` of it.

    Raises FileNotFoundError naming the stage that writes it, IsADirectoryError, ValueError naming a
    file that is broken or lacks a column.
    """
    if _existing(path).is_dir():
        raise IsADirectoryError(f"{display_path(path)} is not a file")

    with readable(path):
        if path.suffix == ".csv":
            lazy = pl.scan_csv(path, glob=False)
        else:
            lazy = pl.scan_parquet(path, glob=False)
        if not columns:
            return lazy.collect()

        there = lazy.collect_schema().names()
        missing = [name for name in columns if name not in there]
        if not missing:
            return lazy.select(columns).collect()

    raise ValueError(f"{display_path(path)} has no column {', '.join(missing)}; there are {there}")


def load_array(path: Path, mmap_mode: Literal["r", "r+", "c"] | None = None) -> np.ndarray:
    """The .npy array at `path`, never a pickled one.

    Raises ValueError naming a file that is broken or something else.
    """
    with readable(path):
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive, not one array")
        return array


def what_is(beginning: bytes) -> str | None:
    """What a file really is, by its first bytes; None unless it is a common mix-up."""
    if not beginning:
        return "an empty file"
    if beginning.startswith(b"version https://git-lfs.github.com/"):
        return "a Git LFS pointer in place of the file: run `git lfs pull` where it came from"
    if beginning.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page, saved in place of the file: download it again"
    if beginning[4:8] == b"ftyp" and beginning[8:12] in HEIC_BRANDS:
        return "a HEIC image, which cannot be decoded here: convert it to JPEG or PNG"
    return None


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Any error inside becomes a ValueError that names the file; an OSError stays what it is."""
    try:
        yield
    except OSError:
        raise
    except (Exception, pl.exceptions.PanicException) as error:  # polars' panic is not an Exception
        reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
        kind = what_is(_beginning(path))
        if kind:
            reason = f"it is {kind}"
        raise ValueError(f"{display_path(path)} cannot be read: {reason}") from error


def _beginning(path: Path) -> bytes:
    """The first bytes of a file; a blank, which matches no kind, where it cannot be opened."""
    try:
        with open(path, "rb") as file:
            return file.read(BEGINNING)
    except OSError:
        return b" "


def save_json(path: Path, content: dict) -> None:
    """Write `content` as indented JSON."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_json(path: Path) -> dict:
    """The JSON object at `path`.

    Raises FileNotFoundError naming the stage that writes it, ValueError for anything else.
    """
    text = _existing(path).read_bytes()
    with readable(path):
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, wanted a JSON object")
        return content


def _existing(path: Path) -> Path:
    """`path`; FileNotFoundError naming the stage that writes it where it does not exist."""
    if path.exists():
        return path

    folders = (path.parent.name, path.parent.parent.name)
    stage = next((name for name in folders if name[:2].isdigit()), None)
    only = f" --only {stage[:2]}" if stage else ""
    raise FileNotFoundError(f"{display_path(path)} does not exist: run ./run_all.sh{only} first")


def fingerprint(*parts: object) -> str:
    """Hex digest of JSON-able values, arrays and paths.

    A file is represented by its size and time of change, a folder by its listing.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        elif isinstance(part, Path):
            digest.update(_listing(part).encode())
        else:
            digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _listing(path: Path) -> str:
    """Name, size and time of change of each file at or below `path`, a line each."""
    files = []
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
    elif path.exists():
        files = [path]

    stats = ((file.relative_to(path).as_posix(), file.stat()) for file in files)
    return "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)


def cached_embeddings(
    path: Path, ids: Sequence[str], key: dict, compute: Callable[[], np.ndarray]
) -> np.ndarray:
    """The (n, d) float32 rows of `ids` at `path`, if written for this `key`, else computed.

    `key` is everything that the rows depend on (texts, weights, sizes), JSON-able; it is kept in
    `<path>.json`.
    """
    key_file = path.with_name(path.name + ".json")
    wanted = fingerprint(list(ids), key)
    whole = all(file.exists() for file in (key_file, *_embedding_files(path)))
    if whole and load_json(key_file)["fingerprint"] == wanted:
        return load_embeddings(path, ids)[1]

    # a cache without its key is ignored, in case the run is stopped while writing
    key_file.unlink(missing_ok=True)
    x = compute()
    save_embeddings(path, ids, x)
    save_json(key_file, {"fingerprint": wanted})
    return x


def versions() -> dict[str, str]:
    """Versions of the installed packages that the numbers depend on."""
    installed = {"python": platform.python_version()}
    for package in VERSIONS:
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def git_commit() -> str | None:
    """The repository's commit, `+` for a changed tree; None outside a checkout or without git."""
    if shutil.which("git") is None:
        return None

    command = ["git", "describe", "--always", "--dirty=+"]
    described = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return described.stdout.strip() or None


def write_meta(folder: Path, **facts: object) -> None:
    """Write `meta.json` into a stage's folder: the given facts, versions, commit and time."""
    written = datetime.now(UTC).isoformat(timespec="seconds")
    machine = {"written": written, "commit": git_commit(), "versions": versions()}
    save_json(folder / META, {**facts, **machine})
