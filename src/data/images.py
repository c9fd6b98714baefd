"""Images are decoded and resized once, into one uint8 memory map; no epoch decodes them again."""

import functools
import io
import os
import warnings
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from errno import ENOSPC
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import polars as pl
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from src import dask_workers
from src.artifacts import (
    BEGINNING,
    fingerprint,
    indices_of_ids,
    load_table,
    reserve,
    save_table,
    what_is,
)
from src.data import locators

if TYPE_CHECKING:
    import torch

# Pillow refuses twice as many pixels: a decompression bomb, not a photograph. Up to that it decodes
MAX_PIXELS = 100_000_000
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# no others: Pillow would run a program to draw an EPS
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")

# The endings of images. HEIC is not decoded: it is listed so that a HEIC file
# is reported with a reason, not ignored
HEIC_SUFFIXES = (".heic", ".heif")
IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".ico"),
    *HEIC_SUFFIXES,
)

# chunks of a PNG that its pixels depend on, beside the critical ones: transparency, EXIF
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = (b"tRNS", b"eXIf")

# a JPEG is decoded at a half, quarter or eighth while it stays twice as large as what is wanted
REDUCING_GAP = 2

T = TypeVar("T")

CHUNK = 2048  # images between two saves: what a kill can cost
FLUSH = 256  # images between two requests to the disk, so that the last save waits for few
TASK = 8  # images that a thread decodes before it reports
WORKER_TASK = 64  # images that a Dask worker decodes before it sends them
UNREADABLE = "unreadable image"  # followed by the kind of error and its message
REASON_LENGTH = 200  # characters of a decoder's message that are kept
VERSION = 4  # of the pixels and digests: raise it when decoding changes what comes out
INDEX = {
    "image": pl.String,
    "stamp": pl.String,
    "content": pl.String,
    "slot": pl.Int64,
    "reason": pl.String,
}


@dataclass(frozen=True)
class ImagePreprocess:
    """How a CLIP wants its images: side in pixels, Pillow's interpolation, open_clip's mode."""

    size: int
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


@dataclass(frozen=True)
class Rows:
    """Rows `index` of a memory map, in that order, read when asked for: `rows[[7, 1]]`."""

    array: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        return self.array[self.index[key]]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.array[self.index], dtype=dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.index), *self.array.shape[1:])


@dataclass(frozen=True)
class Pixels:
    """Decoded images: `array` (n, size, size, 3) uint8, row i belonging to `ids[i]`.

    It is numpy's memory map where the images lie in one run, else `Rows` of it. `content[i]` is
    equal for equal files.
    """

    ids: list[str]
    array: np.ndarray | Rows
    key: str
    content: list[str]

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """(len(ids), size, size, 3) uint8 in the order of `ids`; ValueError counts missing ids."""
        return self.array[indices_of_ids(self.ids, ids, "pixels")]


# --- one image ---


def decode(locator: str | Path) -> Image.Image:
    """The image at `locator` (locators.py) as upright RGB, transparency on white, the first frame.

    Raises what Pillow raises (OSError and its subclasses, DecompressionBombError) on a broken
    image.
    """
    return _despite_extras(_decode, locators.read(locator))


def _decode(content: bytes) -> Image.Image:
    with _open(content) as image:
        return _upright_rgb(image)


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:  # its own message is an address in memory
        kind = what_is(content[:BEGINNING])
        if kind:
            raise UnidentifiedImageError(f"it is {kind}") from None
        raise UnidentifiedImageError(
            f"its {len(content)} bytes are not an image in any of {', '.join(FORMATS)}"
        ) from None


def _despite_extras(use: Callable[[bytes], T], content: bytes) -> T:
    """`use(content)`; where a PNG fails, once more without the parts that its pixels do not need.

    A large color profile, large texts, or a bad checksum of either do not make an image unreadable.
    """
    try:
        return use(content)
    except Exception:
        bare = _bare_png(content)
        if bare is None:
            raise
    return use(bare)


def _bare_png(content: bytes) -> bytes | None:
    """A PNG's critical chunks and those of PNG_CHUNKS; None for no PNG, or nothing to leave out."""
    if not content.startswith(PNG_SIGNATURE):
        return None

    # a chunk is its length, kind, content and checksum: 4 + 4 + n + 4 bytes
    at = len(PNG_SIGNATURE)
    parts = [PNG_SIGNATURE]
    while at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        kind = content[at + 4 : at + 8]
        critical = kind[:1].isupper()
        sound = zlib.crc32(content[at + 4 : end - 4]).to_bytes(4, "big") == content[end - 4 : end]
        if critical or (kind in PNG_CHUNKS and sound):
            parts.append(content[at:end])
        at = end

    bare = b"".join(parts)
    return bare if len(bare) < len(content) else None


