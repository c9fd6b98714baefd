"""COCO captions: JSON files that list images, and captions by the image's id."""

from pathlib import Path
from types import UnionType

import polars as pl

from src import artifacts
from src.data.layouts.lookup import Finder, first_folder
from src.data.layouts.names import files_of, folder_in
from src.data.layouts.rows import Row, from_rows, rows_of
from src.data.layouts.text import captions_of, decode, parse_object

UNLISTED = "its image is not listed"

# what a row is made of
WANTED: dict[str, dict[str, type | UnionType]] = {
    "images": {"id": int | str, "file_name": str},
    "annotations": {"image_id": int | str},
}


def is_coco(path: Path) -> bool:
    """Whether `path` is or holds captions_*.json."""
    return bool(_caption_files(path))


def _caption_files(path: Path) -> list[Path]:
    annotations = folder_in(path, "annotations")
    for folder in (annotations, path):
        if folder is not None:
            files = files_of(folder, (".json",))
            files = [file for file in files if file.name.startswith("captions_")]
            if files:
                return files
    return []


def read_coco(path: Path, text_column: str | None) -> pl.DataFrame:
    """A row for each caption; ids are `<source>/<split>/<image>#<caption's id>`."""
    rows: list[Row] = []
    for file in _caption_files(path) or [path]:
        content = _content(file)
        names = {image["id"]: image["file_name"] for image in content["images"]}

        # images lie beside annotations/, under the split's name or all together
        is_below = file.parent.name.lower() == "annotations"
        root = file.parent.parent if is_below else file.parent
        split = file.stem.removeprefix("captions_")
        folders = (root / split, root / "images" / split, root / "images", root)
        finder = Finder(first_folder(folders, list(names.values())) or root / split)

        for entry in content["annotations"]:
            listed = names.get(entry["image_id"])
            name = listed or str(entry["image_id"])
            image, lost = finder.find(name)
            rows += rows_of(
                name=f"{split}/{Path(name).stem}#{entry.get('id', len(rows))}",
                image=image,
                captions=captions_of(entry.get("caption")),
                reason=lost if listed else UNLISTED,
            )

    source = path if path.is_dir() else path.parent.parent
    return from_rows(rows, source.name)


def _content(file: Path) -> dict:
    """The content of a COCO file.

    Raises ValueError naming one that is not JSON or lacks what makes a row.
    """
    with artifacts.readable(file):
        content = parse_object(decode(file.read_bytes()))
        for part, wanted in WANTED.items():
            for entry in content[part]:
                if not all(isinstance(entry.get(name), kind) for name, kind in wanted.items()):
                    raise ValueError(f"not every entry of its {part} has {' and '.join(wanted)}")
        return content
