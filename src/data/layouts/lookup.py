"""Where a named image lies, however its name is spelled."""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path, PureWindowsPath

from src.data.layouts.names import is_image, is_sidecar
from src.data.layouts.rows import AMBIGUOUS
from src.paths import as_text, display_path, resolve

ENDING = re.compile(r"\.[A-Za-z0-9]+$")

# what makes more of a name than folders and a file: `/x`, `C:x`, `a\b`, `a//b`, `./a`, `a/../b`
SPECIAL = re.compile(r"[\\:\0]|^/|//|(?:^|/)\.{1,2}(?:/|$)|/$")


def ids_of(names: Sequence[str]) -> list[str]:
    """The ids of images by their names: without the ending, unless two names differ in it alone."""
    # cat.png and cat.jpg are two images: they keep their endings, all others lose it
    stems = [ENDING.sub("", name) for name in names]
    names_of_stem: dict[str, set[str]] = {}
    for stem, name in zip(stems, names, strict=True):
        names_of_stem.setdefault(stem, set()).add(name)
    return [
        stem if len(names_of_stem[stem]) == 1 else name
        for stem, name in zip(stems, names, strict=True)
    ]


class Finder:
    """Finds the files that names mean, in one folder and below it.

    A name is taken as it stands where that file exists. Else letter case, backslashes, composed or
    decomposed letters and a missing ending make no difference, and a path of another machine is
    taken at its longest tail that exists. A name that several files fit is refused.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._prefix = os.path.join(folder, "")
        self._shown_prefix = os.path.join(display_path(folder), "")
        self._cut = 1  # how much of another machine's path was no part of this folder
        self._entries = lru_cache(maxsize=None)(_entries)

    def find(self, name: str) -> tuple[str, str | None]:
        """The locator that `name` means, and a reason where there is no such image.

        Where no file fits, the path where it was looked for.
        """
        # nearly every name is a plain relative path of a file that is there
        if name and not SPECIAL.search(name) and os.path.isfile(f"{self._prefix}{name}"):
            return f"{self._shown_prefix}{as_text(name)}", None

        parts = PureWindowsPath(name).parts  # splits at / and \ alike
        if not parts:
            return display_path(self.folder), None

        is_absolute = PureWindowsPath(name).root != "" or ":" in parts[0]
        if not is_absolute:
            plain = self.folder / name
            if os.path.isfile(plain):
                return display_path(plain), None
            return self._spelled_otherwise(parts) or (display_path(plain), None)

        # an absolute path: of this machine, or of another
        if os.path.isfile(resolve(name)):
            return display_path(Path(name)), None
        return self._longest_tail(parts)

    def _longest_tail(self, parts: Sequence[str]) -> tuple[str, str | None]:
        """As `find`, for a path of another machine: the longest of its tails that exists here."""
        # the cut that fitted the row before usually fits this one too
        cuts = list(dict.fromkeys((self._cut, *range(1, len(parts)))))
        for cut in cuts:
            file = self.folder.joinpath(*parts[cut:])
            if cut < len(parts) and os.path.isfile(file):
                self._cut = cut
                return display_path(file), None

        # no tail is a file as it stands
        for cut in cuts:
            if cut < len(parts) and (place := self._spelled_otherwise(parts[cut:])):
                self._cut = cut
                return place
        return display_path(self.folder.joinpath(*parts[1:])), None

    def find_any(self, *names: str) -> tuple[str, str | None]:
        """As `find`, for the first of the names that is a file; without one, for the first name."""
        places = [self.find(name) for name in names]
        for image, reason in places:
            if reason or os.path.isfile(resolve(image)):
                return image, reason
        return places[0]

    def _spelled_otherwise(self, parts: Sequence[str]) -> tuple[str, str | None] | None:
        """As `find`; None where no file fits."""
        folder = self.folder
        for part in parts[:-1]:
            if part == "..":
                folder = folder.parent
                continue
            folders = self._entries(folder).get(_normal(part), [])

            # of images/ and Images/ the one that is spelled like this
            exact = [entry for entry in folders if entry.name == part]
            folders = [entry for entry in exact or folders if entry.is_dir()]
            if len(folders) != 1:
                return (display_path(folder / part), AMBIGUOUS) if folders else None
            folder = folders[0]

        entries = self._entries(folder)
        files = [entry for entry in entries.get(_normal(parts[-1]), []) if entry.is_file()]

        # 0001 for 0001.png
        if not files and not is_image(parts[-1]):
            without_ending = entries.get(_normal(parts[-1]) + ENDINGLESS, [])
            files = [entry for entry in without_ending if entry.is_file()]
        if len(files) > 1:
            return display_path(folder / parts[-1]), AMBIGUOUS
        return (display_path(files[0]), None) if files else None


ENDINGLESS = "/"  # no file's name can hold it


def _normal(name: str) -> str:
    """A name in one letter case and with composed letters."""
    return unicodedata.normalize("NFC", name).casefold()


def _entries(folder: Path) -> dict[str, list[Path]]:
    """What lies in a folder by normal name; images also by their name without its ending."""
    entries: dict[str, list[Path]] = {}
    if not folder.is_dir():
        return entries
    for entry in sorted(folder.iterdir()):
        if is_sidecar(entry.name):
            continue
        entries.setdefault(_normal(entry.name), []).append(entry)
        if is_image(entry.name):
            entries.setdefault(_normal(entry.stem) + ENDINGLESS, []).append(entry)
    return entries


def first_folder(folders: Iterable[Path], names: Sequence[str]) -> Path | None:
    """The first of `folders` that holds one of the first 50 `names`; None where none does."""
    for folder in folders:
        finder = Finder(folder)
        for name in names[:50]:
            if name and os.path.isfile(resolve(finder.find(name)[0])):
                return folder
    return None
