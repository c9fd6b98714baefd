"""Light and weather: one effect for each, over the whole image."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter

from src.demo.canvas import Canvas, Color, gradient

Effect = Callable[[Image.Image, np.random.Generator], Image.Image]


def light_up(image: Image.Image, light: str, rng: np.random.Generator) -> Image.Image:
    """The image in the named light or weather; `light` "" leaves it as it is."""
    if not light:
        return image
    return LIGHTS[light](image, rng)


def _sunset(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    warm = gradient(image.width, (255, 150, 120), (255, 190, 110), (200, 120, 110))
    image = ImageChops.multiply(image, warm)
    return _sun(image, rng.uniform(0.2, 0.8), 0.16, 0.09, (255, 214, 120))


def _moonlight(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    night = gradient(image.width, (50, 64, 130), (110, 124, 190))
    image = ImageChops.multiply(image, night)
    return _sun(image, rng.uniform(0.15, 0.85), 0.14, 0.07, (240, 244, 255))


def _fog(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    blurred = image.filter(ImageFilter.GaussianBlur(image.width / 200))
    haze = gradient(image.width, (226, 230, 234), (206, 212, 216))
    return Image.blend(blurred, haze, 0.55)


def _golden(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    image = ImageChops.multiply(image, Image.new("RGB", image.size, (255, 226, 160)))
    return _glow(image, rng.choice([0.0, 1.0]), 0.0, 0.5, (255, 210, 110))


def _rain(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    size = image.width
    image = ImageChops.multiply(image, Image.new("RGB", image.size, (150, 164, 184)))
    draw = ImageDraw.Draw(image)
    for x, y in rng.uniform(-0.05, 1, (110, 2)) * size:
        streak = (x, y, x - size * 0.02, y + size * 0.08)
        draw.line(streak, (214, 226, 240), max(1, size // 220))
    return image


def _snowfall(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    image = Image.blend(image, Image.new("RGB", image.size, (226, 234, 244)), 0.25)
    Canvas(image, rng).specks(130, (0, 0, 1, 1), (0.004, 0.012), ((255, 255, 255),))
    return image


def _soft(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    blurred = image.filter(ImageFilter.GaussianBlur(image.width / 30))
    return Image.blend(image, ImageChops.screen(image, blurred), 0.6)


def _spotlight(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    size = image.width
    cone = Image.new("L", image.size, 0)
    corners = [(size * 0.42, 0), (size * 0.58, 0), (size * 0.98, size), (size * 0.02, size)]
    ImageDraw.Draw(cone).polygon(corners, fill=255)
    cone = cone.filter(ImageFilter.GaussianBlur(size / 40))

    dark = ImageEnhance.Brightness(image).enhance(0.25)
    bright = ImageEnhance.Brightness(image).enhance(1.15)
    return Image.composite(bright, dark, cone)


def _sparks(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    spots = Image.new("RGB", image.size)
    fills = ((255, 240, 120), (220, 255, 130))
    Canvas(spots, rng).specks(45, (0, 0, 1, 1), (0.006, 0.013), fills)
    halos = spots.filter(ImageFilter.GaussianBlur(image.width / 50))

    dark = ImageEnhance.Brightness(image).enhance(0.5)
    return ImageChops.screen(ImageChops.screen(dark, halos), spots)


def _glow(image: Image.Image, x: float, y: float, radius: float, color: Color) -> Image.Image:
    """A soft round light about (x, y), all in units of the image."""
    quarter = image.width // 4
    layer = Image.new("RGB", (quarter, quarter))
    r = radius * image.width / 4
    cx = x * image.width / 4
    cy = y * image.width / 4
    half = tuple(c // 2 for c in color)
    ImageDraw.Draw(layer).ellipse((cx - r, cy - r, cx + r, cy + r), fill=half)

    layer = layer.filter(ImageFilter.GaussianBlur(r / 2)).resize(image.size)
    return ImageChops.screen(image, layer)


def _sun(image: Image.Image, x: float, y: float, radius: float, color: Color) -> Image.Image:
    """A disc, the sun or the moon, with a glow around it."""
    image = _glow(image, x, y, radius * 1.7, color)
    r = radius * image.width
    cx = x * image.width
    cy = y * image.width
    ImageDraw.Draw(image).ellipse((cx - r, cy - r, cx + r, cy + r), fill=color)
    return image


# name of grammar.LIGHTS -> its effect
LIGHTS: dict[str, Effect] = {
    "sunset": _sunset,
    "moonlight": _moonlight,
    "fog": _fog,
    "golden": _golden,
    "rain": _rain,
    "snowfall": _snowfall,
    "soft": _soft,
    "spot": _spotlight,
    "sparks": _sparks,
}
