"""A square canvas in unit coordinates: (0, 0) is the top left corner, (1, 1) the bottom right."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

Color = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]


def gradient(size: int, *colors: Color) -> Image.Image:
    """(size, size) RGB, from the first color at the top to the last at the bottom."""
    stops = np.array(colors, dtype=np.float32)
    at = np.linspace(0, len(colors) - 1, size)
    channels = [np.interp(at, range(len(colors)), stops[:, c]) for c in range(3)]
    column = np.stack(channels, axis=1)
    return Image.fromarray(np.repeat(column[:, None], size, axis=1).astype(np.uint8))


class Canvas:
    """An image being painted, with the random generator of its scene."""

    def __init__(self, image: Image.Image, rng: np.random.Generator) -> None:
        self.image = image
        self.size = image.width
        self.rng = rng
        self.draw = ImageDraw.Draw(image)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, fill: Color) -> None:
        size = self.size
        self.draw.rectangle((x0 * size, y0 * size, x1 * size, y1 * size), fill=fill)

    def ellipse(self, x0: float, y0: float, x1: float, y1: float, fill: Color) -> None:
        size = self.size
        self.draw.ellipse((x0 * size, y0 * size, x1 * size, y1 * size), fill=fill)

    def polygon(self, points: Iterable[Point], fill: Color) -> None:
        self.draw.polygon([(x * self.size, y * self.size) for x, y in points], fill=fill)

    def pick(self, colors: Sequence[Color]) -> Color:
        """One of `colors`, at random."""
        return colors[int(self.rng.integers(len(colors)))]

    def ridge(self, height: float, rough: float, fill: Color) -> None:
        """Ground from a rough line at `height` down to the bottom."""
        size = self.size
        x = np.linspace(-0.05, 1.05, 9)
        y = height + self.rng.uniform(-rough, rough, 9)
        line = zip(x * size, y * size, strict=True)
        self.draw.polygon([(0, size), *line, (size * 1.05, size)], fill=fill)

    def specks(self, n: int, box: Box, radius: tuple[float, float], fills: Sequence[Color]) -> None:
        """`n` discs inside `box`, their radii between the two of `radius`."""
        x0, y0, x1, y1 = (v * self.size for v in box)
        x = self.rng.uniform(x0, x1, n)
        y = self.rng.uniform(y0, y1, n)
        r = self.rng.uniform(*radius, n) * self.size
        fill = self.rng.integers(len(fills), size=n)

        left_top = zip(x - r, y - r, strict=True)
        right_bottom = zip(x + r, y + r, strict=True)
        for start, end, f in zip(left_top, right_bottom, fill, strict=True):
            self.draw.ellipse((*start, *end), fill=fills[f])

    def buildings(
        self, base: float, heights: tuple[float, float], fill: Color, window: Color
    ) -> None:
        """A row of houses standing on `base`, about 60 % of their windows lit."""
        x = 0.0
        while x < 1:
            width = self.rng.uniform(0.08, 0.17)
            top = base - self.rng.uniform(*heights)
            self.rectangle(x, top, x + width, base, fill)

            for wy in np.arange(top + 0.025, base - 0.02, 0.05):
                for wx in np.arange(x + 0.02, x + width - 0.02, 0.035):
                    if self.rng.random() < 0.6:
                        self.rectangle(wx, wy, wx + 0.015, wy + 0.025, window)
            x += width + 0.005

    def trees(self, n: int, base: float, crowns: Sequence[Color], *, leafy: bool) -> None:
        """`n` trees standing about `base`: leafy ones with a round crown, or firs."""
        xs = self.rng.uniform(0, 1, n)
        fills = self.rng.integers(len(crowns), size=n)
        for x, f in zip(xs, fills, strict=True):
            height = self.rng.uniform(0.3, 0.5)
            width = self.rng.uniform(0.06, 0.1)
            y = base + self.rng.uniform(-0.03, 0.05)
            self.rectangle(x - 0.012, y - height * 0.6, x + 0.012, y, (84, 56, 36))
            if leafy:
                reach = width * 1.3
                self.ellipse(x - reach, y - height, x + reach, y - height * 0.35, crowns[f])
            else:
                self._fir(x, y, height, width, crowns[f])

    def _fir(self, x: float, y: float, height: float, width: float, fill: Color) -> None:
        for tier in range(3):
            top = y - height + tier * height * 0.24
            bottom = top + height * 0.36
            reach = width * (0.6 + tier * 0.3)
            self.polygon(((x, top), (x - reach, bottom), (x + reach, bottom)), fill)