def examples(rows: pl.DataFrame, n: int, *, size: int = 256) -> list[tuple[Image.Image, dict]]:
    """Up to `n` of `rows` (image, ...) whose image can be shown, as (thumbnail, row).

    Of a truncated image the part that is there is shown.
    """
    thumbnails = []
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        for row in rows.iter_rows(named=True):
            with suppress(Exception), _open(locators.read(row["image"])) as image:
                thumbnail = image.convert("RGB")
                thumbnail.thumbnail((size, size))
                thumbnails.append((thumbnail, row))

            if len(thumbnails) == n:
                break
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    return thumbnails


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = _turned(image)
    if image.mode.startswith(("I", "F")):
        image = _eight_bit(image)

    # transparent pixels become white, as in a browser
    transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa")
    if transparent or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)

    if image.mode == "RGB":
        return image  # converting would copy it
    return image.convert("RGB")


def _turned(image: Image.Image) -> Image.Image:
    image.load()  # a broken image fails here; what fails below is its EXIF alone

    # broken EXIF raises struct.error, SyntaxError, KeyError, ...: the image itself is sound
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _eight_bit(image: Image.Image) -> Image.Image:
    """Gray of 16 or 32 bits or of floats to 8 bits; the highest value tells 65,535, 255 or 1."""
    values = np.asarray(image, dtype=np.float32)
    highest = values.max()
    if not np.isfinite(highest):
        raise ValueError("some of its pixels are NaN or infinite")

    # Pillow's modes do not say which value is white, so the values decide
    scale = 1.0
    if image.mode == "F" and highest <= 1:
        scale = 255
    elif highest > 255:
        scale = 1 / 257
    return Image.fromarray((values * scale).clip(0, 255).astype(np.uint8))


def resized(image: Image.Image, geometry: ImagePreprocess) -> np.ndarray:
    """(size, size, 3) uint8: open_clip's evaluation transform without the conversion to a tensor.

    Raises ValueError for an image so narrow that, once its shorter side is `size`, memory could
    not hold it.
    """
    _check_shape(*image.size, geometry)
    for step in _steps(geometry):
        image = step(image)
    return np.asarray(image, dtype=np.uint8)


def _check_shape(width: int, height: int, geometry: ImagePreprocess) -> None:
    if geometry.resize_mode != "shortest":
        return

    longer = max(width, height)
    shorter = min(width, height)
    if geometry.size**2 * longer > MAX_PIXELS * shorter:
        raise ValueError(
            f"{width} x {height} pixels are too narrow for {geometry.size} x {geometry.size}"
        )


@functools.cache
def _steps(geometry: ImagePreprocess) -> list[Callable]:
    # imports torch: only where images are resized
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = PreprocessCfg(
        size=geometry.size, interpolation=geometry.interpolation, resize_mode=geometry.resize_mode
    )
    steps = []
    for step in image_transform_v2(config, is_train=False).transforms:
        kind = type(step).__name__
        if kind in ("MaybeToTensor", "ToTensor"):
            break
        if kind != "MaybeConvertMode":  # the images are RGB already
            steps.append(step)
    return steps


@functools.cache
def _tensor_steps(geometry: ImagePreprocess) -> list[Callable] | None:
    """`_steps` for a (3, h, w) uint8 tensor, or None where torch lacks a counterpart of one."""
    from torchvision.transforms import CenterCrop, Resize
    from torchvision.transforms.v2 import functional

    # the same steps by torch, in the same order, or none at all
    tensor_steps: list[Callable] = []
    for step in _steps(geometry):
        if isinstance(step, Resize):
            size = [step.size] if isinstance(step.size, int) else list(step.size)
            resize = functools.partial(
                functional.resize, size=size, interpolation=step.interpolation, antialias=True
            )
            tensor_steps.append(resize)
        elif isinstance(step, CenterCrop):
            size = list(step.size)
            tensor_steps.append(functools.partial(functional.center_crop, output_size=size))
        else:
            return None
    return tensor_steps


