"""The styles: one effect for each, from the painted scene to its final look."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from src.demo.canvas import gradient

Effect = Callable[[Image.Image, np.random.Generator], Image.Image]


def stylize(image: Image.Image, style: str, rng: np.random.Generator) -> Image.Image:
    """The image in the named style."""
    return STYLES[style](image, rng)


# what several styles use ------------------------------------------------------


def _grain(image: Image.Image, rng: np.random.Generator, strength: float) -> Image.Image:
    x = np.asarray(image, dtype=np.float32)
    noise = rng.standard_normal((image.height, image.width, 1), dtype=np.float32) * strength
    return Image.fromarray(np.clip(x + noise, 0, 255).astype(np.uint8))


def _edges(image: Image.Image) -> Image.Image:
    """(size, size) L, bright on contours; empty at the border, which the filter would outline."""
    gray = ImageOps.grayscale(image)
    wide = gray.filter(ImageFilter.MaxFilter(3 if gray.width < 400 else 5))
    return ImageChops.subtract(wide, gray).point(lambda v: min(255, v * 3))


def _rgb(gray: Image.Image) -> Image.Image:
    return Image.merge("RGB", [gray] * 3)


def _plain(image: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """One color, of the size of `image`."""
    return Image.new("RGB", image.size, color)


def _saturate(image: Image.Image, factor: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(factor)


def _vignette(image: Image.Image, depth: float) -> Image.Image:
    y, x = np.mgrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j]
    distance = np.clip(x * x + y * y, 0, 2)[..., None]
    darker = np.asarray(image) * (1 - depth * distance / 2)
    return Image.fromarray(darker.astype(np.uint8))


def _jittered_grid(
    image: Image.Image, rng: np.random.Generator, n: int
) -> tuple[np.ndarray, Image.Image]:
    """(n + 1, n + 1, 2) grid points in pixels, and the image at one pixel per half cell."""
    grid = np.stack(np.meshgrid(np.arange(n + 1), np.arange(n + 1)), axis=-1).astype(np.float32)
    grid[1:-1, 1:-1] += rng.uniform(-0.36, 0.36, (n - 1, n - 1, 2))
    return grid * image.width / n, image.resize((2 * n, 2 * n), Image.Resampling.BOX)


# the styles -------------------------------------------------------------------


def _watercolor(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    size = image.width

    # washed-out colors with soft contours
    soft = image.filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.GaussianBlur(size / 220))
    soft = Image.blend(_saturate(soft, 0.9), _plain(image, (255, 253, 246)), 0.28)
    soft = ImageChops.subtract(soft, ImageOps.colorize(_edges(soft), "black", (70, 64, 50)))

    # blotches of pigment
    coarse = (rng.random((size // 16 + 1, size // 16 + 1)) * 50).astype(np.uint8)
    blotch = Image.fromarray(coarse).resize(image.size, Image.Resampling.BICUBIC)
    soft = ImageChops.screen(soft, _rgb(blotch))

    # a margin of paper
    mask = Image.new("L", image.size, 0)
    box = (size * 0.03, size * 0.03, size * 0.97, size * 0.97)
    ImageDraw.Draw(mask).rounded_rectangle(box, size * 0.05, fill=255)
    mask = mask.filter(ImageFilter.GaussianBlur(size / 70))
    framed = Image.composite(soft, _plain(image, (252, 250, 242)), mask)
    return _grain(framed, rng, 5)


def _oil(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    size = image.width
    x = np.asarray(_saturate(image.filter(ImageFilter.MedianFilter(3)), 1.3))

    # strokes: patches of the image, each moved a little
    dx = _patches(size, rng)
    dy = _patches(size, rng)
    rows, columns = np.mgrid[:size, :size]
    reach = size / 64
    from_row = np.clip(rows + (dy * reach).astype(int), 0, size - 1)
    from_column = np.clip(columns + (dx * reach).astype(int), 0, size - 1)
    moved = x[from_row, from_column]

    # bristles
    bristles = np.sin((rows + columns * 0.6 + dx * 6) * (2.2 * 128 / size))[..., None] * 12
    out = Image.fromarray(np.clip(moved + bristles, 0, 255).astype(np.uint8))
    return out.filter(ImageFilter.SMOOTH)


def _patches(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size) float32 in -1 to 1, constant over patches of about six pixels."""
    n = size // 6 + 1
    coarse = Image.fromarray(rng.uniform(-1, 1, (n, n)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.NEAREST))


