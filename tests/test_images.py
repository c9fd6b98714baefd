"""Decoding one image: the same pixels by every door, and what a broken one is called."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, features

from src.data import images
from src.data.images import ImagePreprocess

PREPROCESS = ImagePreprocess(32)


def gradient(mode: str = "RGB", size: tuple[int, int] = (60, 40)) -> Image.Image:
    """An image whose every pixel differs from its mirror images."""
    width, height = size
    rows = np.arange(height)[:, None] * np.ones(width)
    columns = np.ones(height)[:, None] * np.arange(width)
    rgba = np.stack([rows * 6, columns * 4, rows + columns, 255 - columns * 4], axis=2)
    return Image.fromarray(rgba.astype(np.uint8), "RGBA").convert(mode)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone held upright
    return exif


def saved(folder: Path, kind: str) -> Path:
    """A file whose pixels a plain `convert("RGB")` gets wrong."""
    file = folder / f"{kind}.png"
    if kind == "transparent":
        gradient("RGBA").save(file)
    elif kind == "rotated":
        gradient().save(file, exif=turned())
    elif kind == "sixteen_bit":
        Image.fromarray((np.arange(2400).reshape(40, 60) * 27).astype(np.uint16)).save(file)
    elif kind == "palette":
        gradient("RGB").quantize(16).save(file, transparency=3)
    elif kind == "gray_with_alpha":
        gradient("LA").save(file)
    elif kind == "rotated_jpeg":
        file = file.with_suffix(".jpg")
        gradient().save(file, exif=turned())
    elif kind == "jpeg":
        file = file.with_suffix(".jpg")
        gradient(size=(300, 200)).save(file)
    return file


KINDS = ("transparent", "rotated", "sixteen_bit", "palette", "gray_with_alpha")


@pytest.mark.parametrize("kind", [*KINDS, "rotated_jpeg", "jpeg"])
def test_an_opened_image_gives_the_pixels_of_its_file(tmp_path, kind):
    file = saved(tmp_path, kind)
    expected = images.from_bytes(file.read_bytes(), PREPROCESS)
    with Image.open(file) as opened:
        np.testing.assert_array_equal(images.from_image(opened, PREPROCESS), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_so_does_one_whose_pixels_have_been_read_and_it_stays_as_it_is(tmp_path, kind):
    file = saved(tmp_path, kind)
    expected = images.from_bytes(file.read_bytes(), PREPROCESS)
    with Image.open(file) as opened:
        opened.load()
        size = opened.size
        before = opened.tobytes()
        np.testing.assert_array_equal(images.from_image(opened, PREPROCESS), expected)
        assert opened.size == size and opened.tobytes() == before

    in_memory = Image.open(io.BytesIO(file.read_bytes())).copy()
    np.testing.assert_array_equal(images.from_image(in_memory, PREPROCESS), expected)


def test_the_frame_that_was_chosen_is_the_one_that_counts(tmp_path):
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "two.gif") as opened:
        opened.seek(1)
        assert images.from_image(opened, PREPROCESS)[0, 0].tolist() == [0, 0, 255]


def chunk(kind: bytes, content: bytes, *, sound: bool = True) -> bytes:
    checksum = zlib.crc32(kind + content) ^ (not sound)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png_with(extra: bytes, *, last: bool = False) -> bytes:
    """A PNG of `gradient` with a chunk after its header, or before its end."""
    buffer = io.BytesIO()
    gradient().save(buffer, "PNG")
    content = buffer.getvalue()
    at = len(content) - 12 if last else 33
    return content[:at] + extra + content[at:]


LARGE = zlib.compress(b"x" * 1_500_000)
EXTRAS = {
    "color_profile": chunk(b"iCCP", b"large\0\0" + LARGE),
    "text": chunk(b"zTXt", b"prompt\0\0" + LARGE),
    "text_of_100_million": chunk(b"zTXt", b"prompt\0\0" + zlib.compress(b"x" * 100_000_000)),
    "bad_checksum": chunk(b"tEXt", b"prompt\0a fox", sound=False),
    "bad_checksum_of_exif": chunk(b"eXIf", turned().tobytes()[6:], sound=False),
}


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("name", EXTRAS)
def test_a_png_is_read_whatever_its_extras_are(tmp_path, name, last):
    if name == "color_profile" and last:
        pytest.skip("a profile stands before the pixels")
    if name == "bad_checksum_of_exif" and last:
        pytest.skip("behind the pixels Pillow looks at no checksum, and turns the image")
    expected = images.from_bytes(png_with(b""), PREPROCESS)
    content = png_with(EXTRAS[name], last=last)
    np.testing.assert_array_equal(images.from_bytes(content, PREPROCESS), expected)
    (tmp_path / "fox.png").write_bytes(content)
    assert images.decode(tmp_path / "fox.png").tobytes() == gradient().tobytes()


def test_a_real_large_profile_is_read():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    info = PngImagePlugin.PngInfo()
    buffer = io.BytesIO()
    padded = profile + np.random.default_rng(0).bytes(1_500_000)
    gradient().save(buffer, "PNG", icc_profile=padded, pnginfo=info)
    expected = images.from_bytes(png_with(b""), PREPROCESS)
    np.testing.assert_array_equal(images.from_bytes(buffer.getvalue(), PREPROCESS), expected)


def test_a_png_whose_pixels_are_damaged_is_still_refused():
    content = bytearray(png_with(EXTRAS["bad_checksum"]))
    content[content.index(b"IDAT") + 8] ^= 0xFF
    with pytest.raises((OSError, SyntaxError, ValueError)):
        images.from_bytes(bytes(content), PREPROCESS)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
STAND_INS = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
    "heic": (HEIC, "a HEIC image, which cannot be decoded here: convert it to JPEG or PNG"),
    "empty": (b"", "an empty file"),
    "text": (b"a fox", "its 5 bytes are not an image in any of PNG"),
}


@pytest.mark.parametrize("name", STAND_INS)
def test_what_stands_in_for_an_image_is_named(name):
    content, message = STAND_INS[name]
    with pytest.raises(OSError, match=message):
        images.from_bytes(content, PREPROCESS)


def test_every_ending_but_heic_s_is_decoded(tmp_path):
    assert features.check("avif") and features.check("jpg_2000")
    known = Image.registered_extensions()
    modes = {".pbm": "1", ".pgm": "L"}
    for suffix in set(images.IMAGE_SUFFIXES) - set(images.HEIC_SUFFIXES):
        assert known[suffix] in images.FORMATS, suffix
        file = tmp_path / f"fox{suffix}"
        gradient(modes.get(suffix, "RGB")).save(file)
        assert images.from_bytes(file.read_bytes(), PREPROCESS).shape == (32, 32, 3)
