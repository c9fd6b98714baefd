"""Pictures are decoded and resized once, into one uint8 memory map, so that no epoch decodes them again."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from src.artifacts import atomic, fingerprint, load_table, positions, save_table
from src.paths import resolve

Image.MAX_IMAGE_PIXELS = 200_000_000  # Pillow refuses twice as many: a decompression bomb, not a photograph


@dataclass(frozen=True)
class Geometry:
    """How a CLIP wants its pictures: side in pixels, Pillow's interpolation by name, open_clip's resize mode."""

    size: int
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


@dataclass(frozen=True)
class Pixels:
    """Decoded pictures: `array` (n, size, size, 3) uint8, memory-mapped, row i belonging to `ids[i]`."""

    ids: list[str]
    array: np.ndarray
    key: str

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """(len(ids), size, size, 3) uint8 in the order of `ids`; ValueError counts the ids that are not there."""
        return self.array[positions(self.ids, ids, "pixels")]


def decode(path: str | Path) -> Image.Image:
    """The picture at `path` as upright RGB, transparency on white, the first frame of an animation.

    Raises what Pillow raises (OSError and its kin, DecompressionBombError) on a broken picture.
    """
    with Image.open(resolve(path)) as picture:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith(("I", "F")):
            picture = _eight_bit(picture)
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")


def _eight_bit(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture, dtype=np.float32)
    return Image.fromarray((values / (257 if values.max() > 255 else 1)).clip(0, 255).astype(np.uint8))


def resized(picture: Image.Image, geometry: Geometry) -> np.ndarray:
    """(size, size, 3) uint8: open_clip's own evaluation transform up to, but without, the conversion to a tensor."""
    from open_clip.transform import PreprocessCfg, image_transform_v2  # imports torch: only where pictures are resized

    config = PreprocessCfg(size=geometry.size, interpolation=geometry.interpolation, resize_mode=geometry.resize_mode)
    steps = image_transform_v2(config, is_train=False).transforms
    for step in steps[:next(i for i, s in enumerate(steps) if type(s).__name__ in ("MaybeToTensor", "ToTensor"))]:
        picture = step(picture)
    return np.asarray(picture, dtype=np.uint8)


def cache(frame: pl.DataFrame, folder: Path, *, geometry: Geometry, name: str) -> tuple[Pixels, pl.DataFrame]:
    """Decode the pictures of `frame` (id, image) into `folder`, or open what is there for the same files.

    Returns the readable ones, in order, and the rows set aside with their `reason`. Decoding runs on all cores with a
    progress bar. A later call for the readable rows alone finds the same cache.
    """
    base = folder / f"pixels_{name}_{geometry.size}_{geometry.interpolation}_{geometry.resize_mode}"
    array_file, rows_file = base.with_suffix(".npy"), base.with_suffix(".parquet")
    frame = frame.select("id", "image", stamp=pl.Series([_stamp(image) for image in frame["image"]], dtype=pl.String))
    if not rows_file.exists() or not _covers(load_table(rows_file), frame):
        rows_file.unlink(missing_ok=True)
        _build(frame, array_file, rows_file, geometry)
    rows = load_table(rows_file).filter(pl.col("id").is_in(frame["id"].implode()))
    good = rows.filter(pl.col("reason").is_null())
    array = np.load(array_file, mmap_mode="r")[: len(good)]
    key = fingerprint(good.rows(), vars(geometry))
    return Pixels(good["id"].to_list(), array, key), rows.filter(pl.col("reason").is_not_null())


def _stamp(image: str) -> str:
    stat = resolve(image).stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}"


def _covers(rows: pl.DataFrame, frame: pl.DataFrame) -> bool:
    """Whether the cache holds just these files: all of them, or all its readable ones, in the same order."""
    files = ["id", "image", "stamp"]
    return any(cached.select(files).equals(frame) for cached in (rows, rows.filter(pl.col("reason").is_null())))


def _build(frame: pl.DataFrame, array_file: Path, rows_file: Path, geometry: Geometry) -> None:
    def attempt(image: str) -> np.ndarray | str:
        try:
            return resized(decode(image), geometry)
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            return f"unreadable picture: {type(error).__name__}: {error}".split("\n")[0][:200]

    reasons, n_good = [], 0
    shape = (len(frame), geometry.size, geometry.size, 3)
    with atomic(array_file) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
        with ThreadPoolExecutor(cpu_count()) as pool:  # Pillow decodes without holding the interpreter's lock
            for result in tqdm(pool.map(attempt, frame["image"]), total=len(frame), desc="decoding", unit="picture"):
                reasons.append(result if isinstance(result, str) else None)
                if not isinstance(result, str):
                    array[n_good] = result
                    n_good += 1
        array.flush()
    save_table(rows_file, frame.with_columns(pl.Series("reason", reasons, dtype=pl.String)))
