"""The images below a folder, and the other files there, which are counted by name."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from src.data.images import IMAGE_SUFFIXES
from src.errors import UserError
from src.paths import as_text, display_path

EXAMPLES = 3  # names shown for a kind of skipped file


@dataclass
class ImageFolder:
    """The files below `folder`, as paths relative to it.

    `images` is sorted; `skipped` names the other files by what they are.
    """

    folder: Path
    images: list[str] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def summary(self) -> str:
        """What was skipped, in words; empty when nothing was."""
        kinds = []
        for kind, names in sorted(self.skipped.items()):
            examples = ", ".join(as_text(name) for name in sorted(names)[:EXAMPLES])
            more = ", ..." if len(names) > EXAMPLES else ""
            kinds.append(f"{len(names)} {kind} ({examples}{more})")
        return f"skipped: {'; '.join(kinds)}" if kinds else ""


def read_folder(folder: Path) -> ImageFolder:
    """Every file below `folder`, linked folders included. UserError when none is an image."""
    if not folder.is_dir():
        raise UserError(f"--images: {display_path(folder)} is not a folder")

    listing = ImageFolder(folder)
    for file in _files(folder, (), listing):
        name = file.relative_to(folder).as_posix()
        suffix = file.suffix.lower()
        if file.name.startswith("."):
            listing.skipped.setdefault("hidden", []).append(name)
        elif suffix in IMAGE_SUFFIXES:
            listing.images.append(name)
        else:
            listing.skipped.setdefault(suffix or "without an ending", []).append(name)

    if not listing.images:
        skipped = listing.summary()
        raise UserError(
            f"--images: no image ({', '.join(IMAGE_SUFFIXES)}) in {display_path(folder)} "
            "or below it" + (f"; {skipped}" if skipped else "")
        )
    listing.images.sort()
    return listing


def _files(folder: Path, above: tuple[str, ...], listing: ImageFolder) -> Iterator[Path]:
    """Every file below `folder`; a link to one of the folders `above` it is not followed."""
    # a link upwards would be followed forever
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError:
        name = folder.relative_to(listing.folder).as_posix()
        listing.skipped.setdefault("folders that cannot be opened", []).append(name)
        return

    for entry in entries:
        if entry.is_dir():
            yield from _files(Path(entry.path), (*above, real), listing)
        else:
            yield Path(entry.path)
