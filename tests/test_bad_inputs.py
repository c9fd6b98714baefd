"""Bad and odd inputs, each with what must come of it: read right, set aside with a reason, or refused by a message that names it.

Any other exception is a fault, and nothing in an input may run. All inputs are made here; a family each, and a fixture that reads
it in one go where that is quicker.
"""

import csv
import io
import json
import os
import pickle
import re
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from src import artifacts, encoder, errors, paths
from src.data import images, layouts, prompts, sample_submission, sources
from src.data.images import ImagePreprocess
from src.dedup import filters, folds
from src.model_a import fit
from src.model_a.recipe import Recipe
from src.model_a.training import Trainer
from src.model_b import datastore, text_pool
from src.runner import params, report
from src.submit import batch, submission
from src.submit.predictor import Predictor
from tests import toy
from tests.test_report import write_output

GEOMETRY = ImagePreprocess(32)

# --- images ---

RED, LIME, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
CORNERS = (RED, LIME, BLUE, WHITE)  # top left, top right, bottom left, bottom right
GREY = tuple((level,) * 3 for level in (76, 150, 29, 255))  # what they are without colour
FORMATS = {
    "jpeg": {"quality": 95, "subsampling": 0},
    "png": {},
    "webp": {"lossless": True},
    "gif": {},
    "bmp": {},
    "tiff": {},
}
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


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **{**FORMATS.get(kind, {}), **options})
    return stream.getvalue()


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
    """A PNG by hand: `rows` with their filter bytes, `before` is chunks between the header and the pixels."""
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


def flipped(content: bytes, *places: int) -> bytes:
    changed = bytearray(content)
    for place in places:
        changed[place] ^= 0xFF
    return bytes(changed)


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
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(owned) print\nshowpage\n%%EOF\n"
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
            ANY,
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
        "gif_of_a_image_without_pixels": (b"GIF89a" + bytes(7) + b";", ANY),
        "png_of_no_width": (png(0, 64, b"\0"), ANY),
    }


def odd_modes() -> dict[str, tuple[bytes, object]]:
    rgb, side = corners(), 64
    grey, deep = rgb.convert("L"), np.asarray(rgb.convert("L"), np.uint16) * 257
    pixels = np.asarray(rgb)
    real = np.asarray(grey, np.float32)
    broken, endless = real.copy(), real.copy()
    broken[3, 3], endless[3, 3] = np.nan, np.inf
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
    rgb, black = corners(), Image.new("RGB", (64, 64))
    jpeg, plain = encoded(rgb, "jpeg"), encoded(rgb, "png")
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
        "png_bad_text_crc": (png(64, 64, rows, before=text), ANY),
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
    """Every image through one cache: its pixels, or the reason why it was set aside. The names say another format than it is."""
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
    height, width = pixels.shape[0] // 4, pixels.shape[1] // 4
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
def test_a_image_is_read_right_or_set_aside(decoded, name):
    found, expected = decoded[name], IMAGES[name][1]
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


def test_a_image_for_prediction_is_held_to_the_same(decoded, tmp_path):
    predictor = Predictor.__new__(Predictor)
    predictor.geometries = {GEOMETRY}
    good = decoded["folder"] / "jpeg_cmyk.png"
    assert (predictor.decode(good)[GEOMETRY] == decoded["jpeg_cmyk"]).all()
    with pytest.raises(ValueError, match="too narrow"):
        predictor.decode(Image.new("RGB", (200_000, 1)))
    with pytest.raises(Image.DecompressionBombError):
        predictor.decode(decoded["folder"] / "png_of_2500_megapixels.png")


# --- prompts in every script ---

PROMPTS = {
    "arabic": "ثعلب أحمر في الثلج",
    "hebrew": "שועל אדום בשלג",
    "persian_with_joiner": "می‌خواهم روباه",
    "urdu": "برف میں سرخ لومڑی",
    "devanagari": "बर्फ़ में लाल लोमड़ी",
    "bengali": "তুষারে লাল শিয়াল",
    "tamil": "பனியில் சிவப்பு நரி",
    "thai": "สุนัขจิ้งจอกสีแดงในหิมะ",
    "tibetan": "ཁ་བའི་ནང་ཝ་དམར།",
    "khmer": "កញ្ជ្រោងក្រហម",
    "chinese": "雪中的红狐狸，油画",
    "japanese": "雪の中の赤い狐、油絵",
    "korean": "눈 속의 붉은 여우",
    "decomposed_korean": "\u1102\u116e\u11ab",
    "georgian": "წითელი მელა თოვლში",
    "armenian": "կարմիր աղվես",
    "greek": "κόκκινη αλεπού",
    "cyrillic": "рыжая лиса в снегу",
    "amharic": "ቀይ ቀበሮ",
    "cherokee": "ᏧᎳ ᎩᎦᎨ",
    "turkish_i": "İSTANBUL'da ılık bir gün",
    "german_sharp_s": "GROẞE STRAßE",
    "vietnamese": "con cáo đỏ trong tuyết",
    "cuneiform": "𒅗𒀀 𒊓",
    "math_letters": "𝓪 𝓻𝓮𝓭 𝓯𝓸𝔁",
    "full_width": "ａ　ｒｅｄ　ｆｏｘ",
    "emoji": "🦊❄️",
    "emoji_family": "👩‍👩‍👧‍👦 and a 🦊",
    "flag_and_skin": "🇬🇪 👋🏿",
    "combining": "fo\u0301\u0323x " + "x" + "\u0301" * 60,
    "right_to_left_override": "a fox \u202egnp.exe\u202c",
    "zero_width": "a\u200b red\u200d\u2060 fox",
    "soft_hyphen": "a re\u00add fox",
    "byte_order_mark_inside": "a \ufeffred fox",
    "replacement": "a \ufffd fox",
    "private_use": "a \ue000 fox",
    "noncharacter": "a \uffff fox",
    "controls": "a\x01\x02\x07\x1b[31m fox\x7f",
    "next_line": "a red\x85fox",
    "line_separator": "a red\u2028fox\u2029end",
    "newline": "a red fox\nin the snow",
    "carriage_return_newline": "a red fox\r\nin snow",
    "tab": "a\tred\tfox",
    "quotes": '"a ""red"" fox\'s \\"den\\""',
    "commas": "a fox, red, oil on canvas, 4k,",
    "backslashes": "C:\\fox\\n\\u0041",
    "formula": '=HYPERLINK("http://x","fox")',
    "plus": "+1+cmd|' /C calc'!A0",
    "minus": "-2+3 foxes",
    "at": "@SUM(1,2) fox",
    "formula_after_tab": "\t=1+1 fox",
    "formula_after_spaces": "  =1+1 fox",
    "formula_after_zero_width": "\u200b=1+1 fox",
    "formula_full_width": "＝1+1 fox",
    "script": "<script>alert('fox')</script>",
    "image_with_handler": "<img src=x onerror=alert(1)> fox",
    "closing_tags": "</style></div></body><iframe src=//x>",
    "entity": "&lt;b&gt; &amp; &#x41; fox",
    "attribute": '" onmouseover="alert(1)" fox',
    "template": "{{7*7}} ${7*7} <%= 7 %> fox",
    "percent": "%s %d %(x)s {0} {fox}",
    "sql": "'; DROP TABLE prompts; --",
    "shell": "$(touch owned) `touch owned`; touch owned",
    "null_word": "null",
    "nan_word": "NaN",
    "true_word": "true",
    "number": "007",
    "date": "2020-01-01",
    "json": '{"prompt": "a fox"}',
    "path": "../../etc/passwd",
    "hundred_thousand": "a red fox " * 10_000,
    "one_long_word": "x" * 100_000,
}
NOTHING = {
    "empty": "",
    "spaces": "   ",
    "unicode_spaces": "\u00a0\u2003\u3000\u202f",
    "tabs_and_newlines": "\t \n \r",
    "zero_width_only": "\u200b\u200d\ufeff",
    "direction_marks_only": "\u202e\u202c\u200f",
    "controls_only": "\x01\x02\x7f",
    "nul_only": "\0",
}
CLEANED = {"nul": ("a\0 red\0 fox", "a red fox")}  # a NUL is taken out
TEXTS = PROMPTS | NOTHING | {name: text for name, (text, _) in CLEANED.items()}
LAYOUTS = ("csv", "tsv", "jsonl", "parquet", "shards", "files")


