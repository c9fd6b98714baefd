"""The settings: one painter for each, on a sky of its own."""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from src.demo.canvas import Box, Canvas, Color, gradient

Painter = Callable[[Canvas], None]


def background(setting: str, size: int, rng: np.random.Generator) -> Image.Image:
    """The empty setting, (size, size) RGB."""
    sky, paint = SETTINGS[setting]
    canvas = Canvas(gradient(size, *sky), rng)
    paint(canvas)
    return canvas.image


def _snowy(canvas: Canvas) -> None:
    foot = 0.75
    for x in canvas.rng.uniform(0, 1, 4):
        top = canvas.rng.uniform(0.12, 0.34)
        w = canvas.rng.uniform(0.26, 0.4)
        canvas.polygon(((x - w, foot), (x, top), (x + w, foot)), (122, 138, 164))
        snow_line = top + (foot - top) * 0.36
        snow = ((x - w * 0.36, snow_line), (x, top), (x + w * 0.36, snow_line))
        canvas.polygon(snow, (250, 252, 255))
    canvas.ridge(0.68, 0.04, (238, 243, 250))


def _desert(canvas: Canvas) -> None:
    canvas.ridge(0.52, 0.06, (232, 190, 120))
    canvas.ridge(0.64, 0.06, (220, 168, 92))
    canvas.ridge(0.78, 0.06, (204, 146, 72))


def _beach(canvas: Canvas) -> None:
    canvas.rectangle(0, 0.42, 1, 0.64, (34, 150, 190))
    _waves(canvas, 12, (0, 0.44, 0.9, 0.62), (0.1, 0.006), (190, 235, 245))
    canvas.ridge(0.66, 0.02, (244, 222, 164))


def _waves(canvas: Canvas, n: int, box: Box, size: tuple[float, float], fill: Color) -> None:
    """`n` flat stripes of one `size`, whose left ends lie inside `box`."""
    x0, y0, x1, y1 = box
    width, height = size
    for y in canvas.rng.uniform(y0, y1, n):
        x = canvas.rng.uniform(x0, x1)
        canvas.rectangle(x, y, x + width, y + height, fill)


def _city(canvas: Canvas) -> None:
    canvas.buildings(0.72, (0.25, 0.6), (28, 30, 54), (255, 220, 110))
    canvas.rectangle(0, 0.72, 1, 1, (50, 50, 62))
    for x in np.arange(0.03, 1, 0.2):
        canvas.rectangle(x, 0.85, x + 0.1, 0.87, (235, 220, 130))


def _forest(canvas: Canvas) -> None:
    canvas.ridge(0.66, 0.03, (62, 98, 50))
    canvas.trees(12, 0.7, ((24, 84, 48), (36, 104, 58), (18, 66, 40)), leafy=False)


def _autumn(canvas: Canvas) -> None:
    leaves = ((222, 120, 30), (198, 62, 34), (238, 178, 50))
    canvas.ridge(0.66, 0.03, (176, 130, 62))
    canvas.trees(12, 0.7, leaves, leafy=True)
    canvas.specks(60, (0, 0.1, 1, 1), (0.006, 0.014), leaves)


