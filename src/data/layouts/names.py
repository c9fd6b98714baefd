"""The names that columns and files are known by."""

import os
from collections.abc import Iterable
from pathlib import Path, PurePath

from src.data.images import IMAGE_SUFFIXES
from src.paths import display_path

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

# files and folders that macOS, Windows and NAS systems leave beside the data
SIDECARS = (".ds_store", "__macosx", "thumbs.db", "desktop.ini", "@eadir")
GZIP = ".gz"


def is_sidecar(name: str) -> bool:
    """Whether a file or folder name, or a folder on the way to it, is a system's own."""
    parts = name.split("/")
    return any(part.startswith("._") or part.lower() in SIDECARS for part in parts)


def suffix_of(file: str | PurePath) -> str:
    """The ending in lower case, without the .gz of a compressed table: `.csv` of `A.CSV.gz`."""
    name = os.path.basename(file).lower()
    return os.path.splitext(name.removesuffix(GZIP))[1]


def is_image(name: str | PurePath) -> bool:
    """Whether a name, or an ending such as `.input.jpg`, ends as images do."""
    return str(name).lower().endswith(IMAGE_SUFFIXES)


def entries_of(folder: Path) -> list[Path]:
    """What lies in a folder, sorted, without sidecar files."""
    return [folder / name for name in sorted(os.listdir(folder)) if not is_sidecar(name)]


def folders_of(folder: Path) -> list[Path]:
    """The folders in a folder, linked ones included, sorted, without those of a system."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not is_sidecar(entry.name)]
    return [folder / name for name in sorted(names)]


def files_of(path: Path, suffixes: tuple[str, ...], depth: int = 1) -> list[Path]:
    """The files with one of the endings at `path`: itself, or those up to `depth` folders deep."""
    if path.is_file():
        return [path] if suffix_of(path) in suffixes else []

    with os.scandir(path) as entries:
        names = [entry.name for entry in entries if suffix_of(entry.name) in suffixes]

    # a folder may be called images.csv too
    files = [path / name for name in names if not is_sidecar(name)]
    files = [file for file in files if file.is_file()]
    if depth > 1:
        for folder in folders_of(path):
            files += files_of(folder, suffixes, depth - 1)
    return sorted(files)


def labels_of(files: list[Path], root: Path) -> list[str]:
    """A name for each file that no other has: its stem, else its path below `root`."""
    # two shards of one name in different folders must not give rows one id
    stems = [file.stem for file in files]
    if len(set(stems)) == len(stems):
        return stems
    return [file.relative_to(root).with_suffix("").as_posix() for file in files]


def report_skipped(path: Path, names: list[str], why: str) -> None:
    """Print how many files of a source are not read, and the first of them."""
    if names:
        more = ", ..." if len(names) > 3 else ""
        print(f"{display_path(path)}: {len(names)} {why}: {', '.join(names[:3])}{more}")


def folder_in(path: Path, name: str) -> Path | None:
    """The folder called `name` in `path`, in any letter case; None where there is none."""
    # as it is spelled comes first: on some disks images/ and Images/ are two folders
    if (path / name).is_dir():
        return path / name
    if not path.is_dir():
        return None
    for folder in folders_of(path):
        if folder.name.lower() == name.lower():
            return folder
    return None


def column_of(
    columns: Iterable[str], known: tuple[str, ...], named: str | None, file: Path, what: str
) -> str:
    """The column called `named`, else the first of `known` that `columns` has.

    Raises ValueError naming the file and its columns.
    """
    columns = list(columns)
    wanted = [named] if named else known
    for column in wanted:
        if column in columns:
            return column

    called = f" {named}" if named else ""
    raise ValueError(
        f"{display_path(file)}: no {what} column{called} among {columns}; "
        f"known names are {', '.join(known)}"
    )