def write_layout(folder: Path, layout: str) -> None:
    folder.mkdir()
    picture = encoded(Image.new("RGB", (8, 8), RED), "png")
    names = [f"{name}.png" for name in TEXTS]
    if layout == "shards":
        with tarfile.open(folder / "0.tar", "w") as tar:
            for name, text in TEXTS.items():
                for suffix, content in ((".png", picture), (".txt", text.encode())):
                    member = tarfile.TarInfo(name + suffix)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        return
    for name, text in TEXTS.items():
        (folder / f"{name}.png").write_bytes(picture)
        if layout == "files":
            (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
    if layout == "parquet":
        pl.DataFrame({"file_name": names, "prompt": list(TEXTS.values())}).write_parquet(
            folder / "metadata.parquet"
        )
    elif layout == "jsonl":
        rows = (
            json.dumps({"file_name": name, "prompt": text})
            for name, text in zip(names, TEXTS.values(), strict=True)
        )
        (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    elif layout in ("csv", "tsv"):
        with open(folder / f"table.{layout}", "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t" if layout == "tsv" else ",")
            writer.writerows([("file_name", "prompt"), *zip(names, TEXTS.values(), strict=True)])


@pytest.fixture(scope="module")
def read(tmp_path_factory) -> dict[str, dict[str, str]]:
    """For each layout what each prompt came back as; a set-aside one as its reason in brackets."""
    found = {}
    for layout in LAYOUTS:
        folder = tmp_path_factory.mktemp("prompts") / layout
        write_layout(folder, layout)
        pairs, rejected = sources.read_pairs(folder)
        rows = [
            *pairs.select("id", "prompt").rows(),
            *((i, f"[{reason}]") for i, reason in rejected.select("id", "reason").rows()),
        ]
        found[layout] = {i.rpartition("/")[2]: text for i, text in rows}
        assert len(rows) == len(TEXTS), f"{layout}: rows vanish or multiply"
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_a_prompt_comes_back_from_every_layout_unchanged_or_is_set_aside(read, name):
    expected = "[empty prompt]" if name in NOTHING else CLEANED.get(name, (None, TEXTS[name]))[1]
    assert {layout: read[layout][name] for layout in LAYOUTS} == dict.fromkeys(LAYOUTS, expected)


def test_every_prompt_passes_the_rules_with_a_reason_or_stays_as_it_is(tmp_path):
    texts = pl.Series("prompt", [text.replace("\0", "") for text in TEXTS.values()])
    reasons = filters.rules(
        texts,
        min_words=1,
        max_tokens=77,
        edge_characters=0,
        n_tokens=prompts.count_tokens(texts.to_list()),
    )
    reason = dict(zip(TEXTS, reasons, strict=True))
    assert (
        reason["hundred_thousand"] == "more than 77 tokens"
        and reason["empty"] == "empty"
        and reason["arabic"] is None
    )
    assert {name for name in PROMPTS if reason[name] not in (None, "exact duplicate")} == {
        "hundred_thousand"
    }
    assert {reason[name] for name in ("full_width", "tab", "next_line")} == {"exact duplicate"}, (
        "of the letters of mathematics"
    )
    tally = text_pool.write_text_pool(
        [pl.DataFrame({"prompt": texts, "source": "x"})],
        tmp_path / "store.parquet",
        min_words=1,
        engine="polars",
    )
    kept = pl.read_parquet(tmp_path / "store.parquet")["prompt"].to_list()
    assert set(kept) <= set(texts) and len(kept) == tally["kept"] and tally.total() == len(texts)


def test_prompts_survive_the_tables(tmp_path):
    frame = pl.DataFrame({"prompt": list(PROMPTS.values())})
    for file in ("table.parquet", "table.csv"):
        artifacts.save_table(tmp_path / file, frame)
        assert artifacts.load_table(tmp_path / file).equals(frame), file


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_is_no_formula_in_a_csv(tmp_path, name):
    pl.DataFrame({"id": [TEXTS[name]]}).with_columns(batch.harmless(pl.col("id"))).write_csv(
        tmp_path / "list.csv"
    )
    with open(tmp_path / "list.csv", encoding="utf-8", newline="") as stream:
        cell = list(csv.reader(stream))[1][0]
    assert cell in (TEXTS[name], f"'{TEXTS[name]}")
    assert not re.sub(r"^[\s\u200b]+", "", cell).startswith(tuple("=+-@＝＋－＠"))


class Words(HTMLParser):
    """A page's text and the tags and attributes that are in it."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.tags, self.attributes = [], set(), set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> tuple[Words, Words]:
    """The report without a prompt in its gallery, and with all of them, as truth and as neighbour."""
    output = tmp_path_factory.mktemp("report")
    write_output(output)
    gallery = pl.read_parquet(output / paths.GALLERY)
    found = []
    for texts in ([], [text for name, text in PROMPTS.items() if len(text) < 1000]):
        rows = {
            "id": texts,
            "image": ["gone.png"] * len(texts),
            "confidence": [0.5] * len(texts),
            "prompts": [[t] for t in texts],
            "truth": texts,
            "cosine": [0.5] * len(texts),
        }
        artifacts.save_table(output / paths.GALLERY, pl.DataFrame(rows, schema=gallery.schema))
        found.append(Words(report.write(output).read_text(encoding="utf-8")))
    return found[0], found[1]


def test_no_prompt_is_markup_in_the_report(pages):
    without, with_all = pages
    assert (
        with_all.tags - without.tags <= {"li", "b", "ul", "br", "span"}
        and with_all.attributes == without.attributes
    )
    words = "\0".join(with_all.text)
    for name, text in PROMPTS.items():
        if len(text) < 1000:
            assert words.count(text.replace("\r\n", "\n")) >= 2, name


# --- tables ---

FOX = b"fox.png,a red fox\n"
HEADER = b"file_name,prompt\n"


def parquet(**columns) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def lines(*rows: object) -> bytes:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()


def deep(n: int) -> str:
    return '{"file_name": "fox.png", "prompt": ' + "[" * n + "]" * n + "}"


def row(name="fox.png", prompt: object = "a red fox") -> dict:
    return {"file_name": name, "prompt": prompt}


ONE = [
    ("a red fox", None)
]  # (prompt, reason): what must be there; an image without a row is not counted
BOTH = [("a red fox", None), ("an owl", None)]
EMPTY, GONE = (None, "empty prompt"), (None, "no such image")
TABLES: dict[str, tuple[str, bytes, list | str]] = {
    "csv": ("metadata.csv", HEADER + FOX, ONE),
    "csv_of_windows": (
        "metadata.csv",
        b"\xef\xbb\xbf" + (HEADER + FOX).replace(b"\n", b"\r\n"),
        ONE,
    ),
    "csv_of_an_old_mac": ("metadata.csv", (HEADER + FOX).replace(b"\n", b"\r"), ONE),
    "csv_utf16": (
        "metadata.csv",
        "file_name,prompt\nfox.png,рыжая лиса\n".encode("utf-16"),
        [("рыжая лиса", None)],
    ),
    "csv_utf16_big_endian": (
        "metadata.csv",
        b"\xfe\xff" + "file_name,prompt\nfox.png,狐\n".encode("utf-16-be"),
        [("狐", None)],
    ),
    "csv_latin1": (
        "metadata.csv",
        HEADER + "fox.png,café fox\n".encode("latin-1"),
        [("caf\ufffd fox", None)],
    ),
    "csv_utf16_without_mark": (
        "t.csv",
        "prompt,file_name\na red fox,fox.png\n".encode("utf-16-le"),
        ONE,
    ),
    "csv_empty": ("metadata.csv", b"", "no rows below the header"),
    "csv_blank_lines_only": ("metadata.csv", b"\n\n\n", "no rows below the header"),
    "csv_header_only": ("metadata.csv", HEADER, "no rows below the header"),
    "csv_without_a_prompt_column": (
        "metadata.csv",
        b"file_name,words\nfox.png,a fox\n",
        "no text column among ..file_name', 'words'",
    ),
    "csv_without_a_image_column": (
        "metadata.csv",
        b"image,prompt\nfox.png,a fox\n",
        "no image column among ..image', 'prompt'",
    ),
    "csv_without_a_header": ("metadata.csv", FOX + FOX, "no image column"),
    "csv_by_semicolons": (
        "metadata.csv",
        b"file_name;prompt\nfox.png;a fox\n",
        "no image column among ..file_name;prompt'",
    ),
    "csv_by_tabs": ("metadata.csv", b"file_name\tprompt\nfox.png\ta fox\n", "no image column"),
    "csv_with_a_column_twice": (
        "metadata.csv",
        b"file_name,prompt,prompt\nfox.png,a,b\n",
        "columns are there twice: ..prompt'",
    ),
    "csv_with_unnamed_columns": (
        "metadata.csv",
        b",,file_name,prompt\n1,2,fox.png,a red fox\n",
        ONE,
    ),
    "csv_short_row": ("metadata.csv", HEADER + b"fox.png\n" + FOX, [EMPTY, *ONE]),
    "csv_comma_without_quotes": (
        "metadata.csv",
        HEADER + b"owl.png,an owl, at night\n" + FOX,
        [EMPTY, *ONE],
    ),
    "csv_trailing_commas": ("metadata.csv", HEADER + b"fox.png,a red fox,,\n", ONE),
    "csv_blank_rows": ("metadata.csv", HEADER + b"\n\n" + FOX + b"\n", ONE),
    "csv_spaces_in_the_header": ("metadata.csv", b"file_name, prompt\n" + FOX, "no text column"),
    "csv_quote_never_closed": (
        "metadata.csv",
        HEADER + b'fox.png,"a red fox\n',
        [("a red fox\n", None)],
    ),
    "csv_quotes_doubled": (
        "metadata.csv",
        HEADER + b'fox.png,"a ""red"" fox"\n',
        [('a "red" fox', None)],
    ),
    "csv_quote_in_the_middle": (
        "metadata.csv",
        HEADER + b'fox.png,a 5" fox\n',
        [('a 5" fox', None)],
    ),
    "csv_nuls": ("metadata.csv", HEADER + b"fox.png,a\0 red\0 fox\n", ONE),
    "csv_binary": ("metadata.csv", bytes(range(256)) * 20, "no image column"),
    "csv_name_of_300_characters": (
        "metadata.csv",
        HEADER + b"a" * 300 + b",a fox\n" + FOX,
        [("a fox", "no such image"), *ONE],
    ),
    "csv_name_with_nul": (
        "metadata.jsonl",
        lines(row("a\0b.png"), row()),
        [("a red fox", "no such image"), *ONE],
    ),
    "csv_name_of_nobody_s_home": (
        "metadata.csv",
        HEADER + b"~nobody:1/gone.png,a fox\n" + FOX,
        [("a fox", "no such image"), *ONE],
    ),
    "csv_name_outside": (
        "metadata.csv",
        HEADER + b"../../none/passwd,a fox\n/none/shadow,a fox\n" + FOX,
        [("a fox", "no such image")] * 2 + ONE,
    ),
    "csv_name_is_a_folder": (
        "metadata.csv",
        HEADER + b".,a fox\n" + FOX,
        [("a fox", "no such image"), *ONE],
    ),
    "csv_name_empty": (
        "metadata.csv",
        HEADER + b",a fox\n" + FOX,
        [("a fox", "no such image"), *ONE],
    ),
    "csv_name_like_a_shard": (
        "metadata.csv",
        HEADER + b"x.tar::a.png@0+9999999999,a fox\n" + FOX,
        [("a fox", "no such image"), *ONE],
    ),
    "csv_name_on_another_machine": ("metadata.csv", HEADER + b"C:\\sets\\fox.png,a red fox\n", ONE),
    "csv_the_same_name_twice": (
        "metadata.csv",
        HEADER + FOX + FOX,
        [*ONE, ("a red fox", "id occurs twice")],
    ),
    "tsv": ("table.tsv", b"file_name\tprompt\nfox.png\ta red fox\n", ONE),
    "tsv_by_commas": ("table.tsv", HEADER + FOX, "neither prompts.csv"),
    "jsonl": ("metadata.jsonl", lines(row()), ONE),
    "jsonl_with_mark": ("metadata.jsonl", b"\xef\xbb\xbf" + lines(row()), ONE),
    "jsonl_empty": ("metadata.jsonl", b"", "none of its 0 lines is a JSON object"),
    "jsonl_no_json": ("metadata.jsonl", b"a fox\nan owl\n", "none of its 2 lines is a JSON object"),
    "jsonl_broken_first_line": (
        "rows.jsonl",
        lines("{cut", row()),
        [("[none]", "empty prompt"), *ONE],
    ),
    "jsonl_broken_line": (
        "metadata.jsonl",
        lines(row(), '{"file_name": "owl', row("owl.png", "an owl")),
        [ONE[0], EMPTY, BOTH[1]],
    ),
    "jsonl_arrays_and_numbers": (
        "metadata.jsonl",
        lines([1, 2], 3, None, row()),
        [EMPTY, EMPTY, EMPTY, *ONE],
    ),
    "jsonl_single_array": (
        "metadata.jsonl",
        json.dumps([row()]).encode(),
        "none of its 1 lines is a JSON object",
    ),
    "jsonl_nested_too_deep": ("metadata.jsonl", lines(deep(100_000), row()), [EMPTY, *ONE]),
    "jsonl_number_of_5000_digits": (
        "metadata.jsonl",
        lines('{"file_name": "fox.png", "prompt": ' + "9" * 5000 + "}", row()),
        [EMPTY, *ONE],
    ),
    "jsonl_half_a_surrogate_pair": (
        "metadata.jsonl",
        lines(row(prompt="a red \ud83e fox")),
        [("a red \ufffd fox", None)],
    ),
    "jsonl_half_a_pair_in_a_name": ("metadata.jsonl", lines({**row(), "\udc00": 1}), ONE),
    "jsonl_whole_surrogate_pair": ("metadata.jsonl", lines(row(prompt="a 🦊")), [("a 🦊", None)]),
    "jsonl_escaped_backslash_before_u": (
        "metadata.jsonl",
        lines(row(prompt="C:\\ud800 fox")),
        [("C:\\ud800 fox", None)],
    ),
    "jsonl_prompt_is_a_list": (
        "metadata.jsonl",
        lines(row(prompt=["a", "b"])),
        [('["a", "b"]', None)],
    ),
    "jsonl_prompt_is_a_number": ("metadata.jsonl", lines(row(prompt=7)), [("7", None)]),
    "jsonl_prompt_is_null": (
        "metadata.jsonl",
        lines(row(prompt=None), row("owl.png", "an owl")),
        [EMPTY, BOTH[1]],
    ),
    "jsonl_key_twice": (
        "metadata.jsonl",
        b'{"file_name": "fox.png", "prompt": "x", "prompt": "a red fox"}',
        ONE,
    ),
    "jsonl_names_are_numbers": (
        "metadata.jsonl",
        lines(row(7), row()),
        [("a red fox", "no such image"), *ONE],
    ),
    "parquet": ("metadata.parquet", parquet(file_name=["fox.png"], prompt=["a red fox"]), ONE),
    "parquet_empty_file": ("metadata.parquet", b"", r"metadata.parquet cannot be read: "),
    "parquet_that_is_a_csv": (
        "metadata.parquet",
        HEADER + FOX,
        r"metadata.parquet cannot be read: ",
    ),
    "parquet_cut": (
        "metadata.parquet",
        parquet(file_name=["fox.png"], prompt=["a red fox"])[:-30],
        r"metadata.parquet cannot be read: ",
    ),
    "parquet_head_and_foot_only": (
        "metadata.parquet",
        b"PAR1" + bytes(40) + b"PAR1",
        r"metadata.parquet cannot be read: ",
    ),
    "parquet_huge_footer": (
        "metadata.parquet",
        b"PAR1" + b"\xff" * 36 + b"\xff\xff\xff\x7fPAR1",
        r"metadata.parquet cannot be read: ",
    ),
    "parquet_without_rows": (
        "metadata.parquet",
        parquet(file_name=pa.array([], pa.string()), prompt=pa.array([], pa.string())),
        [],
    ),
    "parquet_without_columns": ("metadata.parquet", parquet(), "no image column"),
    "parquet_prompts_are_numbers": (
        "metadata.parquet",
        parquet(file_name=["fox.png"], prompt=[7]),
        [("7", None)],
    ),
    "parquet_prompts_are_bytes": (
        "metadata.parquet",
        parquet(file_name=["fox.png", "owl.png"], prompt=[b"a red fox", b"\xff\xfe"]),
        [*ONE, ("\ufffd\ufffd", None)],
    ),
    "parquet_prompts_are_lists": (
        "metadata.parquet",
        parquet(file_name=["fox.png"], prompt=[["a", "b"]]),
        "prompt holds List",
    ),
    "parquet_prompts_are_structs": (
        "metadata.parquet",
        parquet(file_name=["fox.png"], prompt=[{"a": 1}]),
        "prompt holds Struct",
    ),
    "parquet_prompts_are_null": (
        "metadata.parquet",
        parquet(file_name=["fox.png"], prompt=pa.nulls(1)),
        [EMPTY],
    ),
    "parquet_names_are_numbers": (
        "metadata.parquet",
        parquet(file_name=[7], prompt=["a fox"]),
        [("a fox", "no such image")],
    ),
    "parquet_names_are_lists": (
        "metadata.parquet",
        parquet(file_name=[["fox.png"]], prompt=["a fox"]),
        "file_name holds List",
    ),
    "parquet_images_are_broken": (
        "data.parquet",
        parquet(image=[b"x", None], prompt=["a", "b"]),
        [("a", None), ("b", None)],
    ),
    "parquet_images_without_prompts": (
        "data.parquet",
        parquet(image=[b"x"], words=["a"]),
        "no text column",
    ),
    "coco_broken": ("captions_x.json", b"{cut", r"captions_x.json cannot be read: "),
    "coco_without_images": (
        "captions_x.json",
        b'{"annotations": []}',
        r"captions_x.json cannot be read: ",
    ),
    "coco_of_other_types": (
        "captions_x.json",
        b'{"images": [{"id": [], "file_name": 3}], "annotations": []}',
        "not every entry of its images",
    ),
    "coco_is_a_list": ("captions_x.json", b"[1]", r"captions_x.json cannot be read: "),
    "diffusiondb_broken": ("part-000001.json", b"{cut", [(None, "part is no JSON")]),
    "diffusiondb_is_a_list": (
        "part-000001.json",
        b'["ab"]',
        [(None, "part is no JSON: it holds a list")],
    ),
    "diffusiondb_of_other_types": (
        "part-000001.json",
        b'{"fox.png": 3, "owl.png": {"p": [1]}, "x\\u0000.png": {"p": "a"}}',
        [EMPTY, ("[1]", None), ("a", "no such image")],
    ),
    "journeydb_broken_cell": (
        "a.jsonl",
        lines({"img_path": "fox.png", "prompt": "a red fox", "Task2": "{"}),
        ONE,
    ),
}


@pytest.fixture
def menagerie(tmp_path) -> Path:
    """A folder with two images and no table yet."""
    for name in ("fox", "owl"):
        (tmp_path / f"{name}.png").write_bytes(encoded(Image.new("RGB", (8, 8), RED), "png"))
    return tmp_path


def outcome(folder: Path) -> list[tuple[str | None, str | None]]:
    """(prompt, reason) of every row, sorted; without the images that have no row."""
    pairs, rejected = sources.read_pairs(folder)
    assert sources.reason_counts(rejected)["rows"].sum() == len(rejected)
    rejected = rejected.filter(pl.col("reason") != sources.UNLISTED)
    return [
        *((prompt, None) for prompt in pairs["prompt"]),
        *rejected.select("prompt", "reason").rows(),
    ]


def assert_outcome(folder: Path, expected: list | str) -> None:
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            sources.read_pairs(folder)
        return
    found = outcome(folder)
    assert [p for p, reason in found if reason is None] == [
        p for p, reason in expected if reason is None
    ], found
    reasons = (
        sorted(reason for _, reason in found if reason),
        sorted(reason for _, reason in expected if reason),
    )
    assert len(reasons[0]) == len(reasons[1]) and all(
        a.startswith(b) for a, b in zip(*reasons, strict=True)
    ), found


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_with_every_row_accounted_for_or_refused(menagerie, name):
    file, content, expected = TABLES[name]
    (menagerie / file).write_bytes(content)
    assert_outcome(menagerie, expected)


TEXT_SOURCES: dict[str, tuple[str, bytes, list[str] | str]] = {
    "txt_with_mark": ("a.txt", b"\xef\xbb\xbfa fox\r\nan owl\r\n", ["a fox", "an owl"]),
    "txt_utf16": ("a.txt", "狐\nan owl\n".encode("utf-16"), ["狐", "an owl"]),
    "txt_empty": ("a.txt", b"", []),
    "txt_blank": ("a.txt", "\n \n\u3000\n\u200b\n".encode(), []),
    "txt_nuls": ("a.txt", b"\0\0\na\0 fox\n", ["a fox"]),
    "txt_other_line_ends": ("a.txt", "a\u2028b\x0bc\x85d\n".encode(), ["a\u2028b\x0bc\x85d"]),
    "txt_latin1": ("a.txt", "café\n".encode("latin-1"), ["caf\ufffd"]),
    "csv_comma_without_quotes": ("a.csv", b"prompt,n\na fox, red,1\nan owl,2\n", ["an owl"]),
    "csv_column_twice": ("a.csv", b"prompt,prompt\na,b\n", "columns are there twice"),
    "csv_empty": ("a.csv", b"", "no text column among"),
    "csv_without_the_column": ("a.csv", b"x,y\n1,2\n", "no text column among"),
    "jsonl_half_a_pair": ("a.jsonl", lines({"text": "a \ud83e fox"}), ["a \ufffd fox"]),
    "jsonl_broken_first_line": ("a.jsonl", lines("{cut", {"text": "a fox"}), ["a fox"]),
    "jsonl_nested_too_deep": ("a.jsonl", lines({"text": "a fox"}, deep(100_000)), ["a fox"]),
    "parquet_broken": ("a.parquet", b"PAR1 no", r"a.parquet cannot be read: "),
    "parquet_of_lists": ("a.parquet", parquet(prompt=[["a"]]), "prompt holds List"),
    "parquet_of_numbers_and_nulls": ("a.parquet", parquet(prompt=[1, None]), ["1"]),
}


@pytest.mark.parametrize("name", TEXT_SOURCES)
def test_a_text_source_is_read_or_refused(tmp_path, name):
    file, content, expected = TEXT_SOURCES[name]
    (tmp_path / file).write_bytes(content)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            sources.read_text(str(tmp_path / file))
    else:
        assert sources.read_text(str(tmp_path / file))["prompt"].to_list() == expected


def test_a_file_whose_name_is_no_utf8_is_set_aside_and_shown(menagerie):
    name = os.fsdecode(b"caf\xe9.png")
    (menagerie / name).write_bytes((menagerie / "fox.png").read_bytes())
    (menagerie / (name[:-4] + ".txt")).write_text("a fox")
    (menagerie / "metadata.csv").write_bytes(HEADER + FOX)
    rejected = sources.read_pairs(menagerie)[1]
    assert any(image.endswith("caf\\udce9.png") for image in rejected["image"])
    pairs, rejected = sources.read_pairs(menagerie, "files")
    assert rejected["reason"].to_list()[0] == "no such image"
    assert "caf\\udce9" in sources.read_test(menagerie)[0]["id"].to_list()


BEAR = b"imgId_eId,val\n" + b"".join(b"bear_%d,1\n" % i for i in range(384))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the header is '', must be 'imgId_eId,val'"),
        (b"id,val\n", "the header is 'id,val', must be 'imgId_eId,val'"),
        (b"PK\x03\x04\xff\xfe", "the header is 'PK.*, must be 'imgId_eId,val'"),
        (b"imgId_eId,val\n", "no rows below the header"),
        (b"imgId_eId,val\nbear_0,1\n", "1 vectors are not 384 long, e.g. .'bear: 1'"),
        (BEAR, "1 of 1 ids have no image"),
    ],
)
def test_a_bad_sample_beside_the_test_images_is_refused(menagerie, content, message):
    (menagerie / "sample_submission.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        sources.read_test(menagerie)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "folds.csv cannot be read"),
        (b"id,fold\na,x\n", "fold"),
        (b"id\na\n", "wanted id and fold"),
        (b"id,fold\na,0\na,1\n", "each id named once"),
        (b"id,fold\na,1\n", "folds must be 0, 1"),
        (b"id,fold\na,-1\n", "folds must be 0, 1"),
        (b"id,fold\na,0,9\nb,1,9\n", "folds.csv cannot be read"),
    ],
)
def test_a_bad_fold_file_is_refused(tmp_path, content, message):
    (tmp_path / "folds.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        folds.given_folds(tmp_path / "folds.csv", ["a", "b"], np.array([0, 1]))


# --- shards ---


def tar_of(*members: tuple, **options) -> bytes:
    """A tar of (name, content) files; a dict as third sets fields of the header."""
    stream = io.BytesIO()
    with tarfile.open(
        fileobj=stream,
        mode="w",
        format=options.get("format", tarfile.GNU_FORMAT),
        errors="surrogateescape",
    ) as tar:
        for name, content, *fields in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in (fields[0] if fields else {}).items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def with_size(content: bytes, at: int, field: bytes) -> bytes:
    """The header at `at` with another size, and the checksum that fits it."""
    header = bytearray(content[at : at + 512])
    header[124:136], header[148:156] = field.ljust(12, b"\0"), b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:at] + bytes(header) + content[at + 512 :]


DOT = encoded(Image.new("RGB", (8, 8), RED), "png")
GOOD = (("a.png", DOT), ("a.txt", b"a red fox"))
TAIL = (("b.png", DOT), ("b.txt", b"an owl"))
REST = None, "shard cannot be read on"
CALLED = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
SHARDS: dict[str, tuple[bytes, list]] = {
    "whole": (tar_of(*GOOD, *TAIL), BOTH),
    "pax_format": (tar_of(*GOOD, format=tarfile.PAX_FORMAT), ONE),
    "of_0_bytes": (b"", [REST]),
    "of_garbage": (b"no tar at all" * 100, [REST]),
    "of_zeros": (bytes(10_240), []),
    "gzipped": (b"\x1f\x8b\x08" + bytes(600), [REST]),
    "cut_in_a_header": (tar_of(*GOOD, *TAIL)[: 2048 + 100], [*ONE, REST]),
    "cut_between_members": (tar_of(*GOOD, *TAIL)[:2048], ONE),
    "cut_in_a_image": (
        tar_of(*TAIL, ("c.png", DOT * 100))[:-9000][:3000],
        [("an owl", None), EMPTY, REST],
    ),
    "with_a_flipped_header": (flipped(tar_of(*GOOD, *TAIL), 2048 + 150), [*ONE, REST]),
    "with_names_above": (tar_of(("../../x.png", DOT), ("../../x.txt", b"a red fox")), ONE),
    "with_absolute_names": (tar_of(("/etc/x.png", DOT), ("/etc/x.txt", b"a red fox")), ONE),
    "with_backslashes": (tar_of(("..\\x.png", DOT), ("..\\x.txt", b"a red fox")), [EMPTY]),
    "with_a_link": (
        tar_of(("a.png", b"", CALLED), ("a.txt", b"a fox"), *TAIL),
        [("a fox", layouts.NO_IMAGE), BOTH[1]],
    ),
    "with_a_hard_link": (
        tar_of(
            ("a.txt", b"", {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}), ("a.png", DOT)
        ),
        [EMPTY],
    ),
    "with_a_device": (
        tar_of(("a.png", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5}), *TAIL),
        BOTH[1:],
    ),
    "with_a_pipe": (tar_of(("a.png", b"", {"type": tarfile.FIFOTYPE}), *TAIL), BOTH[1:]),
    "with_a_folder": (tar_of(("d.png", b"", {"type": tarfile.DIRTYPE}), *GOOD), ONE),
    "with_a_sample_twice": (tar_of(*GOOD, *TAIL, *GOOD), [*BOTH, ("a red fox", "id occurs twice")]),
    "with_a_member_twice": (tar_of(GOOD[0], ("a.txt", b"x"), GOOD[1]), ONE),
    "without_a_caption": (tar_of(GOOD[0], *TAIL), [EMPTY, BOTH[1]]),
    "with_a_caption_of_0_bytes": (tar_of(GOOD[0], ("a.txt", b"")), [EMPTY]),
    "with_a_caption_of_spaces": (tar_of(GOOD[0], ("a.txt", b" \n")), [EMPTY]),
    "with_captions_that_are_no_utf8": (
        tar_of(GOOD[0], ("a.txt", b"caf\xe9")),
        [("caf\ufffd", None)],
    ),
    "with_a_json_that_is_none": (tar_of(GOOD[0], ("a.json", b"{cut")), [EMPTY]),
    "with_a_json_nested_too_deep": (tar_of(GOOD[0], ("a.json", b"[" * 100_000)), [EMPTY]),
    "with_a_json_that_is_a_list": (tar_of(GOOD[0], ("a.json", b'["caption"]')), [EMPTY]),
    "with_half_a_surrogate_pair": (
        tar_of(GOOD[0], ("a.json", b'{"caption": "a \\ud83e fox"}')),
        [("a \ufffd fox", None)],
    ),
    "with_names_that_are_no_utf8": (
        tar_of(("caf\udce9.png", DOT), ("caf\udce9.txt", b"a red fox")),
        ONE,
    ),
    "with_a_name_of_2000_characters": (
        tar_of(("x" * 2000 + ".png", DOT), ("x" * 2000 + ".txt", b"a red fox")),
        ONE,
    ),
    "with_a_name_like_a_reference": (
        tar_of(("a.tar::b@1+2/x.png", DOT), ("a.tar::b@1+2/x.txt", b"a red fox")),
        ONE,
    ),
    "with_names_without_a_stem": (tar_of((".png", DOT), (".txt", b"a red fox")), ONE),
    "with_a_size_below_0": (with_size(tar_of(*GOOD, *TAIL), 2048, b"\xff" * 12), [*ONE, REST]),
    "with_a_size_of_8_GB": (
        with_size(tar_of(*GOOD), 1024, b"77777777777"),
        [("a red fox", None), REST],
    ),
    "with_a_size_of_an_exabyte": (
        with_size(tar_of(*GOOD), 1024, b"\x80\0\0\0\x10" + bytes(7)),
        [("a red fox", None), REST],
    ),
    "with_a_long_name_of_an_exabyte": (
        with_size(tar_of(("x" * 300 + ".png", DOT)), 0, b"\x80\0\0\0\x10" + bytes(7)),
        [REST],
    ),
}


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_is_read_as_far_as_it_is_whole_and_nothing_leaves_it(tmp_path, name):
    content, expected = SHARDS[name]
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "00000.tar").write_bytes(content)
    found = outcome(folder)
    assert [file.name for file in tmp_path.rglob("*")] == ["inside", "00000.tar"], (
        "nothing is unpacked"
    )
    assert [text for text, reason in found if reason is None] == [
        text for text, reason in expected if reason is None
    ]
    reasons = (
        sorted(reason for _, reason in found if reason),
        sorted(reason for _, reason in expected if reason),
    )
    assert len(reasons[0]) == len(reasons[1]) and all(
        a.startswith(b) for a, b in zip(*reasons, strict=True)
    ), found
    pixels, bad = images.cache(
        sources.read_pairs(folder)[0], tmp_path / "cache", geometry=ImagePreprocess(8), name="shard"
    )
    assert len(pixels.ids) + len(bad) == len([reason for _, reason in expected if reason is None])


def test_a_broken_table_beside_a_shard_is_named(tmp_path):
    (tmp_path / "00000.tar").write_bytes(tar_of(*GOOD))
    (tmp_path / "00000.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="00000.parquet cannot be read"):
        sources.read_pairs(tmp_path)


# --- parameters ---

TOUCH = "touch {owned}"
PARAMETERS = {
    "python_object": (
        "common: !!python/object/apply:os.system ['" + TOUCH + "']",
        "python/object/apply:os.system",
    ),
    "python_new": (
        "common: !!python/object/new:os.system ['" + TOUCH + "']",
        "python/object/new:os.system",
    ),
    "python_name": ("common: {seed: !!python/name:os.system }", "python/name:os.system"),
    "python_module": ("common: {seed: !!python/module:os }", "python/module:os"),
    "unknown_tag": ("common: {train: !include /etc/passwd}", "!include"),
    "alias": ("common: {seed: &a 1, output_dir: *a}", "line 1: aliases are not taken"),
    "many_laughs": (
        "\n".join(
            [
                "a: &a [x, x]",
                *(f"{b}: &{b} [{'*' + a}, {'*' + a}]" for a, b in pairwise("abcdefghijklmn")),
            ]
        ),
        "line 2: aliases are not taken",
    ),
    "merge_key": ("common: &c {seed: 1}\n01_dedup: {<<: *c}", "aliases are not taken"),
    "own_tail": ("common: &c {seed: *c}", "aliases are not taken"),
    "key_twice": ("common: {seed: 1, seed: 2}", "keys given twice: ..seed'"),
    "section_twice": ("common: {seed: 1}\ncommon: {seed: 2}", "keys given twice: ..common'"),
    "key_twice_far_inside": ("common: {train: [{path: x, path: y}]}", "keys given twice: ..path'"),
    "list": ("- common", "must hold sections"),
    "empty_list": ("[]", "must hold sections"),
    "number": ("7", "must hold sections"),
    "false": ("false", "must hold sections"),
    "text": ("common", "must hold sections"),
    "section_is_a_number": ("common: 3", "these do not: ..common'"),
    "section_is_null": ("common:", "these do not: ..common'"),
    "unknown_section": ("06_more: {}", "section '06_more' is unknown"),
    "section_is_no_text": ("1: {seed: 1}", "section 1 is unknown"),
    "section_is_true": ("on: {seed: 1}", "section True is unknown"),
    "unknown_key": (
        "common: {sed: 1}",
        "common.sed is declared by no notebook; did you mean 'seed'",
    ),
    "key_is_no_text": ("common: {1: 2}", "common.1 is declared by no notebook"),
    "key_is_null": ("01_dedup: {~: 2}", "01_dedup.None is not declared"),
    "key_is_a_list": ("common: {[1]: 2}", "unhashable|unacceptable"),
    "underscores": ("common: {__class__: 2}", "common.__class__ is declared by no"),
    "text_for_a_number": ("common: {seed: one}", "seed must be int, got 'one'"),
    "float_for_an_int": ("common: {seed: 1.0}", "seed must be int, got 1.0"),
    "bool_for_an_int": ("common: {seed: yes}", "seed must be int, got True"),
    "date_for_an_int": ("common: {seed: 2020-01-01}", "seed must be int"),
    "list_for_a_text": ("common: {clip: [a]}", "clip must be str"),
    "null_for_a_number": ("common: {seed: null}", "seed must be int, got None"),
    "nan": ("01_dedup: {cosine_threshold: .nan}", "cosine_threshold must be float, got nan"),
    "infinity": ("01_dedup: {cosine_threshold: .inf}", "cosine_threshold must be float, got inf"),
    "exponent_without_a_point": (
        "01_dedup: {cosine_threshold: 1e-1}",
        "cosine_threshold must be float, got '1e-1'",
    ),
    "bytes": ("common: {seed: !!binary aGk=}", "seed must be int, got b'hi'"),
    "set": ("common: {seed: !!set {a, b}}", "seed must be int"),
    "unclosed": ("common: [", "params.yaml"),
    "tab": ("common:\n\tseed: 1", "params.yaml"),
    "two_documents": ("common: {}\n---\ncommon: {}", "single document"),
    "control_character": ("common: {seed: \x01}", "special characters"),
    "nested_too_deep": ("common: {train: " + "[" * 3000 + "]" * 3000 + "}", "nested too deep"),
    "offline_is_a_word": ("common: {offline: 'no'}", "common.offline must be bool, got 'no'"),
    "missing_input": ("common: {train: input/none}", "train: input/none does not exist"),
    "path_of_5000_characters": ("common: {train: " + "x" * 5000 + "}", "train: x+ does not exist"),
    "path_with_nul": ('common: {train: "a\\0b"}', "train: a\0b does not exist"),
    "path_of_nobody_s_home": (
        "common: {train: ~nobody-is-called-so/x}",
        "train: ~nobody-is-called-so/x does not exist",
    ),
    "shell_in_a_path": ('common: {train: "$(' + TOUCH + ')"}', "train: .*does not exist"),
    "backticks": ('common: {train: "`' + TOUCH + '`"}', "does not exist"),
    "semicolon": ('common: {train: "x; ' + TOUCH + '"}', "does not exist"),
    "pipe": ('common: {train: "| ' + TOUCH + '"}', "does not exist"),
}


@pytest.fixture(scope="module")
def notebooks() -> dict[str, dict]:
    """What the notebooks declare, read once."""
    return {stage: params.declared(params.NOTEBOOKS / f"{stage}.ipynb") for stage in paths.STAGES}


def refused(file: Path, changes: list[str]) -> str:
    """What is said of the parameters before anything runs; fails when nothing is."""
    try:
        given = params.stage_params(params.load_params(str(file), changes), str(file))
    except errors.UserError as problem:
        return str(problem)
    missing = params.missing_inputs(given)
    assert missing
    return "\n".join(missing)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_refused_and_nothing_in_them_runs(tmp_path, monkeypatch, notebooks, name):
    text, expected = PARAMETERS[name]
    monkeypatch.setattr(params, "declared", lambda notebook: notebooks[notebook.stem])
    (tmp_path / "params.yaml").write_text(
        text.replace("{owned}", str(tmp_path / "owned")), encoding="utf-8"
    )
    said = refused(tmp_path / "params.yaml", [])
    assert re.search(expected, said), said
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("seed=!!python/object/apply:os.system ['touch {owned}']", "python/object/apply"),
        ("seed=[", "params.yaml"),
        ("seed", "wanted KEY=VALUE"),
        ("seed=", "seed must be int, got None"),
        ("=1", "is declared by no notebook"),
        ("a.b.c=1", "section 'a.b' is unknown"),
        ("train=$(touch {owned})", "does not exist"),
        ("train={path: x, path: y}", "keys given twice"),
        ("seed={a: &a 1, b: *a}", "aliases are not taken"),
    ],
)
def test_a_change_on_the_command_line_is_refused_and_does_not_run(
    tmp_path, monkeypatch, notebooks, change, expected
):
    monkeypatch.setattr(params, "declared", lambda notebook: notebooks[notebook.stem])
    (tmp_path / "params.yaml").write_text("")
    said = refused(tmp_path / "params.yaml", [change.replace("{owned}", str(tmp_path / "owned"))])
    assert re.search(expected, said) and not (tmp_path / "owned").exists(), said


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfecommon", b"common: {seed: \xe9}", bytes(range(256))],
    ids=["utf16", "latin1", "binary"],
)
def test_a_parameters_file_that_is_no_text_is_refused(tmp_path, content):
    (tmp_path / "params.yaml").write_bytes(content)
    assert "params.yaml" in refused(tmp_path / "params.yaml", [])


@pytest.mark.parametrize(
    "train",
    [
        [],
        [3],
        [None],
        [{}],
        [{"path": 5}],
        [{"path": "x", "text": "y"}],
        [{"path": "x", "layout": "tar"}],
    ],
    ids=str,
)
def test_a_source_that_is_none_is_refused(train):
    with pytest.raises((ValueError, FileNotFoundError), match="train: "):
        sources.read_all(train)


# --- weights ---


class Hostile:
    """A pickle that makes a folder where it is loaded."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.makedirs, (str(self.mark),)


def change_tensors(file: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def change_config(folder: Path, change: Callable[[dict], object]) -> None:
    file = folder / "open_clip_config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def shorten(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def put(tensors: dict, name: str, value: float) -> None:
    tensors[name].view(-1)[0] = value


def as_bin(folder: Path, content: object) -> None:
    """Put `content` pickled in the place of the weights."""
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(content, folder / "open_clip_pytorch_model.bin")


PROJECTION = "visual.proj"
CLIPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights_cut": (
        lambda f: shorten(f / "open_clip_model.safetensors", 0.5),
        "could not be loaded",
    ),
    "weights_of_0_bytes": (
        lambda f: shorten(f / "open_clip_model.safetensors", 0),
        "could not be loaded",
    ),
    "weights_of_4_bytes": (
        lambda f: (f / "open_clip_model.safetensors").write_bytes(b"\x08\0\0\0"),
        "could not be loaded",
    ),
    "weights_are_html": (
        lambda f: (f / "open_clip_model.safetensors").write_text("<html>404</html>" * 9),
        "could not be loaded",
    ),
    "weights_with_a_huge_header": (
        lambda f: (f / "open_clip_model.safetensors").write_bytes(b"\xff" * 7 + b"\x7f{}"),
        "could not be loaded",
    ),
    "weights_pickled_as_safetensors": (
        lambda f: torch.save({"a": Hostile(f / "owned")}, f / "open_clip_model.safetensors"),
        "could not be loaded",
    ),
    "weights_gone": (lambda f: (f / "open_clip_model.safetensors").unlink(), "holds no weights"),
    "tensor_missing": (
        lambda f: change_tensors(f / "open_clip_model.safetensors", lambda t: t.pop(PROJECTION)),
        "Missing key.*visual.proj",
    ),
    "tensor_too_many": (
        lambda f: change_tensors(
            f / "open_clip_model.safetensors", lambda t: t.update(extra=torch.zeros(1))
        ),
        "Unexpected key.*extra",
    ),
    "tensor_of_another_shape": (
        lambda f: change_tensors(
            f / "open_clip_model.safetensors", lambda t: t.update({PROJECTION: torch.zeros(3, 3)})
        ),
        "size mismatch for visual.proj",
    ),
    "no_tensors": (
        lambda f: change_tensors(f / "open_clip_model.safetensors", dict.clear),
        "could not be loaded",
    ),
    "tensor_with_nan": (
        lambda f: change_tensors(
            f / "open_clip_model.safetensors", lambda t: put(t, PROJECTION, float("nan"))
        ),
        "1 of its tensors hold NaN or infinity, e.g. visual.proj",
    ),
    "tensor_with_infinity": (
        lambda f: change_tensors(
            f / "open_clip_model.safetensors", lambda t: put(t, PROJECTION, float("inf"))
        ),
        "NaN or infinity",
    ),
    "bin_hostile": (
        lambda f: as_bin(f, {"state_dict": Hostile(f / "owned")}),
        "could not be loaded",
    ),
    "bin_hostile_plain_pickle": (
        lambda f: (
            as_bin(f, {}),
            (f / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps(Hostile(f / "owned"))),
        ),
        "could not be loaded",
    ),
    "bin_empty": (lambda f: as_bin(f, {}), "could not be loaded"),
    "bin_of_a_list": (lambda f: as_bin(f, [1]), "could not be loaded"),
    "bin_of_garbage": (
        lambda f: (as_bin(f, {}), (f / "open_clip_pytorch_model.bin").write_bytes(b"garbage")),
        "could not be loaded",
    ),
    "config_gone": (
        lambda f: (f / "open_clip_config.json").unlink(),
        "lacks open_clip_config.json",
    ),
    "config_cut": (
        lambda f: shorten(f / "open_clip_config.json", 0.5),
        "open_clip_config.json cannot be read",
    ),
    "config_of_0_bytes": (
        lambda f: shorten(f / "open_clip_config.json", 0),
        "open_clip_config.json cannot be read",
    ),
    "config_is_a_list": (
        lambda f: (f / "open_clip_config.json").write_text("[1]"),
        "holds a list, wanted a JSON object",
    ),
    "config_without_preprocessing": (
        lambda f: change_config(f, lambda c: c.pop("preprocess_cfg")),
        "with mean and std",
    ),
    "config_without_a_mean": (
        lambda f: change_config(f, lambda c: c["preprocess_cfg"].pop("mean")),
        "with mean and std",
    ),
    "config_without_a_model": (
        lambda f: change_config(f, lambda c: c.pop("model_cfg")),
        "could not be loaded",
    ),
    "config_without_a_vision_tower": (
        lambda f: change_config(f, lambda c: c["model_cfg"].pop("vision_cfg")),
        "could not be loaded",
    ),
    "config_with_an_unknown_key": (
        lambda f: change_config(f, lambda c: c["model_cfg"]["vision_cfg"].update(magic=1)),
        "could not be loaded.*magic",
    ),
    "config_of_another_width": (
        lambda f: change_config(f, lambda c: c["model_cfg"]["vision_cfg"].update(width=128)),
        "size mismatch",
    ),
    "config_width_is_a_word": (
        lambda f: change_config(f, lambda c: c["model_cfg"]["vision_cfg"].update(width="wide")),
        "could not be loaded",
    ),
    "config_std_of_0": (
        lambda f: change_config(f, lambda c: c["preprocess_cfg"].update(std=[0, 1, 1])),
        "three numbers each, std above 0",
    ),
    "config_mean_of_two": (
        lambda f: change_config(f, lambda c: c["preprocess_cfg"].update(mean=[0, 1])),
        "three numbers each",
    ),
    "config_mean_of_words": (
        lambda f: change_config(f, lambda c: c["preprocess_cfg"].update(mean=["a", "b", "c"])),
        "could not be loaded",
    ),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, encoder.Encoder]:
    """A folder with a small CLIP, a fold trained from it and a checkpoint; and that CLIP."""
    folder = tmp_path_factory.mktemp("weights")
    clip = encoder.load(toy.write_clip(folder / "clip"), device="cpu")
    training, recipe = (
        toy.data_for(clip, 24),
        Recipe(epochs=1, batch_size=16, lr_vision=1e-3),
    )
    rows = np.arange(24)
    fit.train_fold(
        clip,
        training,
        training,
        rows=rows,
        scored=rows[:6],
        recipe=recipe,
        seed=0,
        base=folder / "fold",
    )
    (folder / "checkpoint").mkdir()
    a_run(clip).save(folder / "checkpoint")
    return folder, clip


def a_run(clip: encoder.Encoder) -> Trainer:
    training, recipe = (
        toy.data_for(clip, 24),
        Recipe(epochs=1, batch_size=16, lr_vision=1e-3),
    )
    inner, held_out = fit.inner_split(training.group, np.arange(24), 0)
    return Trainer(
        fit.init_model(clip, training, inner, held_out, recipe, 0)[0],
        clip,
        training,
        inner,
        recipe=recipe,
        seed=0,
    )


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_that_does_not_load_says_so_and_nothing_runs(trained, tmp_path, name):
    spoil, expected = CLIPS[name]
    shutil.copytree(trained[0] / "clip", tmp_path / "clip")
    spoil(tmp_path / "clip")
    with pytest.raises(
        (RuntimeError, FileNotFoundError, ValueError), match=re.compile(expected, re.DOTALL)
    ) as error:
        encoder.load(f"local-dir:{tmp_path / 'clip'}", device="cpu")
    assert str(tmp_path / "clip") in str(error.value) and not (tmp_path / "clip" / "owned").exists()


def change_record(folder: Path, change: Callable[[dict], object]) -> None:
    content = json.loads((folder / "fold.json").read_text())
    change(content)
    (folder / "fold.json").write_text(json.dumps(content))


HEAD = "head.fc1.bias"
FOLDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights_cut": (
        lambda f: shorten(f / "fold.safetensors", 0.9),
        "fold.safetensors cannot be read",
    ),
    "weights_of_0_bytes": (
        lambda f: shorten(f / "fold.safetensors", 0),
        "fold.safetensors cannot be read",
    ),
    "weights_pickled": (
        lambda f: torch.save({"a": Hostile(f / "owned")}, f / "fold.safetensors"),
        "fold.safetensors cannot be read",
    ),
    "tensor_missing": (
        lambda f: change_tensors(f / "fold.safetensors", lambda t: t.pop(HEAD)),
        "do not fit .*head.fc1.bias",
    ),
    "tensor_too_many": (
        lambda f: change_tensors(f / "fold.safetensors", lambda t: t.update(extra=torch.zeros(1))),
        "do not fit .*extra",
    ),
    "tensor_of_another_shape": (
        lambda f: change_tensors(
            f / "fold.safetensors", lambda t: t.update({HEAD: torch.zeros(7)})
        ),
        "do not fit .*head.fc1.bias .7,., wanted",
    ),
    "tensor_that_would_be_repeated": (
        lambda f: change_tensors(
            f / "fold.safetensors", lambda t: t.update({HEAD: torch.zeros(1)})
        ),
        "do not fit .*head.fc1.bias .1,., wanted",
    ),
    "tensor_with_nan": (
        lambda f: change_tensors(f / "fold.safetensors", lambda t: put(t, HEAD, float("nan"))),
        "1 of .* NaN or infinity, e.g. head.fc1.bias",
    ),
    "record_cut": (lambda f: shorten(f / "fold.json", 0.5), "fold.json cannot be read"),
    "record_is_a_list": (lambda f: (f / "fold.json").write_text("[]"), "fold.json cannot be read"),
    "record_without_a_clip": (
        lambda f: change_record(f, lambda r: r.pop("clip")),
        "trained from another CLIP",
    ),
    "record_of_another_clip": (
        lambda f: change_record(f, lambda r: r.update(clip="other")),
        "trained from another CLIP",
    ),
    "record_without_a_recipe": (
        lambda f: change_record(f, lambda r: r.pop("recipe")),
        "fold.json cannot be read: 'recipe'",
    ),
    "record_with_an_unknown_setting": (
        lambda f: change_record(f, lambda r: r["recipe"].update(magic=1)),
        "fold.json cannot be read: .*magic",
    ),
    "record_with_an_unknown_head": (
        lambda f: change_record(f, lambda r: r["recipe"].update(head="tall")),
        "fold.json cannot be read: head must be one of",
    ),
    "record_of_another_width": (
        lambda f: change_record(f, lambda r: r.update(width=7)),
        "do not fit",
    ),
    "record_without_a_history": (
        lambda f: change_record(f, lambda r: r.pop("history")),
        "fold.json cannot be read: 'history'",
    ),
}


