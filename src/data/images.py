"""Images are decoded and resized once, into one uint8 memory map, so that no epoch decodes them again."""

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from errno import ENOSPC
from functools import cache as remembered
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from src.artifacts import fingerprint, indices_of_ids, load_table, reserve, save_table
from src.data import locators

Image.MAX_IMAGE_PIXELS = (
    100_000_000  # Pillow refuses twice as many: a decompression bomb, not a photograph
)
warnings.filterwarnings(
    "ignore", category=Image.DecompressionBombWarning
)  # up to that they are decoded
# no others: to draw an EPS Pillow would run a program
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
REDUCING_GAP = 2  # a JPEG is decoded at a half, quarter or eighth only while it stays twice as large as what is wanted
CHUNK = 2048  # images between two saves: what a kill can cost
FLUSH = 256  # images between two requests to the disk, so that a run waits for no more than these at its end
TASK = 8  # images that a thread decodes before it reports
VERSION = 3  # of the pixels and digests: raise it when decoding changes what comes out
INDEX = {
    "image": pl.String,
    "stamp": pl.String,
    "content": pl.String,
    "slot": pl.Int64,
    "reason": pl.String,
}


@dataclass(frozen=True)
class ImagePreprocess:
    """How a CLIP wants its images: side in pixels, Pillow's interpolation by name, open_clip's resize mode."""

    size: int
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


@dataclass(frozen=True)
class Rows:
    """Rows `index` of a memory map in that order, read when they are asked for: `rows[3]`, `rows[10:20]`, `rows[[7, 1]]`."""

    array: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key) -> np.ndarray:
        return self.array[self.index[key]]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.array[self.index], dtype=dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.index), *self.array.shape[1:])


@dataclass(frozen=True)
class Pixels:
    """Decoded images: `array` (n, size, size, 3) uint8, memory-mapped, row i belonging to `ids[i]`.

    It is numpy's memory map where the images lie in one run, else `Rows` of it. `content[i]` is equal for equal files.
    """

    ids: list[str]
    array: np.ndarray | Rows
    key: str
    content: list[str]

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """(len(ids), size, size, 3) uint8 in the order of `ids`; ValueError counts the ids that are not there."""
        return self.array[indices_of_ids(self.ids, ids, "pixels")]


# --- one image ---


def decode(reference: str | Path) -> Image.Image:
    """The image at `reference` (`references.py`) as upright RGB, transparency on white, the first frame of an animation.

    Raises what Pillow raises (OSError and its kin, DecompressionBombError) on a broken image.
    """
    with _opened(locators.read(reference)) as picture:
        return _upright_rgb(picture)


