"""Many images decoded into the cache: what is bad, what is known, what a stop or a disk costs."""

import errno
import os
import resource
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from PIL import Image

from src.data import images
from src.paths import ROOT
from tests.helpers.colored_images import save_image


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """One entry for each image that is decoded from here on."""
    honest = images.from_bytes
    counted = []

    def counting(content: bytes, geometry: images.ImagePreprocess) -> np.ndarray:
        counted.append(1)
        return honest(content, geometry)

    monkeypatch.setattr(images, "from_bytes", counting)
    return counted


def damaged(folder) -> dict[str, str]:
    """One file of each kind that real sets contain: name -> what must come of it."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 48, 3), dtype=np.uint8))
    noise.save(folder / "whole.png")
    noise.save(folder / "whole.jpg")
    for name, cut in (("cut.png", 2000), ("cut.jpg", 900)):
        (folder / name).write_bytes((folder / f"whole.{name[-3:]}").read_bytes()[:cut])
    (folder / "empty.png").write_bytes(b"")
    (folder / "html.jpg").write_bytes(b"<html>404</html>")
    (folder / "wrong.png").write_bytes((folder / "whole.jpg").read_bytes())
    noise.convert("CMYK").save(folder / "cmyk.jpg")
    noise.quantize().save(folder / "palette.png")
    noise.convert("1").save(folder / "bits.png")
    Image.fromarray(np.full((9, 9), 65535, np.uint16)).save(folder / "deep.png")
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(folder / "float.tiff")
    noise.save(folder / "moving.gif", save_all=True, append_images=[Image.new("RGB", (64, 48))])
    Image.new("LA", (9, 9), (0, 0)).save(folder / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise.save(folder / "turned.jpg", exif=exif)
    noise.save(folder / "strange.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    bomb = Image.new("1", (30_000, 20_000))  # 600 megapixels in a few kilobytes
    bomb.save(folder / "bomb.png")
    bad = {"cut.png", "cut.jpg", "empty.png", "html.jpg", "bomb.png"}
    return {f.name: "bad" if f.name in bad else "good" for f in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("reserves", "message"),
    [(True, "File too large.*pixels_64"), (False, "No space left .*pixels_64")],
    ids=["room taken before", "partly written"],
)
def test_pixels_without_room_stop_the_run(tmp_path, monkeypatch, reserves, message):
    if not reserves:
        monkeypatch.delattr(os, "posix_fallocate")  # as on other systems
    save_image(tmp_path / "fox.png", "red")
    frame = pl.DataFrame({"id": ["fox"], "image": [str(tmp_path / "fox.png")]})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (10_000, limits[1])
    )  # of 12,288 bytes: the disk takes no more
    try:
        with pytest.raises(OSError, match=message):
            images.cache(
                frame, tmp_path / "cache", geometry=images.ImagePreprocess(64), name="test"
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert images.cache(
        frame, tmp_path / "cache", geometry=images.ImagePreprocess(64), name="test"
    )[0].ids == ["fox"]


def test_every_kind_of_bad_image_is_set_aside_and_every_odd_one_is_converted(tmp_path):
    expected = damaged(tmp_path)
    frame = pl.DataFrame(
        {"id": list(expected), "image": [str(tmp_path / name) for name in expected]}
    )
    frame = pl.concat(
        [frame, pl.DataFrame({"id": ["gone"], "image": [str(tmp_path / "gone.png")]})]
    )
    pixels, bad = images.cache(
        frame, tmp_path / "cache", geometry=images.ImagePreprocess(32), name="odd"
    )
    assert pixels.ids == [name for name, what in expected.items() if what == "good"]
    assert bad["id"].to_list() == [
        *(name for name, what in expected.items() if what == "bad"),
        "gone",
    ]
    assert all(reason.startswith("unreadable image: ") for reason in bad["reason"])
    assert any("DecompressionBomb" in reason for reason in bad["reason"])
    colour = {
        name: row.reshape(-1, 3).mean(axis=0)
        for name, row in zip(pixels.ids, pixels.array, strict=True)
    }
    assert colour["clear.png"].min() == 255 and colour["deep.png"].min() == 255
    assert colour["float.tiff"] == pytest.approx([127] * 3)
    assert colour["moving.gif"].mean() > 60, "the first frame, not the black one"
    for name in ("wrong.png", "strange.jpg", "turned.jpg", "whole.jpg", "cmyk.jpg", "palette.png"):
        plain = images.resized(images.decode(tmp_path / name), images.ImagePreprocess(32)).astype(
            int
        )
        assert np.abs(pixels.rows([name])[0].astype(int) - plain).max() <= 1, (
            f"{name}: not what decode and open_clip give"
        )
    assert images.decode(tmp_path / "turned.jpg").size == (64, 48), "upright"
    assert len(images.examples(bad, 8)) >= 2, "the cut ones can be shown"


def test_a_large_jpeg_is_decoded_at_a_fraction_and_stays_near_the_full_decoding(tmp_path):
    ramp = np.linspace(0, 255, 1024).astype(np.uint8)
    Image.fromarray(
        np.stack(
            [
                np.tile(ramp, (768, 1)),
                np.tile(ramp[:768, None], (1, 1024)),
                np.full((768, 1024), 90, np.uint8),
            ],
            2,
        )
    ).save(tmp_path / "large.jpg", quality=95)
    full = images.resized(images.decode(tmp_path / "large.jpg"), images.ImagePreprocess(64)).astype(
        int
    )
    quick = images.from_bytes(
        (tmp_path / "large.jpg").read_bytes(), images.ImagePreprocess(64)
    ).astype(int)
    assert np.abs(full - quick).mean() < 1


def frame_of(folder, names):
    return pl.DataFrame({"id": names, "image": [str(folder / f"{name}.png") for name in names]})


def test_the_cache_decodes_only_what_is_new_and_keeps_the_order_asked_for(
    tmp_path, monkeypatch, decoded
):
    monkeypatch.setattr(images, "CHUNK", 2)
    colours = dict(
        zip("abcde", ((9, 0, 0), (0, 9, 0), (0, 0, 9), (9, 9, 0), (0, 9, 9)), strict=True)
    )
    for name, colour in colours.items():
        save_image(tmp_path / f"{name}.png", colour)

    def colours_of(names):
        pixels, bad = images.cache(
            frame_of(tmp_path, names),
            tmp_path / "cache",
            geometry=images.ImagePreprocess(8),
            name="x",
        )
        assert (
            bad.is_empty() and pixels.ids == names and pixels.array.shape == (len(names), 8, 8, 3)
        )
        assert [tuple(row[0, 0]) for row in np.asarray(pixels.array)] == [
            colours[name] for name in names
        ]
        return pixels

    colours_of(["a"])
    first = colours_of(["a", "b", "c"])
    assert len(decoded) == 3 and isinstance(first.array, np.memmap)
    assert colours_of(["a", "b", "c"]).key == first.key and len(decoded) == 3, (
        "unchanged: nothing is decoded"
    )
    grown = colours_of(["a", "d", "b", "c"])
    assert len(decoded) == 4 and grown.key != first.key and isinstance(grown.array, images.Rows)
    assert (
        grown.array[1:3].shape == (2, 8, 8, 3) and tuple(grown.rows(["d"])[0, 0, 0]) == colours["d"]
    )
    (tmp_path / "moved").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "moved" / "a.png")
    moved = frame_of(tmp_path / "moved", ["a"])
    images.cache(moved, tmp_path / "cache", geometry=images.ImagePreprocess(8), name="x")
    assert len(decoded) == 4, "the same content under another name is known"
    colours["b"] = (7, 7, 7)
    save_image(tmp_path / "b.png", (7, 7, 7))
    colours_of(["b", "c"])
    assert len(decoded) == 5, "a changed file is decoded anew"


KILLED = """
import sys, os, polars as pl
from pathlib import Path
from src.data import images
images.CHUNK = 4
honest, done = images.from_bytes, []
def one(content, geometry):
    done.append(1)
    if len(done) > 14:
        os._exit(9)
    return honest(content, geometry)
