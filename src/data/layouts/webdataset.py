"""WebDataset: tar shards whose members with one stem are a sample."""

import os
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import polars as pl
from tqdm import tqdm

from src.data import locators
from src.data.layouts.captions import CAPTION_SUFFIXES, captions_in, not_delivered
from src.data.layouts.names import files_of, is_image, is_sidecar, labels_of, report_skipped
from src.data.layouts.rows import NO_IMAGE, SEVERAL_IMAGES, SIDECAR, Row, from_rows, rows_of
from src.paths import display_path

CUT_SHARD = "shard cannot be read on"  # followed by what is wrong


class Member(NamedTuple):
    """A file of a tar: its name and where its bytes are."""

    name: str
    offset: int
    size: int


# a sample's members by ending: `.jpg`, `.input.jpg`
Members = dict[str, Member]


class Sample(NamedTuple):
    """The members of a shard that have one stem."""

    folder: str
    stem: str
    members: Members


def is_webdataset(path: Path) -> bool:
    """Whether `path` is or holds tar shards."""
    return bool(_shards(path))


def _shards(path: Path) -> list[Path]:
    """The shards at `path`, or of the folders in it where it has none itself."""
    for depth in (1, 2):
        shards = [file for file in files_of(path, (".tar",), depth) if is_shard(file)]
        if shards:
            return shards
    return []


def is_shard(file: Path) -> bool:
    """Whether a file is a tar that is not compressed: images are read in place."""
    return file.suffix.lower() == ".tar"


def read_webdataset(path: Path, text_column: str | None) -> pl.DataFrame:
    """The samples of every shard, and what img2dataset's tables beside them could not download."""
    shards = _shards(path)
    root = path if path.is_dir() else path.parent
    if path.is_dir():
        packed = [file for file in files_of(path, (".tar", ".tgz")) if not is_shard(file)]
        report_skipped(path, [file.name for file in packed], "compressed tars are not read")

    labels = iter(labels_of(shards, root))
    rows = []
    for shard in tqdm(shards, desc="reading shards", unit="shard", disable=len(shards) < 20):
        label = next(labels)
        rows += _rows_of_shard(shard, label, text_column)
        rows += not_delivered(shard.with_suffix(".parquet"), label)
    return from_rows(rows, root.name)


def _rows_of_shard(shard: Path, label: str, text_column: str | None) -> list[Row]:
    """The samples of a shard; a cut shard gives what is whole and one row for the rest."""
    runs: list[Sample] = []
    sidecars: list[Row] = []
    rest = []
    with open(shard, "rb") as stream:
        try:
            for member in _members(shard, stream):
                if is_sidecar(member.name):
                    name = f"{label}/{member.name}"
                    sidecars.append(Row(name, display_path(shard), None, SIDECAR))
                else:
                    _add(runs, member)
        except Exception as error:
            # tarfile raises what it likes on a damaged header: MemoryError, OverflowError, ...
            message = str(error) or type(error).__name__
            reason = f"{CUT_SHARD}: {message}"
            rest.append(Row(f"{label}/rest", display_path(shard), None, reason))

        # the texts are read in one pass, once it is known which members belong together
        rows = []
        for sample in _samples(runs):
            name = "/".join(filter(None, (label, sample.folder, sample.stem)))
            rows += _rows_of_sample(shard, name, sample.members, stream, text_column)
    return rows + rest + sidecars


# --- members ---


