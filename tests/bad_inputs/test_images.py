"""Images: cut, disguised, oversized, in odd modes; read right or set aside with a reason."""

import pickle
import re
import struct
import zlib

import numpy as np
import polars as pl
import pytest
from PIL import Image

from src.data import images
from src.data.images import ImagePreprocess
from src.submit.predictor import Predictor
from tests.helpers.bad_files import BLUE, FORMATS, LIME, RED, WHITE, encoded, flipped

GEOMETRY = ImagePreprocess(32)
CORNERS = (RED, LIME, BLUE, WHITE)  # top left, top right, bottom left, bottom right
GREY = tuple((level,) * 3 for level in (76, 150, 29, 255))  # what they are without colour
UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_90",
    7: "TRANSVERSE",
    8: "ROTATE_270",
}  # EXIF's orientation -> how the sensor had it
ANY = r"unreadable image: \w+"


def corners(side: int = 64) -> Image.Image:
    """Four squares of one colour each, with grain, so that a cut file lacks something."""
    pixels = np.array(CORNERS).reshape(2, 2, 3).repeat(side // 2, 0).repeat(side // 2, 1)
    grain = np.random.default_rng(0).integers(-12, 13, pixels.shape)
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


def chunk(kind: bytes, content: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(
    width: int,
    height: int,
    rows: bytes,
    *,
    depth: int = 8,
    colour: int = 2,
    before: bytes = b"",
    crc: int | None = None,
) -> bytes:
    """A PNG by hand: `rows` with their filter bytes, `before` are chunks in front of the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + before
        + chunk(b"IDAT", zlib.compress(rows), crc)
        + chunk(b"IEND", b"")
    )


def png_rows(pixels: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def turned(orientation: int, kind: str = "jpeg") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = corners()
    if orientation in UPRIGHT:
        stored = stored.transpose(Image.Transpose[UPRIGHT[orientation]])
    return encoded(stored, kind, exif=exif)


def cut_images() -> dict[str, tuple[bytes, object]]:
    found = {}
    for kind in FORMATS:
        whole = encoded(corners(), kind)
        for name, end in (
            ("nothing", 0),
            ("1_byte", 1),
            ("10_bytes", 10),
            ("40_bytes", 40),
            ("half", len(whole) // 2),
            ("most", int(len(whole) * 0.9)),
        ):
            found[f"{kind}_cut_to_{name}"] = whole[:end], ANY
        found[f"{kind}_flipped_magic"] = flipped(whole, 0, 1), ANY
        found[f"{kind}_and_trailing_garbage"] = whole + b"<html>" * 50, CORNERS
        found[f"{kind}_zeroed"] = bytes(len(whole)), ANY
    return found


def impostors() -> dict[str, tuple[bytes, object]]:
    eps = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n"
        b"(owned) print\nshowpage\n%%EOF\n"
    )
    texts = {
        "html": b"<!doctype html><html><body>404 Not Found</body></html>",
        "text": b"a red fox",
        "eps": eps,
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "pdf": b"%PDF-1.7\n1 0 obj\n",
        "json": b'{"error": "rate limit"}',
        "gzip": b"\x1f\x8b\x08" + bytes(40),
        "zip": b"PK\x03\x04" + bytes(40),
        "lfs_pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "pickle": pickle.dumps({"a": 1}),
        "spaces": b" " * 4000,
        "script": b"#!/bin/sh\ntouch owned\n",
    }
    return {f"{name}_as_image": (content, ANY) for name, content in texts.items()}


def bombs() -> dict[str, tuple[bytes, object]]:
    huge = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 1))
    jpeg = encoded(corners(), "jpeg")
    frame = jpeg.index(b"\xff\xc0") + 5
    bmp, gif, tiff = (bytearray(encoded(corners(), kind)) for kind in ("bmp", "gif", "tiff"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    for tag in (256, 257):  # width and height of the directory
        at = tiff.index(struct.pack("<HHI", tag, 4, 1))
        tiff[at + 8 : at + 12] = struct.pack("<I", 60_000)
    return {
        "png_of_2500_megapixels": (png(50_000, 50_000, b"\0"), "DecompressionBombError"),
        "png_of_600_megapixels_in_full": (
            encoded(Image.new("1", (30_000, 20_000)), "png"),
            "DecompressionBombError",
        ),
        "jpeg_of_4290_megapixels": (
            jpeg[:frame] + struct.pack(">HH", 65_500, 65_500) + jpeg[frame + 4 :],
            "DecompressionBombError",
        ),
        "gif_of_4290_megapixels": (bytes(gif), "DecompressionBombError"),
        "bmp_of_3600_megapixels": (bytes(bmp), "DecompressionBombError"),
        "tiff_of_3600_megapixels": (bytes(tiff), "DecompressionBombError"),
        "png_with_a_text_of_200_MB": (
            png(64, 64, png_rows(np.asarray(corners())), before=huge),
            CORNERS,
        ),
        "png_of_one_column": (
            encoded(Image.new("1", (1, 200_000)), "png"),
            "1 x 200000 pixels are too narrow for 32 x 32",
        ),
        "png_that_says_one_column_and_has_no_pixels": (
            png(1, 10**8, b""),
            "1 x 100000000 pixels are too narrow for 32 x 32",
        ),
        "png_of_one_row": (
            encoded(Image.new("1", (200_000, 1)), "png"),
            "200000 x 1 pixels are too narrow for 32 x 32",
        ),
        "jpeg_of_one_column": (encoded(Image.new("RGB", (1, 65_500)), "jpeg"), CORNERS[:0]),
        "gif_of_an_image_without_pixels": (b"GIF89a" + bytes(7) + b";", ANY),
        "png_of_no_width": (png(0, 64, b"\0"), ANY),
    }


def odd_modes() -> dict[str, tuple[bytes, object]]:
    rgb = corners()
    side = 64
    grey = rgb.convert("L")
    deep = np.asarray(rgb.convert("L"), np.uint16) * 257
    pixels = np.asarray(rgb)
    real = np.asarray(grey, np.float32)
    broken = real.copy()
    endless = real.copy()
    broken[3, 3] = np.nan
    endless[3, 3] = np.inf
    clear = rgb.convert("RGBA")
    clear.putalpha(
        Image.fromarray(
            np.where(np.arange(side) < side // 2, 255, 0).astype(np.uint8)[None].repeat(side, 0)
        )
    )
    on_white = (RED, WHITE, BLUE, WHITE)
    black_is_clear = Image.fromarray(
        np.where(np.arange(side)[None, :, None] < side // 2, pixels, 0).astype(np.uint8)
    )
    rgb16 = pixels.astype(np.uint16) * 257
    return {
        "png_16_bit_grey": (encoded(Image.fromarray(deep), "png"), GREY),
        "png_16_bit_colour": (png(side, side, png_rows(rgb16.astype(">u2")), depth=16), CORNERS),
        "tiff_16_bit_grey": (encoded(Image.fromarray(deep), "tiff"), GREY),
        "tiff_32_bit_grey": (encoded(Image.fromarray(deep.astype(np.int32)), "tiff"), GREY),
        "tiff_float_to_1": (encoded(Image.fromarray(real / 255), "tiff"), GREY),
        "tiff_float_to_255": (encoded(Image.fromarray(real), "tiff"), GREY),
        "tiff_float_with_nan": (encoded(Image.fromarray(broken), "tiff"), "NaN or infinite"),
        "tiff_float_with_infinity": (encoded(Image.fromarray(endless), "tiff"), "NaN or infinite"),
        "png_1_bit": (
            encoded(grey.point(lambda v: 255 * (v > 100)).convert("1"), "png"),
            ((0,) * 3, WHITE, (0,) * 3, WHITE),
        ),
        "tiff_1_bit_group4": (
            encoded(
                grey.point(lambda v: 255 * (v > 100)).convert("1"), "tiff", compression="group4"
            ),
            ((0,) * 3, WHITE, (0,) * 3, WHITE),
        ),
        "png_grey": (encoded(grey, "png"), GREY),
        "jpeg_grey": (encoded(grey, "jpeg"), GREY),
        "png_palette": (encoded(rgb.quantize(64), "png"), CORNERS),
        "png_palette_with_transparency": (
            encoded(
                black_is_clear.quantize(64),
                "png",
                transparency=black_is_clear.quantize(64).getpixel((side - 1, 0)),
            ),
            on_white,
        ),
        "png_alpha": (encoded(clear, "png"), on_white),
        "webp_alpha": (encoded(clear, "webp"), on_white),
        "tiff_alpha": (encoded(clear, "tiff"), on_white),
        "png_grey_alpha": (encoded(clear.convert("LA"), "png"), (GREY[0], WHITE, GREY[2], WHITE)),
        "png_colour_key": (encoded(black_is_clear, "png", transparency=(0, 0, 0)), on_white),
        "png_wholly_clear": (encoded(Image.new("RGBA", (9, 9)), "png"), (WHITE,) * 4),
        "jpeg_cmyk": (encoded(rgb.convert("CMYK"), "jpeg"), CORNERS),
        "tiff_cmyk": (encoded(rgb.convert("CMYK"), "tiff"), CORNERS),
        "tiff_lab": (encoded(Image.merge("LAB", rgb.split()), "tiff"), CORNERS[:0]),
        "tiff_ycbcr": (encoded(rgb.convert("YCbCr"), "tiff"), CORNERS),
        "tiff_lzw": (encoded(rgb, "tiff", compression="tiff_lzw"), CORNERS),
        "jpeg_progressive": (encoded(rgb, "jpeg", progressive=True), CORNERS),
        "webp_lossy": (encoded(rgb, "webp", lossless=False, quality=95), CORNERS),
        "jpeg2000": (encoded(rgb, "jpeg2000"), CORNERS),
        "avif": (encoded(rgb, "avif", quality=95), CORNERS),
        "ppm": (encoded(rgb, "ppm"), CORNERS),
        "ico": (encoded(rgb, "ico"), CORNERS),
    }


def odd_files() -> dict[str, tuple[bytes, object]]:
    rgb = corners()
    black = Image.new("RGB", (64, 64))
    jpeg = encoded(rgb, "jpeg")
    plain = encoded(rgb, "png")
    rows = png_rows(np.asarray(rgb))
    text = chunk(b"tEXt", b"Comment\0hello", crc=7)
    found = {
        f"{kind}_animated": (
            encoded(rgb, kind, save_all=True, append_images=[black, black]),
            CORNERS,
        )
        for kind in ("gif", "png", "webp", "tiff")
    }
    found |= {
        f"{kind}_of_one_pixel": (encoded(Image.new("RGB", (1, 1), RED), kind), (RED,) * 4)
        for kind in FORMATS
    }
    found |= {
        f"{width}x{height}_pixels": (
            encoded(Image.new("RGB", (width, height), BLUE), "png"),
            (BLUE,) * 4,
        )
        for width, height in ((1, 500), (500, 1), (3, 4000), (4000, 3), (33, 31), (9000, 20))
    }
    found |= {f"exif_orientation_{o}": (turned(o), CORNERS) for o in range(10)}
    found |= {
        f"exif_orientation_6_in_{kind}": (turned(6, kind), CORNERS)
        for kind in ("png", "webp", "tiff")
    }
    for name, exif in (
        ("cut", b"Exif\0\0MM\0*\0\0"),
        ("loop", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff\0\0"),
        ("text", b"Exif\0\0not at all"),
        ("far", b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(60)),
    ):
        found[f"exif_{name}"] = encoded(rgb, "jpeg", exif=exif), CORNERS
    found |= {
        "jpeg_after_garbage": (b"\r\n\r\n" + jpeg, ANY),
        "jpeg_without_tables": (jpeg[:2] + jpeg[jpeg.index(b"\xff\xc0") :], ANY),
        "jpeg_segment_without_end": (jpeg[:2] + b"\xff\xe1\xff\xff" + jpeg[2:], ANY),
        "png_flipped_width": (flipped(plain, 17), ANY),
        "png_bad_header_crc": (flipped(plain, 30), ANY),
        "png_bad_pixel_crc": (png(64, 64, rows, crc=7), CORNERS),
        "png_bad_text_crc": (png(64, 64, rows, before=text), CORNERS),
        "png_too_few_rows": (png(64, 64, rows[:3000]), ANY),
        "png_of_an_unknown_colour_type": (png(64, 64, rows, colour=5), ANY),
        "png_palette_without_palette": (png(64, 64, bytes(65 * 64), colour=3), (((0,) * 3),) * 4),
        "png_filter_that_is_none": (png(64, 64, b"\x09" + rows[1:]), ANY),
        "png_pixels_flipped": (flipped(plain, len(plain) // 2), ANY),
    }
    return found


IMAGES = cut_images() | impostors() | bombs() | odd_modes() | odd_files()


@pytest.fixture(scope="module")
def decoded(tmp_path_factory) -> dict[str, object]:
    """Every image through one cache: its pixels, or the reason why it was set aside.

    The names say another format than it is.
    """
    folder = tmp_path_factory.mktemp("images")
    for name, (content, _) in IMAGES.items():
        (folder / f"{name}.png").write_bytes(content)
    frame = pl.DataFrame(
        {"id": list(IMAGES), "image": [str(folder / f"{name}.png") for name in IMAGES]}
    )
    pixels, bad = images.cache(frame, folder / "cache", geometry=GEOMETRY, name="bad inputs")
    assert len(pixels.ids) + len(bad) == len(IMAGES), "no image vanishes"
    found = dict(zip(pixels.ids, np.asarray(pixels.array), strict=True)) | dict(
        bad.select("id", "reason").iter_rows()
    )
    return {"folder": folder, **found}


def quarters(pixels: np.ndarray) -> np.ndarray:
    """(4, 3): the mean colour in the middle of each quarter."""
    height = pixels.shape[0] // 4
    width = pixels.shape[1] // 4
    middle = (
        slice(height // 2, height // 2 + height),
        slice(-height // 2 - height, -(height // 2) or None),
    )
    across = (
        slice(width // 2, width // 2 + width),
        slice(-width // 2 - width, -(width // 2) or None),
    )
    return np.array([pixels[y, x].reshape(-1, 3).mean(axis=0) for y in middle for x in across])


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_read_right_or_set_aside(decoded, name):
    found = decoded[name]
    expected = IMAGES[name][1]
    if isinstance(expected, str):
        assert (
            isinstance(found, str)
            and found.startswith("unreadable image: ")
            and re.search(expected, found)
        ), found
        return
    assert isinstance(found, np.ndarray), found
    assert found.shape == (32, 32, 3) and found.dtype == np.uint8
    if expected:
        assert np.abs(quarters(found) - np.array(expected)).max() < 30, quarters(found).round()
        slow = images.resized(images.decode(decoded["folder"] / f"{name}.png"), GEOMETRY)
        assert np.abs(quarters(slow) - quarters(found)).max() < 6


def test_an_image_for_prediction_is_held_to_the_same(decoded, tmp_path):
    predictor = Predictor.__new__(Predictor)
    predictor.preprocesses = {GEOMETRY}
    good = decoded["folder"] / "jpeg_cmyk.png"
    assert (predictor.decode(good)[GEOMETRY] == decoded["jpeg_cmyk"]).all()
    with pytest.raises(ValueError, match="too narrow"):
        predictor.decode(Image.new("RGB", (200_000, 1)))
    with pytest.raises(Image.DecompressionBombError):
        predictor.decode(decoded["folder"] / "png_of_2500_megapixels.png")