@functools.cache
def _torch() -> tuple[ModuleType, Callable]:
    """torch, and torchvision's decoder of JPEGs; an import in each call would cost 5 % of it."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    return torch, functools.partial(decode_jpeg, mode=ImageReadMode.RGB)


def from_bytes(content: bytes, geometry: ImagePreprocess) -> np.ndarray:
    """(size, size, 3) uint8 of an encoded image: `resized(decode(...))`, faster.

    torch resizes with vector instructions (within two gray levels of Pillow), torchvision decodes
    an ordinary JPEG, and a much too large JPEG is decoded at a fraction of its size.
    """
    return _despite_extras(functools.partial(_pixels_of, geometry=geometry), content)


def from_image(image: Image.Image, geometry: ImagePreprocess) -> np.ndarray:
    """(size, size, 3) uint8 of an image of Pillow: the pixels that its file would give.

    An image that has been opened and not yet loaded is read from its file; of any other the
    pixels are taken as they are. `image` itself is not changed.
    """
    content = _unread_content(image)
    if content is not None:
        return from_bytes(content, geometry)

    torch, _ = _torch()
    _check_shape(*image.size, geometry)
    pixels = torch.from_numpy(np.array(_upright_rgb(image.copy())))
    return _resized_by_torch(pixels.permute(2, 0, 1), geometry)


def _unread_content(image: Image.Image) -> bytes | None:
    """The encoded bytes of an opened image of which no pixel has been read yet, else None."""
    unread = isinstance(image, ImageFile.ImageFile) and image.tile and image.tell() == 0
    stream = getattr(image, "fp", None)
    if not unread or stream is None or stream.closed:
        return None

    at = stream.tell()
    stream.seek(0)
    content = stream.read()
    stream.seek(at)
    return content


def _pixels_of(content: bytes, geometry: ImagePreprocess) -> np.ndarray:
    torch, decode_jpeg = _torch()
    wanted = REDUCING_GAP * geometry.size
    plain = _plain_jpeg(content)

    if plain and min(plain) < 2 * wanted:
        _check_shape(*plain, geometry)
        with suppress(RuntimeError):  # what torchvision cannot read, Pillow can, or says why not
            pixels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            return _resized_by_torch(pixels, geometry)

    image = _open(content)

    # before it is decoded: a few bytes can stand for millions of rows
    _check_shape(*image.size, geometry)
    if plain:
        image.draft("RGB", (wanted, wanted))
    pixels = torch.from_numpy(np.array(_upright_rgb(image)))
    return _resized_by_torch(pixels.permute(2, 0, 1), geometry)


def _plain_jpeg(content: bytes) -> tuple[int, int] | None:
    """Width and height of an upright three-channel JPEG that is not a decompression bomb, else
    None.

    It takes a tenth of the time of Pillow's open.
    """
    if content[:2] != b"\xff\xd8":
        return None

    at = 2
    while at + 9 < len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        length = int.from_bytes(content[at + 2 : at + 4], "big")

        if marker == 0xE1:  # EXIF: tag 0x0112 is the orientation, in either byte order
            segment = content[at : at + length]
            if b"\x01\x12\x00\x03" in segment or b"\x12\x01\x03\x00" in segment:
                return None

        if marker in (0xC0, 0xC1, 0xC2):  # the frame header
            height = int.from_bytes(content[at + 5 : at + 7], "big")
            width = int.from_bytes(content[at + 7 : at + 9], "big")
            channels = content[at + 9]
            if channels != 3 or width * height > MAX_PIXELS:
                return None
            return width, height

        at += 2 + length
    return None


def _resized_by_torch(pixels: "torch.Tensor", geometry: ImagePreprocess) -> np.ndarray:
    """`resized` of a (3, h, w) uint8 tensor; what torch has no counterpart for Pillow resizes."""
    steps = _tensor_steps(geometry)
    if steps is None:
        return resized(Image.fromarray(pixels.permute(1, 2, 0).numpy()), geometry)

    for step in steps:
        pixels = step(pixels)
    return pixels.permute(1, 2, 0).numpy()


# --- the cache ---


def cache(
    frame: pl.DataFrame,
    folder: Path,
    *,
    geometry: ImagePreprocess,
    name: str,
    cluster: str | None = None,
) -> tuple[Pixels, pl.DataFrame]:
    """The images of `frame` (id, image), decoded into `folder`, each once.

    Returns the readable ones, in order, and the rows set aside with their `reason`. There is one
    cache per geometry, whatever the set: an image is known by its file's name, size and time, else
    by its content. Decoding runs on all cores, or on the workers of a `cluster`, which must see the
    images, under a progress bar called `name`; stopped, it continues where it was.
    """
    settings = f"{geometry.size}_{geometry.interpolation}_{geometry.resize_mode}"
    decoded = DecodedImages(folder / f"pixels_{settings}_v{VERSION}", geometry)

    # only what the index does not have yet is decoded, and each file once
    wanted = frame.select("id", "image", stamp=_stamps(frame["image"]))
    new = wanted.join(decoded.index, on=["image", "stamp"], how="anti")
    decoded.add(new.unique(["image", "stamp"], maintain_order=True), name, cluster)

    rows = wanted.join(decoded.index, on=["image", "stamp"], how="left", maintain_order="left")
    unreadable = rows.filter(pl.col("reason").is_not_null())
    readable = rows.filter(pl.col("reason").is_null())
    ids = readable["id"].to_list()
    content = readable["content"].to_list()

    key = fingerprint(ids, content, vars(geometry), VERSION)
    pixels = Pixels(ids, decoded.rows(readable["slot"].to_numpy()), key, content)
    return pixels, unreadable.select("id", "image", "stamp", "reason")


def _batched(values: Iterable, n: int) -> Iterator[list]:
    """Lists of up to `n` of the values, in order."""
    values = iter(values)
    while part := list(islice(values, n)):
        yield part


def _stamps(images: pl.Series) -> pl.Series:
    """Size and time of each image's file; a shard's is looked up once."""

    @functools.cache
    def stamp(file: str) -> str:
        try:
            return locators.stamp(file)
        except OSError:
            return "gone"

    stamps = [stamp(str(locators.file_of(image))) for image in images]
    return pl.Series("stamp", stamps, dtype=pl.String)


@dataclass(frozen=True)
class Attempt:
    """The outcome for one image: its file's digest, and its pixels or the reason why there are
    none.

    The digest is empty where the file could not be read. `pixels` and `reason` are both None for
    content that the cache has already.
    """

    content: str
    pixels: np.ndarray | None = None
    reason: str | None = None


class DecodedImages:
    """`<base>.u8`, pixels one after the other, and `<base>.parquet`, the index (INDEX) of slots."""

    def __init__(self, base: Path, geometry: ImagePreprocess):
        self.file = base.with_suffix(".u8")
        self.index_file = base.with_suffix(".parquet")
        self.geometry = geometry
        self.shape = (geometry.size, geometry.size, 3)
        self.n_bytes = 3 * geometry.size**2

        self.index = pl.DataFrame(schema=INDEX)
        if self.file.exists() and self.index_file.exists():
            self.index = load_table(self.index_file)
        slots = self.index["slot"].drop_nulls().to_numpy()
        self.n_slots = int(slots.max(initial=-1)) + 1

        # by content: slot and reason; content is empty where a file could not even be read
        columns = self.index.filter(pl.col("content") != "").select("content", "slot", "reason")
        self.known = {content: (slot, reason) for content, slot, reason in columns.rows()}

    def rows(self, slots: np.ndarray) -> np.ndarray | Rows:
        """(len(slots), size, size, 3) uint8: the memory map itself where the slots are one run."""
        if not len(slots):
            return np.empty((0, *self.shape), np.uint8)

        pixels = np.memmap(self.file, np.uint8, mode="r", shape=(self.n_slots, *self.shape))
        if (np.diff(slots) == 1).all():
            return pixels[slots[0] : slots[-1] + 1]
        return Rows(pixels, slots)

    def add(self, new: pl.DataFrame, name: str, cluster: str | None = None) -> None:
        """Decode `new` (image, stamp) in parallel; a chunk is saved while the next is decoded."""
        if new.is_empty():
            return

        self.file.parent.mkdir(parents=True, exist_ok=True)
        mode = "r+" if self.file.exists() else "w+"
        with (
            io.FileIO(self.file, mode) as file,
            tqdm(total=len(new), desc=f"decoding {name}", unit="image") as bar,
            ThreadPoolExecutor(1) as saver,
            self._attempts(new["image"], cluster) as attempts,
        ):
            # of each chunk the index as it is then: the next chunk already adds to it
            saving: Future | None = None
            for chunk in new.iter_slices(CHUNK):
                flushes = self._add_chunk(chunk, file, attempts, saver, bar)
                if saving is not None:
                    saving.result()
                saving = saver.submit(self._save, file, self.index, flushes)

            if saving is not None:
                saving.result()
            file.truncate(self.n_slots * self.n_bytes)  # what a killed run left behind

    @contextmanager
    def _attempts(self, images: pl.Series, cluster: str | None) -> Iterator[Iterator[Attempt]]:
        """The outcome for each image, in order, decoded on this machine's cores or by workers."""
        import torch

        if cluster is not None:
            tasks = [{"images": part} for part in _batched(images, WORKER_TASK)]
            shared: dict[str, object] = {"geometry": self.geometry, "known": frozenset()}
            parts = dask_workers.results(attempt_all, tasks, shared=shared, cluster=cluster)
            with closing(parts):
                yield chain.from_iterable(parts)
            return

        # one image a thread, and one thread more that waits for the disk while the others decode
        with ThreadPoolExecutor(
            os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)
        ) as decoders:
            yield (
                attempt
                for chunk in _batched(images, CHUNK)
                for part in decoders.map(self._attempt_all, _batched(chunk, TASK))
                for attempt in part
            )

    def _add_chunk(
        self,
        chunk: pl.DataFrame,
        file: io.FileIO,
        attempts: Iterator[Attempt],
        saver: ThreadPoolExecutor,
        bar: tqdm,
    ) -> list[Future]:
        """Decode and write the images of `chunk` and index them; the requests to the disk made."""
        reserve(self.file, len(chunk) * self.n_bytes, offset=self.n_slots * self.n_bytes)

        entries = []
        flushes = []
        for attempt in islice(attempts, len(chunk)):
            entries.append(self._put(file, attempt))
            bar.update()
            if len(entries) % FLUSH == 0:
                flushes.append(saver.submit(os.fsync, file.fileno()))

        schema = {column: INDEX[column] for column in ("content", "slot", "reason")}
        decoded = pl.DataFrame(entries, schema=schema, orient="row")
        named = pl.concat([chunk.select("image", "stamp"), decoded], how="horizontal")
        self.index = pl.concat([self.index, named])
        return flushes

    def _put(self, file: io.FileIO, attempt: Attempt) -> tuple[str, int | None, str | None]:
        """Write an attempt's pixels into the next slot, unless their content has one.

        Returns its content, slot and reason.
        """
        if attempt.pixels is not None and attempt.content not in self.known:
            at = self.n_slots * self.n_bytes
            if os.pwrite(file.fileno(), attempt.pixels.data, at) < self.n_bytes:
                raise OSError(ENOSPC, os.strerror(ENOSPC), str(self.file))
            self.known[attempt.content] = (self.n_slots, None)
            self.n_slots += 1

        slot, reason = self.known.get(attempt.content, (None, attempt.reason))
        return attempt.content, slot, reason

    def _save(self, file: io.FileIO, index: pl.DataFrame, flushes: list[Future]) -> None:
        # a disk error is reported only once: a failed write would look successful here
        for flush in flushes:
            flush.result()

        # pixels first: an index never names a slot that is not on the disk
        os.fsync(file.fileno())
        save_table(self.index_file, index)

    def _attempt_all(self, images: list[str]) -> list[Attempt]:
        return attempt_all(images, self.geometry, self.known)


def attempt_all(
    images: list[str], geometry: ImagePreprocess, known: Container[str]
) -> list[Attempt]:
    """Read and decode images; those whose content is `known` are only read."""
    return [attempt(image, geometry, known) for image in images]


def attempt(image: str, geometry: ImagePreprocess, known: Container[str]) -> Attempt:
    """Read and decode one image, unless its content is `known`."""
    # a third of SHA-256's time; not installed on a hosted image, where nothing is cached
    from blake3 import blake3

    content = ""
    # decoders raise what they like on broken input, and none of it may stop a run
    try:
        encoded = locators.read(image)
        content = blake3(encoded).hexdigest()
        if content in known:
            return Attempt(content)
        pixels = np.ascontiguousarray(from_bytes(encoded, geometry))
        return Attempt(content, pixels)
    except Exception as error:
        return Attempt(content, reason=unreadable(error))


def unreadable(error: Exception) -> str:
    """Why an image is set aside, in one line of at most REASON_LENGTH characters."""
    reason = f"{UNREADABLE}: {type(error).__name__}: {error}"
    return reason.split("\n", maxsplit=1)[0][:REASON_LENGTH]