@pytest.mark.parametrize("name", FOLDS)
def test_a_fold_that_does_not_fit_is_refused_and_nothing_runs(trained, tmp_path, name):
    spoil, expected = FOLDS[name]
    for suffix in (".json", ".safetensors"):
        shutil.copy(trained[0] / f"fold{suffix}", tmp_path / f"fold{suffix}")
    fit.load_fold(tmp_path / "fold", trained[1])
    spoil(tmp_path)
    with pytest.raises(ValueError, match=expected):
        fit.load_fold(tmp_path / "fold", trained[1])
    assert not (tmp_path / "owned").exists()


def first(folder: Path) -> Path:
    return next(folder.glob("weights-*.safetensors"))


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "state_hostile": (
        lambda f: torch.save({"weights": Hostile(f / "owned")}, f / "state.pt"),
        "state.pt cannot be read",
    ),
    "state_hostile_plain_pickle": (
        lambda f: (f / "state.pt").write_bytes(pickle.dumps(Hostile(f / "owned"))),
        "state.pt cannot be read",
    ),
    "state_cut": (lambda f: shorten(f / "state.pt", 0.5), "state.pt cannot be read"),
    "state_of_0_bytes": (lambda f: shorten(f / "state.pt", 0), "state.pt cannot be read"),
    "state_is_a_list": (lambda f: torch.save([1], f / "state.pt"), "state.pt cannot be read"),
    "state_is_empty": (lambda f: torch.save({}, f / "state.pt"), "state.pt cannot be read"),
    "weights_cut": (lambda f: shorten(first(f), 0.5), "safetensors cannot be read"),
    "weights_gone": (lambda f: first(f).unlink(), "No such file"),
    "tensor_missing": (
        lambda f: change_tensors(first(f), lambda t: t.pop("now." + HEAD)),
        "do not fit",
    ),
    "tensor_that_would_be_repeated": (
        lambda f: change_tensors(first(f), lambda t: t.update({"now." + HEAD: torch.zeros(1)})),
        "do not fit",
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_broken_checkpoint_is_refused_and_nothing_runs(trained, tmp_path, name):
    spoil, expected = CHECKPOINTS[name]
    shutil.copytree(trained[0] / "checkpoint", tmp_path / "checkpoint")
    spoil(tmp_path / "checkpoint")
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        a_run(trained[1]).load(tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint" / "owned").exists()


# --- embeddings and submissions ---

IDS = ["ant", "bee", "cat"]
X = np.random.default_rng(0).standard_normal((3, 384)).astype(np.float32)


def npy(x: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    np.save(stream, x, **options)
    return stream.getvalue()


def npz(x: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, x=x)
    return stream.getvalue()


def with_value(value: float) -> np.ndarray:
    x = X.copy()
    x[1, 7] = value
    return x


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text.encode()


ARRAYS: dict[str, tuple[bytes, str]] = {
    "of_0_bytes": (b"", "x.npy cannot be read"),
    "header_cut": (npy(X)[:40], "x.npy cannot be read"),
    "cut": (npy(X)[:-100], "x.npy cannot be read"),
    "text": (b"0.1 0.2", "x.npy cannot be read"),
    "archive": (npz(X), "archive, not one array"),
    "archive_cut": (npz(X)[:60], "x.npy cannot be read"),
    "objects": (npy(np.array([1, "a"], object), allow_pickle=True), "x.npy cannot be read"),
    "header_with_code": (
        npy_header("__import__('os').makedirs('owned')\n"),
        "x.npy cannot be read",
    ),
    "header_of_a_huge_shape": (
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999, 384)}\n"),
        "x.npy cannot be read",
    ),
    "header_of_a_negative_shape": (
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 384)}\n"),
        "x.npy cannot be read",
    ),
    "double": (npy(X.astype(np.float64)), "2-D float32, got 2-D float64"),
    "half": (npy(X.astype(np.float16)), "2-D float32, got 2-D float16"),
    "integers": (npy(X.astype(np.int64)), "2-D float32"),
    "flat": (npy(X.ravel()), "got 1-D"),
    "cube": (npy(X[None]), "got 3-D"),
    "big_endian": (npy(X.astype(">f4")), "2-D float32, got 2-D >f4"),
    "a_row_short": (npy(X[:2]), "3 ids for 2 embeddings"),
    "a_row_too_many": (npy(np.vstack([X, X[:1]])), "3 ids for 4 embeddings"),
    "nan": (npy(with_value(np.nan)), "1 rows hold NaN or infinity, e.g. row 1"),
    "infinity": (npy(with_value(-np.inf)), "NaN or infinity"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_that_is_not_what_it_should_be_is_refused(tmp_path, monkeypatch, name):
    content, expected = ARRAYS[name]
    monkeypatch.chdir(tmp_path)
    artifacts.save_embeddings(tmp_path / "x", IDS, X)
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        artifacts.load_embeddings(tmp_path / "x")
    assert not (tmp_path / "owned").exists()


def test_a_pickled_array_does_not_run(tmp_path):
    artifacts.save_embeddings(tmp_path / "x", IDS, X)
    (tmp_path / "x.npy").write_bytes(
        npy(np.array([Hostile(tmp_path / "owned")], object), allow_pickle=True)
    )
    (tmp_path / "y.npy").write_bytes(pickle.dumps(Hostile(tmp_path / "owned")))
    for attempt in (
        lambda: artifacts.load_embeddings(tmp_path / "x"),
        lambda: artifacts.load_array(tmp_path / "y.npy"),
        lambda: sources.read_store(tmp_path),
    ):
        with pytest.raises(ValueError, match="cannot be read"):
            attempt()
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (b"", "ids.parquet cannot be read"),
        (parquet(id=IDS)[:-9], "ids.parquet cannot be read"),
        (parquet(name=IDS), "ids.parquet has no column id; there are .'name'"),
        (parquet(id=["ant", "bee"]), "2 ids for 3"),
        (parquet(id=["ant", "bee", "ant"]), "1 ids occur more than once"),
        (parquet(id=["ant", None, "cat"]), "1 ids are null"),
        (parquet(id=[1, 2, 3]), "ids are Int64, must be text"),
    ],
    ids=["empty", "cut", "column_missing", "too_few", "doubled", "null", "numbers"],
)
def test_ids_that_do_not_fit_their_rows_are_refused(tmp_path, ids, expected):
    artifacts.save_embeddings(tmp_path / "x", IDS, X)
    (tmp_path / "x.ids.parquet").write_bytes(ids)
    with pytest.raises(ValueError, match=expected):
        artifacts.load_embeddings(tmp_path / "x")