def _sketch(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    gray_image = ImageOps.grayscale(image)
    gray = np.asarray(gray_image, dtype=np.float32)
    inverted = ImageOps.invert(gray_image).filter(ImageFilter.GaussianBlur(image.width / 60))
    dodge = np.clip(gray * 255 / (256 - np.asarray(inverted, dtype=np.float32)), 0, 255)

    rows, columns = np.mgrid[: image.height, : image.width]
    hatch = ((rows + columns) % max(3, image.width // 64) == 0) * (gray < 120) * 60
    pencil = np.clip(dodge * 0.85 + gray * 0.15 - hatch, 0, 255).astype(np.uint8)
    return _grain(Image.fromarray(pencil).convert("RGB"), rng, 5)


def _pixel(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    small = image.resize((56, 56), Image.Resampling.BOX)
    small = small.quantize(28, dither=Image.Dither.NONE).convert("RGB")
    return small.resize(image.size, Image.Resampling.NEAREST)


def _neon(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    lines = _edges(image.filter(ImageFilter.MedianFilter(3)))
    hue = _saturate(image, 3)
    hue = ImageChops.add(hue, gradient(image.width, (160, 20, 200), (20, 160, 220)))
    bright = ImageChops.multiply(hue, _rgb(lines))
    glow = bright.filter(ImageFilter.GaussianBlur(image.width / 50))

    dark = ImageEnhance.Brightness(image).enhance(0.16)
    glowing = ImageChops.screen(ImageChops.screen(dark, glow), glow)
    return ImageChops.add(glowing, bright)


def _lowpoly(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    n = 26
    grid, small = _jittered_grid(image, rng, n)
    out = image.copy()
    draw = ImageDraw.Draw(out)
    for row in range(n):
        for column in range(n):
            a = tuple(grid[row, column].tolist())
            b = tuple(grid[row, column + 1].tolist())
            c = tuple(grid[row + 1, column].tolist())
            d = tuple(grid[row + 1, column + 1].tolist())
            draw.polygon((a, b, c), fill=small.getpixel((2 * column, 2 * row)))
            draw.polygon((b, c, d), fill=small.getpixel((2 * column + 1, 2 * row + 1)))
    return _saturate(Image.blend(out, image, 0.15), 1.2)


def _glass(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    n = 20
    vivid = _saturate(image, 1.8)
    grid, small = _jittered_grid(vivid, rng, n)

    # panes, each framed
    out = vivid.copy()
    draw = ImageDraw.Draw(out)
    frame = max(1, image.width // 110)
    for row in range(n):
        for column in range(n):
            steps = ((0, 0), (0, 1), (1, 1), (1, 0))
            corners = [tuple(grid[row + i, column + j].tolist()) for i, j in steps]
            draw.polygon(corners, fill=small.getpixel((2 * column, 2 * row)))
            draw.line([*corners, corners[0]], (18, 18, 24), frame)

    # lead along the contours of what is depicted
    contours = ImageOps.invert(_edges(image.filter(ImageFilter.MedianFilter(3))))
    lead = contours.point(lambda v: 0 if v < 70 else 255)
    return ImageChops.multiply(Image.blend(out, vivid, 0.3), _rgb(lead))


def _ukiyoe(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    size = image.width
    flat = ImageOps.posterize(_saturate(image.filter(ImageFilter.MedianFilter(5)), 0.75), 2)
    flat = ImageChops.multiply(Image.blend(flat, image, 0.4), _plain(image, (246, 226, 186)))
    flat = Image.blend(flat, _plain(image, (226, 206, 164)), 0.22)
    out = ImageChops.subtract(flat, _rgb(_edges(image)))

    # border and seal
    draw = ImageDraw.Draw(out)
    draw.rectangle((0, 0, size - 1, size - 1), outline=(236, 222, 190), width=size // 32)
    draw.rectangle((size * 0.88, size * 0.06, size * 0.94, size * 0.2), fill=(190, 40, 34))
    return _grain(out, rng, 4)


def _photo(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _grain(_vignette(ImageEnhance.Contrast(image).enhance(1.08), 0.35), rng, 3)


def _charcoal(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    blurred = image.filter(ImageFilter.GaussianBlur(image.width / 160))
    gray = ImageOps.autocontrast(ImageOps.grayscale(blurred), cutoff=3)
    dark = ImageChops.subtract(gray.point(lambda v: int(255 * (v / 255) ** 1.5)), _edges(image))
    return _grain(dark.convert("RGB"), rng, 30).filter(ImageFilter.SMOOTH)


def _comic(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    size = image.width
    flat = ImageOps.posterize(_saturate(image.filter(ImageFilter.MedianFilter(3)), 1.6), 2)
    flat = Image.blend(flat, _saturate(image, 1.6), 0.5)

    # printed dots where it is dark
    rows, columns = np.mgrid[:size, :size] * (128 / size)
    raster = (np.sin(rows * 1.4) * np.sin(columns * 1.4) > 0.45)[..., None]
    dark = np.asarray(ImageOps.grayscale(image))[..., None] < 170
    dotted = np.asarray(flat).astype(int) - raster * dark * 50
    out = Image.fromarray(np.clip(dotted, 0, 255).astype(np.uint8))

    # ink and frame
    out = ImageChops.subtract(out, _rgb(_edges(image)))
    frame = (0, 0, size - 1, size - 1)
    ImageDraw.Draw(out).rectangle(frame, outline=(0, 0, 0), width=max(2, size // 50))
    return out


def _mosaic(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    n = 42
    size = image.width
    tiles = np.asarray(image.resize((n, n), Image.Resampling.BOX)).astype(np.float32)
    tiles = np.clip(tiles + rng.normal(0, 12, (n, n, 1)), 0, 255).astype(np.uint8)
    out = Image.fromarray(tiles).resize(image.size, Image.Resampling.NEAREST)

    # joints
    draw = ImageDraw.Draw(out)
    width = max(1, size // 256)
    for k in range(n + 1):
        at = round(k * size / n)
        draw.line((at, 0, at, size), (206, 200, 190), width)
        draw.line((0, at, size, at), (206, 200, 190), width)
    return out


def _vintage(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    gray = ImageOps.grayscale(image)
    sepia = ImageOps.colorize(gray, (40, 24, 10), (250, 232, 196), mid=(150, 112, 70))
    blurred = sepia.filter(ImageFilter.GaussianBlur(image.width / 300))
    return _grain(_vignette(blurred, 0.7), rng, 12)


def _blueprint(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    size = image.width
    gray = ImageOps.grayscale(image).convert("RGB")
    paper = Image.blend(_plain(image, (24, 66, 150)), gray, 0.1)
    draw = ImageDraw.Draw(paper)
    for at in np.linspace(0, size, 17).astype(int).tolist():
        draw.line((at, 0, at, size), (60, 104, 184))
        draw.line((0, at, size, at), (60, 104, 184))
    return ImageChops.screen(paper, _rgb(_edges(image)))


def _popart(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    inks = (
        ((90, 0, 120), (255, 60, 140), (255, 240, 70)),
        ((0, 40, 140), (250, 80, 60), (120, 255, 230)),
        ((150, 0, 50), (0, 170, 230), (255, 250, 150)),
    )
    dark, middle, light = inks[int(rng.integers(len(inks)))]
    gray = ImageOps.posterize(ImageOps.autocontrast(ImageOps.grayscale(image)), 3)
    tritone = ImageOps.colorize(gray, dark, light, mid=middle)
    return Image.blend(tritone, _saturate(image, 2), 0.25)


# name of grammar.STYLES -> its effect
STYLES: dict[str, Effect] = {
    "watercolor": _watercolor,
    "oil": _oil,
    "sketch": _sketch,
    "pixel": _pixel,
    "neon": _neon,
    "lowpoly": _lowpoly,
    "glass": _glass,
    "ukiyoe": _ukiyoe,
    "photo": _photo,
    "charcoal": _charcoal,
    "comic": _comic,
    "mosaic": _mosaic,
    "vintage": _vintage,
    "blueprint": _blueprint,
    "popart": _popart,
}
