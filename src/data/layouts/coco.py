"""COCO captions: JSON files that list images, and captions by the image's id."""

from pathlib import Path

import polars as pl

from src import artifacts
from src.data.layouts.rows import Row, first_folder, from_rows
from src.data.layouts.text import parse_json, to_text
from src.paths import display_path

# what a row is made of
WANTED = {
    "images": {"id": int | str, "file_name": str},
    "annotations": {"image_id": int | str},
}


def is_coco(path: Path) -> bool:
    """Whether `path` is or holds captions_*.json."""
    return bool(_caption_files(path))


def _caption_files(path: Path) -> list[Path]:
    if path.is_file():
        is_caption_file = path.suffix == ".json" and path.name.startswith("captions_")
        return [path] if is_caption_file else []
    return sorted(path.glob("annotations/captions_*.json")) or sorted(path.glob("captions_*.json"))


def read_coco(path: Path, text_column: str | None) -> pl.DataFrame:
    """A row for each caption; ids are `<source>/<split>/<image>#<caption's id>`."""
    rows = []
    for file in _caption_files(path) or [path]:
        content = _content(file)
        names = {image["id"]: image["file_name"] for image in content["images"]}

        root = file.parent.parent if file.parent.name == "annotations" else file.parent
        split = file.stem.removeprefix("captions_")
        folders = (root / split, root / "images" / split, root / "images", root)
        folder = first_folder(folders, list(names.values())) or root / split

        for entry in content["annotations"]:
            listed = names.get(entry["image_id"])
            name = listed or str(entry["image_id"])
            row = Row(
                name=f"{split}/{Path(name).stem}#{entry.get('id', len(rows))}",
                image=display_path(folder / name),
                prompt=to_text(entry.get("caption")),
                reason=None if listed else "its image is not listed",
            )
            rows.append(row)

    source = path if path.is_dir() else path.parent.parent
    return from_rows(rows, source.name)


def _content(file: Path) -> dict:
    """The content of a COCO file.

    Raises ValueError naming one that is no JSON or lacks what makes a row.
    """
    with artifacts.readable(file):
        content = parse_json(file.read_text(encoding="utf-8"))
        for part, wanted in WANTED.items():
            for entry in content[part]:
                if not all(isinstance(entry.get(name), kind) for name, kind in wanted.items()):
                    raise ValueError(f"not every entry of its {part} has {' and '.join(wanted)}")
        return content