def csv_file(change: Callable[[list[str]], object]) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        file = folder / "submission.csv"
        rows = file.read_text().splitlines()
        file.write_text("\n".join(change(rows) or rows) + "\n")

    return spoil


def in_place(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def vectors(x: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])


SUBMISSIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "csv_gone": (lambda f: (f / "submission.csv").unlink(), "submission.csv does not exist"),
    "csv_of_0_bytes": (in_place("submission.csv", b""), "the header is ''"),
    "csv_header_only": (in_place("submission.csv", b"imgId_eId,val\n"), "3 ids missing"),
    "csv_binary": (in_place("submission.csv", bytes(range(256)) * 9), "the header is"),
    "csv_with_bytes_that_are_no_utf8": (
        in_place("submission.csv", b"imgId_eId,val\n\xff\xfe_0,1\n"),
        "submission.csv",
    ),
    "csv_of_three_columns": (
        csv_file(lambda rows: [rows[0], *(row + ",9" for row in rows[1:])]),
        "submission.csv",
    ),
    "csv_cut": (
        csv_file(lambda rows: rows[:500]),
        "1 ids missing, e.g. ..cat'.*1 vectors are not 384 long",
    ),
    "csv_row_missing": (
        csv_file(lambda rows: rows.pop(5) and None),
        "1 vectors are not 384 long, e.g. ..ant: 383'",
    ),
    "csv_row_twice": (
        csv_file(lambda rows: rows.insert(5, rows[5])),
        "1 vectors are not 384 long, e.g. ..ant: 385'",
    ),
    "csv_id_twice": (csv_file(lambda rows: rows + rows[1:385]), "1 ids doubled, e.g. ..ant'"),
    "csv_id_too_many": (
        csv_file(lambda rows: rows + [r.replace("ant_", "dog_") for r in rows[1:385]]),
        "1 ids extra, e.g. ..dog'",
    ),
    "csv_value_nan": (
        csv_file(lambda rows: [*rows[:9], rows[9].split(",")[0] + ",NaN", *rows[10:]]),
        "1 values are not finite",
    ),
    "csv_value_infinite": (
        csv_file(lambda rows: [*rows[:9], rows[9].split(",")[0] + ",1e99", *rows[10:]]),
        "1 values are not finite",
    ),
    "csv_value_missing": (
        csv_file(lambda rows: [*rows[:9], rows[9].split(",")[0] + ",", *rows[10:]]),
        "1 values are not finite",
    ),
    "csv_value_a_formula": (
        csv_file(lambda rows: [*rows[:9], rows[9].split(",")[0] + ",=1+1", *rows[10:]]),
        "1 values are not finite",
    ),
    "csv_by_semicolons": (
        csv_file(lambda rows: [row.replace(",", ";") for row in rows]),
        "the header is 'imgId_eId;val'",
    ),
    "csv_names_padded": (
        csv_file(lambda rows: [re.sub(r"_(\d),", r"_00\1,", row) for row in rows]),
        "out of order from line 2",
    ),
    "csv_order_turned": (
        csv_file(lambda rows: [rows[0], *rows[:0:-1]]),
        "out of order from line 2",
    ),
    "csv_other_values": (
        csv_file(lambda rows: [*rows[:9], rows[9].split(",")[0] + ",0.5", *rows[10:]]),
        "1 vectors differ",
    ),
    "parquet_gone": (
        lambda f: (f / "submission.parquet").unlink(),
        "submission.parquet does not exist",
    ),
    "parquet_broken": (
        in_place("submission.parquet", b"PAR1"),
        "submission.parquet cannot be read",
    ),
    "parquet_without_vectors": (
        in_place("submission.parquet", parquet(id=IDS)),
        "submission.parquet: columns are",
    ),
    "parquet_with_ids_that_are_numbers": (
        in_place("submission.parquet", parquet(id=[1, 2, 3], embedding=vectors(X))),
        "submission.parquet: columns are",
    ),
    "parquet_with_lists": (
        in_place("submission.parquet", parquet(id=IDS, embedding=X.tolist())),
        "submission.parquet: columns are",
    ),
    "parquet_383_long": (
        in_place("submission.parquet", parquet(id=IDS, embedding=vectors(X[:, 1:]))),
        "must be .n, 384.",
    ),
    "parquet_with_an_id_twice": (
        in_place("submission.parquet", parquet(id=["ant", "bee", "bee"], embedding=vectors(X))),
        "submission",
    ),
    "npy_gone": (lambda f: (f / "submission.npy").unlink(), "submission.npy does not exist"),
    "npy_cut": (lambda f: shorten(f / "submission.npy", 0.5), "submission.npy cannot be read"),
    "npy_383_long": (
        in_place("submission.npy", npy(np.ascontiguousarray(X[:, 1:]))),
        "must be .n, 384.",
    ),
    "npy_double": (in_place("submission.npy", npy(X.astype(np.float64))), "2-D float32"),
    "npy_with_nan": (in_place("submission.npy", npy(with_value(np.nan))), "NaN or infinity"),
    "npy_rows_exchanged": (in_place("submission.npy", npy(X[::-1])), "2 vectors differ"),
    "npy_ids_gone": (
        lambda f: (f / "submission.ids.parquet").unlink(),
        "submission.ids.parquet does not exist",
    ),
}


