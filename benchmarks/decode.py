"""Decoding into the cache as a share of a library's own decoding and resizing on all cores.

    python benchmarks/decode.py

Images are photograph-like JPEGs made here (smooth shapes and grain). Each competitor decodes and
resizes (antialiased bicubic) in a thread a core, and its result is thrown away; the cache hashes,
decodes, resizes, stores, and keeps its index. Rates are taken in turns in one run. opencv is
compared where it is installed (pip install opencv-python-headless): its INTER_AREA is no bicubic,
so its pixels are not the CLIP's.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.data import images


def write_images(folder: Path, n: int, side: int) -> list[str]:
    rng = np.random.default_rng(0)
    files = []
    for k in range(n):
        small = rng.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8)
        smooth = np.asarray(
            Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC), np.int16
        )
        grain = rng.integers(-12, 13, smooth.shape, dtype=np.int16)
        files.append(str(folder / f"{k:05}.jpg"))
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(files[-1], quality=90)
    return files


def by_pillow(file: str, size: int) -> None:
    with Image.open(file) as image:
        np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def by_pillow_draft(file: str, size: int) -> None:
    with Image.open(file) as image:
        image.draft("RGB", (2 * size, 2 * size))
        np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def by_torchvision(file: str, size: int) -> None:
    content = torch.frombuffer(bytearray(Path(file).read_bytes()), dtype=torch.uint8)
    functional.resize(
        decode_jpeg(content, mode=ImageReadMode.RGB),
        [size, size],
        antialias=True,
        interpolation=functional.InterpolationMode.BICUBIC,
    )


def by_opencv(file: str, size: int) -> None:
    import cv2

    cv2.resize(cv2.imread(file), (size, size), interpolation=cv2.INTER_AREA)


def in_threads(function: Callable, files: list[str], size: int) -> float:
    """Images a second of a library call in a thread a core."""
    with ThreadPoolExecutor(
        os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        clock = time.perf_counter()
        list(pool.map(lambda file: function(file, size), files))
        return len(files) / (time.perf_counter() - clock)


def into_the_cache(files: list[str], size: int) -> tuple[float, float]:
    """Images a second into an empty cache, and seconds of a call that finds them all there."""
    folder = Path(tempfile.mkdtemp())
    frame = pl.DataFrame({"id": files, "image": files})
    times = []
    for _ in range(2):
        clock = time.perf_counter()
        pixels, bad = images.cache(
            frame, folder, geometry=images.ImagePreprocess(size), name="benchmark"
        )
        times.append(time.perf_counter() - clock)
        assert len(pixels.ids) == len(files) and bad.is_empty()
    shutil.rmtree(folder)
    return len(files) / times[0], times[1]


def compare(n: int, side: int, size: int, repeats: int) -> None:
    functions = {
        "Pillow": by_pillow,
        "Pillow, reduced": by_pillow_draft,
        "torchvision": by_torchvision,
    }
    try:
        import cv2  # noqa: F401

        functions["opencv, area"] = by_opencv
    except ImportError:
        pass
    folder = Path(tempfile.mkdtemp())
    files = write_images(folder, n, side)
    os.sync()  # the disk is done with them before the first turn
    images.from_bytes(Path(files[0]).read_bytes(), images.ImagePreprocess(size))  # libraries loaded
    rates: dict[str, list[float]] = {name: [] for name in ("cache", *functions)}
    for _ in range(repeats):
        rate, again = into_the_cache(files, size)
        rates["cache"].append(rate)
        for name, function in functions.items():
            rates[name].append(in_threads(function, files, size))
    shutil.rmtree(folder)
    print(f"\n{n:,} JPEGs of {side} px to {size} px; a second run over them: {again:.2f} s")
    print(f"{'':>16} {'images/s':>11} {'cache as a share of it':>24}")
    for name, values in rates.items():
        shares = [a / b for a, b in zip(rates["cache"], values, strict=True)]
        spread = f"({min(shares):.2f} - {max(shares):.2f})"
        rate = statistics.median(values)
        print(f"{name:>16} {rate:11.0f} {statistics.median(shares):10.2f} {spread}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, Pillow {Image.__version__}")
    for side, size in ((512, 224), (512, 128), (1024, 224)):
        compare(options.images if side == 512 else options.images // 3, side, size, options.repeats)