def _underwater(canvas: Canvas) -> None:
    size = canvas.size
    canvas.ridge(0.84, 0.03, (196, 180, 128))

    # seaweed
    heights = np.linspace(0.95, 0.6, 6)
    for x in canvas.rng.uniform(0, 1, 10):
        sway = canvas.rng.uniform(-0.03, 0.03, 6)
        stalk = [((x + s) * size, y * size) for s, y in zip(sway, heights, strict=True)]
        canvas.draw.line(stalk, (30, 130, 80), max(2, size // 50))

    canvas.specks(30, (0, 0, 1, 0.8), (0.005, 0.018), ((190, 235, 250), (150, 215, 240)))


def _space(canvas: Canvas) -> None:
    stars = ((255, 255, 255), (255, 235, 190), (180, 205, 255))
    planets = ((210, 110, 80), (110, 150, 220), (190, 160, 110))
    canvas.specks(140, (0, 0, 1, 1), (0.001, 0.006), stars)
    canvas.specks(2, (0.1, 0.05, 0.9, 0.4), (0.05, 0.11), planets)


def _kitchen(canvas: Canvas) -> None:
    # tiles, a window, and the table
    for x in np.arange(0, 1, 0.11):
        for y in np.arange(0, 0.56, 0.11):
            canvas.rectangle(x, y, x + 0.104, y + 0.104, (236, 238, 228))
    canvas.rectangle(0.36, 0.08, 0.64, 0.4, (150, 205, 240))
    canvas.rectangle(0.49, 0.08, 0.51, 0.4, (255, 255, 255))
    canvas.rectangle(0, 0.62, 1, 1, (166, 110, 62))
    for y in (0.7, 0.79, 0.9):
        canvas.rectangle(0, y, 1, y + 0.006, (130, 82, 42))


def _meadow(canvas: Canvas) -> None:
    flowers = ((240, 80, 100), (250, 220, 70), (255, 255, 255), (170, 100, 220))
    canvas.ridge(0.55, 0.04, (112, 180, 80))
    canvas.ridge(0.68, 0.03, (90, 160, 62))
    canvas.specks(90, (0, 0.62, 1, 1), (0.006, 0.015), flowers)


def _jungle(canvas: Canvas) -> None:
    rng = canvas.rng
    canvas.ridge(0.72, 0.03, (50, 92, 34))

    xs = rng.uniform(0, 1, 26)
    ys = rng.choice([0.02, 0.3, 0.6, 0.95], 26)
    for x, y in zip(xs, ys, strict=True):
        angle = rng.uniform(0, 6.28)
        length = rng.uniform(0.16, 0.32)
        fill = (int(rng.integers(16, 60)), int(rng.integers(100, 170)), int(rng.integers(40, 80)))
        canvas.polygon(_leaf(x, y, angle, length), fill)


def _leaf(x: float, y: float, angle: float, length: float) -> tuple[tuple[float, float], ...]:
    def reach(turn: float, share: float) -> tuple[float, float]:
        return math.cos(angle + turn) * length * share, math.sin(angle + turn) * length * share

    tip = reach(0, 1)
    left = reach(0.4, 0.6)
    right = reach(-0.4, 0.6)
    return (
        (x, y),
        (x + left[0], y + left[1] + 0.05),
        (x + tip[0], y + tip[1]),
        (x + right[0], y + right[1]),
    )


def _lake(canvas: Canvas) -> None:
    canvas.ridge(0.42, 0.1, (86, 120, 130))
    canvas.ridge(0.5, 0.04, (60, 110, 70))
    canvas.rectangle(0, 0.54, 1, 0.8, (92, 160, 196))
    _waves(canvas, 14, (0, 0.56, 0.85, 0.78), (0.12, 0.005), (170, 214, 232))
    canvas.ridge(0.8, 0.02, (110, 140, 70))


def _cave(canvas: Canvas) -> None:
    crystals = ((90, 220, 240), (190, 110, 240), (60, 150, 230))
    rng = canvas.rng
    for x in rng.uniform(0, 1, 16):
        hanging = rng.random() < 0.5
        w = rng.uniform(0.03, 0.07)
        h = rng.uniform(0.15, 0.36)
        edge = 0.0 if hanging else 0.86
        tip = h if hanging else 0.86 - h
        lean = rng.uniform(-0.05, 0.05)
        canvas.polygon(((x - w, edge), (x + lean, tip), (x + w, edge)), canvas.pick(crystals))
    canvas.ridge(0.8, 0.03, (44, 36, 60))


def _library(canvas: Canvas) -> None:
    books = ((150, 44, 40), (40, 80, 120), (60, 110, 66), (190, 150, 70), (100, 60, 110))
    rng = canvas.rng
    for shelf in (0.03, 0.22, 0.41, 0.6):
        bottom = shelf + 0.155
        x = 0.0
        while x < 1:
            width = rng.uniform(0.02, 0.045)
            top = shelf + rng.uniform(0, 0.04)
            canvas.rectangle(x, top, x + width, bottom, canvas.pick(books))
            x += width + 0.004
        canvas.rectangle(0, bottom, 1, shelf + 0.185, (92, 56, 30))
    canvas.rectangle(0, 0.79, 1, 1, (130, 84, 50))


def _volcano(canvas: Canvas) -> None:
    x = canvas.rng.uniform(0.35, 0.65)
    smoke = ((70, 60, 66), (96, 82, 86))
    cone = ((x - 0.45, 0.78), (x - 0.07, 0.24), (x + 0.07, 0.24), (x + 0.45, 0.78))
    crater = ((x - 0.07, 0.24), (x + 0.07, 0.24))
    flow = ((x + 0.1, 0.6), (x + 0.02, 0.44), (x - 0.06, 0.66))

    canvas.specks(14, (x - 0.12, 0, x + 0.12, 0.22), (0.03, 0.08), smoke)
    canvas.polygon(cone, (74, 50, 48))
    canvas.polygon((*crater, *flow), (255, 96, 20))
    canvas.ridge(0.76, 0.03, (50, 36, 38))
    canvas.specks(26, (0, 0.8, 1, 1), (0.008, 0.035), ((255, 110, 20), (255, 170, 40)))


def _clouds(canvas: Canvas) -> None:
    below = ((255, 255, 255), (240, 246, 255), (226, 236, 250))
    canvas.specks(46, (0, 0.62, 1, 1), (0.06, 0.12), below)
    canvas.specks(8, (0, 0.08, 1, 0.4), (0.03, 0.06), ((250, 252, 255),))


def _farm(canvas: Canvas) -> None:
    white = (240, 234, 220)
    canvas.ridge(0.58, 0.02, (150, 180, 76))

    # the barn, its roof and its door
    x = canvas.rng.uniform(0.05, 0.65)
    canvas.rectangle(x, 0.36, x + 0.28, 0.62, (186, 40, 36))
    roof = ((x - 0.03, 0.37), (x + 0.05, 0.24), (x + 0.23, 0.24), (x + 0.31, 0.37))
    canvas.polygon(roof, (96, 36, 32))
    canvas.rectangle(x + 0.1, 0.47, x + 0.18, 0.62, (250, 246, 236))

    # the fence
    for post in np.arange(0, 1, 0.1):
        canvas.rectangle(post, 0.6, post + 0.015, 0.7, white)
    canvas.rectangle(0, 0.63, 1, 0.645, white)


def _mars(canvas: Canvas) -> None:
    canvas.ridge(0.55, 0.07, (176, 86, 54))
    canvas.ridge(0.68, 0.03, (198, 98, 60))
    canvas.specks(12, (0, 0.72, 1, 1), (0.015, 0.05), ((160, 74, 46), (178, 84, 52)))
    canvas.specks(1, (0.1, 0.06, 0.9, 0.2), (0.04, 0.06), ((250, 226, 200),))


def _ruins(canvas: Canvas) -> None:
    canvas.ridge(0.7, 0.02, (176, 164, 116))
    for x in np.arange(0.04, 1, 0.17):
        top = canvas.rng.uniform(0.12, 0.45)
        canvas.rectangle(x, top, x + 0.085, 0.76, (214, 204, 180))
        for groove in (0.02, 0.045, 0.07):
            canvas.rectangle(x + groove, top, x + groove + 0.006, 0.74, (176, 166, 142))
        canvas.rectangle(x - 0.015, 0.74, x + 0.1, 0.78, (196, 186, 160))


def _road(canvas: Canvas) -> None:
    canvas.ridge(0.5, 0.03, (120, 168, 82))
    canvas.polygon(((0.46, 0.5), (0.54, 0.5), (1.0, 1.0), (0.0, 1.0)), (88, 88, 94))
    for y, w in ((0.54, 0.005), (0.62, 0.009), (0.73, 0.014), (0.88, 0.02)):
        canvas.rectangle(0.5 - w, y, 0.5 + w, y + w * 4, (245, 240, 220))


def _checker(canvas: Canvas) -> None:
    canvas.rectangle(0, 0.44, 1, 0.5, (214, 50, 60))
    shades = ((30, 30, 36), (245, 245, 240))
    for row, y in enumerate(np.linspace(0.6, 0.93, 6)):
        for column in range(10):
            x = column * 0.1
            canvas.rectangle(x, y, x + 0.1, y + 0.08, shades[(row + column) % 2])

    # lamps
    for x in (0.2, 0.5, 0.8):
        canvas.polygon(((x - 0.07, 0.16), (x, 0.06), (x + 0.07, 0.16)), (250, 210, 80))


def _ice(canvas: Canvas) -> None:
    berg = ((0.02, 0.78), (0.2, 0.3), (0.36, 0.46), (0.55, 0.2), (0.75, 0.5), (0.98, 0.78))
    shaded_side = ((0.55, 0.2), (0.6, 0.78), (0.98, 0.78), (0.75, 0.5))
    floe = ((-0.02, 1), (0.03, 0.74), (0.96, 0.74), (1.02, 1))
    canvas.rectangle(0, 0.5, 1, 1, (40, 104, 150))
    canvas.polygon(berg, (206, 234, 248))
    canvas.polygon(shaded_side, (164, 208, 234))
    canvas.polygon(floe, (232, 246, 252))


def _stage(canvas: Canvas) -> None:
    folds = ((176, 22, 36), (136, 14, 28))
    for i, x in enumerate(np.arange(0, 1, 0.05)):
        if x < 0.26 or x > 0.7:
            canvas.rectangle(x, 0, x + 0.05, 0.76, folds[i % 2])
    canvas.rectangle(0, 0, 1, 0.1, (156, 18, 32))
    canvas.rectangle(0, 0.76, 1, 1, (176, 122, 70))
    for y in (0.82, 0.89):
        canvas.rectangle(0, y, 1, y + 0.006, (136, 90, 48))


def _rooftop(canvas: Canvas) -> None:
    canvas.buildings(0.76, (0.08, 0.34), (96, 108, 134), (210, 226, 240))
    canvas.rectangle(0, 0.7, 1, 0.78, (150, 80, 64))
    canvas.rectangle(0, 0.78, 1, 1, (128, 124, 122))


# name of grammar.SETTINGS -> colors of the sky from top to bottom, and what is painted on it
SETTINGS: dict[str, tuple[tuple[Color, ...], Painter]] = {
    "snowy": (((120, 180, 236), (214, 232, 248)), _snowy),
    "desert": (((96, 176, 232), (250, 226, 170)), _desert),
    "beach": (((70, 170, 240), (200, 236, 252)), _beach),
    "city": (((10, 12, 40), (52, 40, 96)), _city),
    "forest": (((150, 200, 190), (80, 130, 90)), _forest),
    "underwater": (((60, 180, 220), (8, 50, 110)), _underwater),
    "space": (((8, 8, 26), (34, 14, 60), (8, 8, 30)), _space),
    "kitchen": (((206, 212, 200), (190, 196, 186)), _kitchen),
    "meadow": (((110, 190, 245), (220, 240, 250)), _meadow),
    "jungle": (((20, 70, 40), (60, 110, 50)), _jungle),
    "lake": (((130, 190, 236), (226, 236, 240)), _lake),
    "cave": (((26, 20, 44), (60, 44, 90)), _cave),
    "library": (((60, 36, 22), (76, 46, 28)), _library),
    "volcano": (((70, 26, 34), (200, 80, 40)), _volcano),
    "clouds": (((60, 140, 232), (190, 224, 250)), _clouds),
    "farm": (((120, 196, 246), (228, 242, 250)), _farm),
    "mars": (((226, 160, 120), (240, 196, 150)), _mars),
    "ruins": (((140, 190, 220), (240, 226, 190)), _ruins),
    "road": (((104, 180, 240), (222, 238, 248)), _road),
    "checker": (((92, 200, 196), (150, 224, 216)), _checker),
    "autumn": (((190, 214, 226), (244, 226, 180)), _autumn),
    "ice": (((150, 200, 232), (224, 240, 250)), _ice),
    "stage": (((40, 16, 24), (70, 26, 34)), _stage),
    "rooftop": (((130, 186, 232), (244, 220, 200)), _rooftop),
}