images.from_bytes = one
folder = Path(sys.argv[1])
files = sorted(folder.glob("*.png"))
frame = pl.DataFrame({"id": [f.stem for f in files], "image": [str(f) for f in files]})
images.cache(frame, folder / "cache", geometry=images.ImagePreprocess(8), name="x")
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path, decoded):
    names = [f"{n:02}" for n in range(20)]
    for n, name in enumerate(names):
        save_image(tmp_path / f"{name}.png", (n, 0, 0))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert killed.returncode == 9, killed.stderr
    pixels, bad = images.cache(
        frame_of(tmp_path, names), tmp_path / "cache", geometry=images.ImagePreprocess(8), name="x"
    )
    assert bad.is_empty() and 0 < len(decoded) <= 12, "at least two chunks were kept"
    assert [int(row[0, 0, 0]) for row in pixels.array] == list(range(20))


def test_a_disk_that_fails_between_two_saves_stops_the_run(tmp_path, monkeypatch):
    for n in range(6):
        save_image(tmp_path / f"{n}.png", (n, 0, 0))
    monkeypatch.setattr(images, "FLUSH", 4)  # six images: one request before the save
    requests = []
    honest = os.fsync

    def fails_once(
        file: int,
    ) -> None:  # as Linux does: an error is reported to one request and then forgotten
        requests.append(file)
        if len(requests) == 1:
            raise OSError(errno.EIO, "Input/output error")
        honest(file)

    monkeypatch.setattr(os, "fsync", fails_once)
    with pytest.raises(OSError, match="Input/output error"):
        images.cache(
            frame_of(tmp_path, list("012345")),
            tmp_path / "cache",
            geometry=images.ImagePreprocess(8),
            name="x",
        )
    assert not list((tmp_path / "cache").glob("*.parquet")), (
        "no index names what may not be on the disk"
    )