def _opened(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:  # its own message is an address in memory
        raise UnidentifiedImageError(
            f"its {len(content)} bytes are no image in any of {', '.join(FORMATS)}"
        ) from None


def examples(rows: pl.DataFrame, n: int, *, size: int = 256) -> list[tuple[Image.Image, dict]]:
    """Up to `n` of `rows` (image, ...) whose image can be shown, as (thumbnail, row); of a cut one, what is whole of it."""
    found = []
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        for row in rows.iter_rows(named=True):
            with suppress(Exception), _opened(locators.read(row["image"])) as picture:
                thumbnail = picture.convert("RGB")
                thumbnail.thumbnail((size, size))
                found.append((thumbnail, row))
            if len(found) == n:
                break
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    return found


def _upright_rgb(picture: Image.Image) -> Image.Image:
    picture = _turned(picture)
    if picture.mode.startswith(("I", "F")):
        picture = _eight_bit(picture)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # which would copy it


def _turned(picture: Image.Image) -> Image.Image:
    picture.load()  # a broken image fails here; what fails below is its EXIF alone
    with suppress(
        Exception
    ):  # broken EXIF comes as struct.error, SyntaxError, KeyError, ...: the image itself is sound
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _eight_bit(picture: Image.Image) -> Image.Image:
    """16-bit, 32-bit and floating-point grey to 8 bits: the range is 65,535, 255 or, of floats, 1 by the highest value."""
    values = np.asarray(picture, dtype=np.float32)
    highest = values.max()
    if not np.isfinite(highest):
        raise ValueError("some of its pixels are NaN or infinite")
    scale = 255 if picture.mode == "F" and highest <= 1 else 1 / 257 if highest > 255 else 1
    return Image.fromarray((values * scale).clip(0, 255).astype(np.uint8))


def resized(picture: Image.Image, geometry: ImagePreprocess) -> np.ndarray:
    """(size, size, 3) uint8: open_clip's own evaluation transform up to, but without, the conversion to a tensor.

    Raises ValueError for an image so narrow that it could not be held in memory once its shorter side is `size`.
    """
    _check_shape(*picture.size, geometry)
    for step in _steps(geometry):
        picture = step(picture)
    return np.asarray(picture, dtype=np.uint8)


def _check_shape(width: int, height: int, geometry: ImagePreprocess) -> None:
    long, short = max(width, height), min(width, height)
    if (
        geometry.resize_mode == "shortest"
        and geometry.size**2 * long > Image.MAX_IMAGE_PIXELS * short
    ):
        raise ValueError(
            f"{width} x {height} pixels are too narrow for {geometry.size} x {geometry.size}"
        )


@remembered
def _steps(geometry: ImagePreprocess) -> list[Callable]:
    from open_clip.transform import (
        PreprocessCfg,
        image_transform_v2,
    )  # imports torch: only where images are resized

    config = PreprocessCfg(
        size=geometry.size, interpolation=geometry.interpolation, resize_mode=geometry.resize_mode
    )
    steps = image_transform_v2(config, is_train=False).transforms
    steps = steps[
        : next(i for i, s in enumerate(steps) if type(s).__name__ in ("MaybeToTensor", "ToTensor"))
    ]
    return [
        step for step in steps if type(step).__name__ != "MaybeConvertMode"
    ]  # they are RGB already


@remembered
def _tensor_steps(geometry: ImagePreprocess) -> list[Callable] | None:
    """`_steps` for a (3, h, w) uint8 tensor, or None where torch has no counterpart for one of them."""
    from torchvision.transforms import CenterCrop, Resize
    from torchvision.transforms.v2 import functional

    found = []
    for step in _steps(geometry):
        if isinstance(step, Resize):
            size = [step.size] if isinstance(step.size, int) else list(step.size)
            found.append(
                partial(
                    functional.resize, size=size, interpolation=step.interpolation, antialias=True
                )
            )
        elif isinstance(step, CenterCrop):
            found.append(partial(functional.center_crop, output_size=list(step.size)))
        else:
            return None
    return found


@remembered
def _torch() -> tuple[ModuleType, Callable]:
    """torch, and torchvision's decoder of JPEGs to RGB; an import in each call would cost a twentieth of a decoding."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    return torch, partial(decode_jpeg, mode=ImageReadMode.RGB)


def from_bytes(content: bytes, geometry: ImagePreprocess) -> np.ndarray:
    """(size, size, 3) uint8 of an encoded image: `resized(decode(...))`, faster.

    torch resizes with the processor's vector instructions (within two grey levels of Pillow), torchvision decodes an ordinary
    JPEG, and a much too large JPEG is decoded at a fraction of its size.
    """
    torch, decode_jpeg = _torch()
    wanted, plain = REDUCING_GAP * geometry.size, _plain_jpeg(content)
    if plain and min(plain) < 2 * wanted:
        _check_shape(*plain, geometry)
        with suppress(RuntimeError):  # what it cannot read, Pillow can, or says why not
            return _resized_by_torch(
                decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8)), geometry
            )
    picture = _opened(content)
    _check_shape(
        *picture.size, geometry
    )  # before it is decoded: a few bytes can stand for millions of rows
    if plain:
        picture.draft("RGB", (wanted, wanted))
    return _resized_by_torch(
        torch.from_numpy(np.array(_upright_rgb(picture))).permute(2, 0, 1), geometry
    )


def _plain_jpeg(content: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG of three colours that is upright and no bomb, None for all else: Pillow's open in a tenth of
    its time.
    """
    at = 2
    while content[:2] == b"\xff\xd8" and at + 9 < len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == 0xE1 and any(
            tag in content[at : at + length] for tag in (b"\x01\x12\x00\x03", b"\x12\x01\x03\x00")
        ):
            return None  # its EXIF has an orientation
        if marker in (0xC0, 0xC1, 0xC2):
            height, width = (int.from_bytes(content[at + k : at + k + 2], "big") for k in (5, 7))
            return (
                (width, height)
                if content[at + 9] == 3 and width * height <= Image.MAX_IMAGE_PIXELS
                else None
            )
        at += 2 + length
    return None


def _resized_by_torch(pixels, geometry: ImagePreprocess) -> np.ndarray:
    """`resized` on a (3, h, w) uint8 tensor; what torch has no counterpart for goes through Pillow."""
    steps = _tensor_steps(geometry)
    if steps is None:
        return resized(Image.fromarray(pixels.permute(1, 2, 0).numpy()), geometry)
    for step in steps:
        pixels = step(pixels)
    return pixels.permute(1, 2, 0).numpy()


# --- the cache ---


def cache(
    frame: pl.DataFrame, folder: Path, *, geometry: ImagePreprocess, name: str
) -> tuple[Pixels, pl.DataFrame]:
    """The images of `frame` (id, image), decoded once into `folder`: only what the cache does not hold yet is decoded.

    Returns the readable ones, in order, and the rows set aside with their `reason`. There is one cache a geometry, whatever the
    set: an image is known by its file's name, size and time, else by its content. Decoding runs on all cores under a progress
    bar called `name`; stopped, it goes on where it was.
    """
    base = (
        folder
        / f"pixels_{geometry.size}_{geometry.interpolation}_{geometry.resize_mode}_v{VERSION}"
    )
    store = _Store(base.with_suffix(".u8"), base.with_suffix(".parquet"), geometry)
    wanted = frame.select("id", "image", stamp=_stamps(frame["image"]))
    new = wanted.join(store.index, on=["image", "stamp"], how="anti").unique(
        ["image", "stamp"], maintain_order=True
    )
    store.add(new, name)
    rows = wanted.join(store.index, on=["image", "stamp"], how="left", maintain_order="left")
    good = rows.filter(pl.col("reason").is_null())
    key = fingerprint(good["id"].to_list(), good["content"].to_list(), vars(geometry), VERSION)
    pixels = Pixels(
        good["id"].to_list(), store.rows(good["slot"].to_numpy()), key, good["content"].to_list()
    )
    return pixels, rows.filter(pl.col("reason").is_not_null()).select(
        "id", "image", "stamp", "reason"
    )


def _batched(values: Iterable, n: int) -> Iterator[list]:
    """Lists of up to `n` of the values, in order."""
    values = iter(values)
    while part := list(islice(values, n)):
        yield part


def _stamps(images: pl.Series) -> pl.Series:
    """Size and time of each image's file; a shard's is looked up once."""

    @remembered
    def of(file: str) -> str:
        try:
            return locators.stamp(file)
        except OSError:
            return "gone"

    return pl.Series(
        "stamp", [of(str(locators.file_of(image))) for image in images], dtype=pl.String
    )


class _Store:
    """Pixels one after the other in `file`, and `index` (image, stamp, content, slot, reason), saved after each chunk."""

    def __init__(self, file: Path, index_file: Path, geometry: ImagePreprocess):
        self.file, self.index_file, self.geometry, self.n_bytes = (
            file,
            index_file,
            geometry,
            3 * geometry.size**2,
        )
        whole = file.exists() and index_file.exists()
        self.index = load_table(index_file) if whole else pl.DataFrame(schema=INDEX)
        self.n_slots = int(self.index["slot"].fill_null(-1).max()) + 1 if len(self.index) else 0

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.geometry.size, self.geometry.size, 3)

    def rows(self, slots: np.ndarray) -> np.ndarray | Rows:
        if not len(slots):
            return np.empty((0, *self.shape), np.uint8)
        pixels = np.memmap(self.file, np.uint8, mode="r", shape=(self.n_slots, *self.shape))
        in_one_run = (np.diff(slots) == 1).all()
        return pixels[slots[0] : slots[-1] + 1] if in_one_run else Rows(pixels, slots)

    def add(self, new: pl.DataFrame, name: str) -> None:
        """Decode the images of `new` (image, stamp) in parallel, chunk by chunk; a chunk is saved while the next is decoded."""
        if new.is_empty():
            return
        import torch

        seen = self.index.filter(
            pl.col("content") != ""
        )  # empty where a file could not even be read
        known = {
            content: (slot, reason)
            for content, slot, reason in seen.select("content", "slot", "reason").rows()
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(self.file, "r+b" if self.file.exists() else "w+b", buffering=0) as file,
            tqdm(total=len(new), desc=f"decoding {name}", unit="image") as bar,
            ThreadPoolExecutor(1) as saver,  # waits for the disk while the others decode
            ThreadPoolExecutor(
                os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)
            ) as pool,
        ):  # one image a thread
            saving = None
            for chunk in new.iter_slices(CHUNK):
                reserve(self.file, len(chunk) * self.n_bytes, offset=self.n_slots * self.n_bytes)
                tasks = pool.map(
                    lambda task: [self._attempt(image, known) for image in task],
                    _batched(chunk["image"], TASK),
                )
                found, flushes = [], []
                for attempt in chain.from_iterable(tasks):
                    found.append(self._put(file, *attempt, known, bar))
                    if len(found) % FLUSH == 0:
                        flushes.append(saver.submit(os.fsync, file.fileno()))
                found = pl.DataFrame(
                    found, schema={k: INDEX[k] for k in ("content", "slot", "reason")}, orient="row"
                )
                self.index = pl.concat(
                    [
                        self.index,
                        pl.concat([chunk.select("image", "stamp"), found], how="horizontal"),
                    ]
                )
                if saving:
                    saving.result()
                saving = saver.submit(self._save, file, self.index, flushes)
            saving.result()
            file.truncate(self.n_slots * self.n_bytes)  # what a killed run left behind

    def _put(
        self, file, content: str, result: np.ndarray | str | None, known: dict, bar: tqdm
    ) -> tuple[str, int | None, str | None]:
        """Write the pixels of one attempt into the next slot, unless their content has one; its content, slot and reason."""
        bar.update()
        if isinstance(result, np.ndarray) and content not in known:
            if os.pwrite(file.fileno(), result, self.n_slots * self.n_bytes) < self.n_bytes:
                raise OSError(ENOSPC, os.strerror(ENOSPC), str(self.file))
            known[content] = (self.n_slots, None)
            self.n_slots += 1
        return content, *known.get(content, (None, result))

    def _save(self, file, index: pl.DataFrame, flushes: list[Future]) -> None:
        for flush in flushes:
            flush.result()  # an error is told once: what failed there would look well here
        os.fsync(file.fileno())  # pixels first: an index never names a slot that is not on the disk
        save_table(self.index_file, index)

    def _attempt(self, image: str, known: dict) -> tuple[str, np.ndarray | str | None]:
        """The digest of an image's file, and its pixels, or why there are none; nothing for a known one."""
        from blake3 import (
            blake3,
        )  # a third of SHA-256's time; not on a hosted image, where nothing is cached

        content = ""
        try:
            encoded = locators.read(image)
            content = blake3(encoded).hexdigest()
            return content, None if content in known else np.ascontiguousarray(
                from_bytes(encoded, self.geometry)
            )
        except (
            Exception
        ) as error:  # decoders raise what they like on broken input, and none of it may stop a run
            return content, f"unreadable image: {type(error).__name__}: {error}".split("\n")[0][
                :200
            ]