@pytest.mark.parametrize("name", SUBMISSIONS)
def test_a_spoilt_submission_does_not_pass_the_check(tmp_path, name):
    spoil, expected = SUBMISSIONS[name]
    submission.write(IDS, X, tmp_path / "submission")
    submission.check(tmp_path / "submission")
    spoil(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        submission.check(tmp_path / "submission")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the header is ''"),
        (b"imgId_eId,val\n", "no rows below the header"),
        (b"imgId_eId,val\nant_0,1\n", "1 vectors are not 384 long"),
        (b"imgId_eId,val\nant,1\n", "1 rows are not named"),
        (b"imgId_eId,val\n,\n", "1 rows are not named"),
        (b"imgId_eId,val\na,b,c,d\n", "sample.csv"),
        (b"\x89PNG\r\n", "the header is"),
    ],
    ids=["empty", "header_only", "cut", "no_number", "blank_cells", "ragged", "image"],
)
def test_a_sample_that_is_none_is_refused(tmp_path, content, expected):
    (tmp_path / "sample.csv").write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        sample_submission.sample_ids(tmp_path / "sample.csv")


@pytest.mark.parametrize(
    "name",
    [
        "comma,",
        'quote"',
        "new\nline",
        "=1+1",
        "_0",
        "a_0",
        "狐",
        "🦊",
        " ",
        "NULL",
        "a\u202eb",
        "x" * 1000,
    ],
    ids=ascii,
)
def test_an_odd_id_comes_back_from_a_submission_as_it_is(tmp_path, name):
    submission.write(["ant", name, "zebra"], X, tmp_path / "submission")
    submission.check(tmp_path / "submission")
    assert set(pl.read_csv(tmp_path / "submission.csv")["imgId_eId"].str.replace(r"_\d+$", "")) == {
        "ant",
        name,
        "zebra",
    }
    assert artifacts.load_embeddings(tmp_path / "submission")[0] == sorted(["ant", name, "zebra"])


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("store.json", b"{cut", "store.json cannot be read"),
        ("store.json", b"[]", "store.json cannot be read"),
        ("store.json", b'{"dtype": "float16"}', "store.json"),
        ("00000.values.npy", b"", "00000.values.npy cannot be read"),
        ("00000.parquet", b"PAR1", "00000.parquet cannot be read"),
    ],
)
def test_a_broken_store_is_named(tmp_path, file, content, expected):
    store = datastore.open_store(tmp_path, dtype="float32", sentence_model="s")
    datastore.add(store, ["a fox", "an owl"], {"values": lambda texts: X[: len(texts)]})
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        store = datastore.open_store(tmp_path)
        store.rows(), store.column("values")


def test_there_are_at_least_200_of_them():
    families = {
        "images": IMAGES,
        "prompts": TEXTS,
        "tables": TABLES | TEXT_SOURCES,
        "shards": SHARDS,
        "parameters": PARAMETERS,
        "weights": [*CLIPS, *FOLDS, *CHECKPOINTS],
        "submissions": [*ARRAYS, *SUBMISSIONS],
    }
    sizes = {family: len(cases) for family, cases in families.items()}
    assert sum(sizes.values()) >= 200 and min(sizes.values()) >= 30, sizes