def _members(shard: Path, stream: BinaryIO) -> Iterator[Member]:
    """The files of a tar in order; a hard link has the bytes of the file that it links to.

    Raises what tarfile raises where the tar cannot be read on.
    """
    by_name: dict[str, Member] = {}
    with tarfile.open(shard, "r:", errors="replace") as tar:
        for header in tar:
            # tarfile keeps every header otherwise
            tar.members.clear()  # type: ignore[attr-defined]
            if header.size < 0:  # it would be read over and over
                raise tarfile.TarError("a member has a negative size")

            # a hard link has no bytes of its own
            if header.islnk():
                target = by_name.get(_plain(header.linkname))
                if target is None:
                    continue
                member = Member(header.name, target.offset, target.size)
            elif header.isfile():
                member = Member(header.name, header.offset_data, header.size)
            else:
                continue
            by_name[_plain(header.name)] = member
            yield member

        # tarfile takes a header that it cannot read for the end
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.TarError("a header is damaged")


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _content(stream: BinaryIO, member: Member) -> bytes:
    stream.seek(member.offset)
    size_of_shard = os.fstat(stream.fileno()).st_size
    return stream.read(min(member.size, size_of_shard))  # a header can claim any size


# --- samples ---


def _add(runs: list[Sample], member: Member) -> None:
    """Add a member to the last run of members with one stem, or begin the next run.

    The stem ends at the first dot of the file's name, as WebDataset has it.
    """
    folder, _, name = member.name.rpartition("/")
    stem, _, extension = name.partition(".")
    if not runs or (runs[-1].folder, runs[-1].stem) != (folder, stem):
        runs.append(Sample(folder, stem, {}))
    runs[-1].members["." + extension.lower()] = member


def _samples(runs: list[Sample]) -> Iterator[Sample]:
    """The samples in runs of members with one stem.

    In an unsorted shard a sample's members lie apart, so runs with one stem are one sample, unless
    they hold a member twice. A stem with several images is taken apart by the images' full names.
    """
    # the same stem in two folders of the shard is two samples
    samples: dict[tuple[str, str], list[Sample]] = {}
    ordered: list[Sample] = []
    for run in runs:
        same = samples.setdefault((run.folder, run.stem), [])
        if same and not same[-1].members.keys() & run.members.keys():
            same[-1].members.update(run.members)
        else:
            same.append(run)
            ordered.append(run)

    for sample in ordered:
        yield from _apart(sample)


def _apart(sample: Sample) -> list[Sample]:
    """`fox_v1.5_a.jpg` and `fox_v1.5_b.jpg` with their texts: a sample each.

    Each other member goes to the image with the same full stem. The sample stays whole where a text
    fits no image, as the only text of two images, and where the plain one alone has a text: what
    lies beside it, for example `fox.mask.png`, is not a sample.
    """
    stems = {_middle(ending) for ending in sample.members if is_image(ending)}
    captioned = {_middle(e) for e in sample.members if e.endswith(CAPTION_SUFFIXES)}
    if len(stems) < 2 or not captioned <= stems or captioned == {""}:
        return [sample]

    # every member with its own full stem; what has no image of that stem is left out
    samples: dict[str, Sample] = {}
    for ending, member in sample.members.items():
        middle = _middle(ending)
        part = samples.setdefault(middle, Sample(sample.folder, sample.stem + middle, {}))
        part.members[ending.removeprefix(middle)] = member
    return [part for middle, part in samples.items() if middle in stems]


def _middle(ending: str) -> str:
    """`.5_a` of `.5_a.jpg`: what the full stem has beyond the first dot."""
    return ending.rpartition(".")[0]


def _rows_of_sample(
    shard: Path, name: str, members: Members, stream: BinaryIO, text_column: str | None
) -> list[Row]:
    contents = {ending: partial(_content, stream, member) for ending, member in members.items()}
    captions = captions_in(contents, text_column)

    # of .jpg and .mask.png the plain one is the image
    images = [ending for ending in members if is_image(ending)]
    plain = [ending for ending in images if ending.count(".") == 1]
    chosen = plain or images
    if not chosen:
        return rows_of(name, display_path(shard), captions, NO_IMAGE)
    if len(chosen) > 1:
        return rows_of(name, display_path(shard), captions, SEVERAL_IMAGES)

    member = members[chosen[0]]
    image = locators.in_tar(shard, member.name, offset=member.offset, size=member.size)
    return rows_of(name, image, captions)
