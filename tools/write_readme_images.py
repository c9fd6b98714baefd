"""Draw the README's images from a finished run: predictions, the ladder, and the confidence.

    python tools/write_readme_images.py [--output output] [--count 6]

The predictions are those of notebook 05's gallery, at equal steps from the most to the least
confident, not chosen by hand. The other two are figures that notebook 04 saved.
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src import paths, plots
from src.data import images

FOLDER = paths.ROOT / "assets"
PREDICTIONS = "predictions.png"
SAVED = {"ladder.png": "ladder.png", "calibration.png": "confidence.png"}  # here, and in FOLDER
DPI = 110


def lines_of(row: dict) -> list[str]:
    """The lines beside one image: the truth, the confidence and the score, the nearest prompts."""
    heading = row["truth"] or row["id"]
    score = f"confidence {row['confidence']:.2f}"
    if row["cosine"] is not None:
        score += f", cosine with the truth {row['cosine']:.2f}"
    return [heading, score, *(f"· {prompt}" for prompt in row["prompts"][:3])]


def draw_predictions(output: Path, count: int) -> Figure:
    """Images of the gallery, each with its prompts and its confidence."""
    gallery = pl.read_parquet(output / paths.GALLERY)
    steps = np.linspace(0, len(gallery) - 1, min(count, len(gallery)))
    rows = gallery[steps.round().astype(int)].to_dicts()
    decoded = [images.decode(row["image"]) for row in rows]
    return plots.image_page(decoded, [lines_of(row) for row in rows])


def save_small(image: Image.Image, name: str) -> None:
    """Save with 256 colors, a fraction of the size."""
    file = FOLDER / name
    palette = image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
    palette.save(file, optimize=True)
    print(f"{file.relative_to(paths.ROOT)}: {file.stat().st_size / 1024:.0f} KB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--count", type=int, default=6)
    options = parser.parse_args()
    output = paths.resolve(options.output)

    drawn = io.BytesIO()
    draw_predictions(output, options.count).savefig(drawn, dpi=DPI)
    save_small(Image.open(drawn), PREDICTIONS)

    figures = output / paths.Stage.ENSEMBLE / paths.FIGURES
    for saved, name in SAVED.items():
        save_small(Image.open(figures / saved), name)


if __name__ == "__main__":
    main()
