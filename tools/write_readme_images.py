"""Draw the README's image from a finished run: test images with prompts and confidence.

    python tools/write_readme_images.py [--output output] [--count 6]

The images are those of notebook 05's gallery, at equal steps from the most to the least confident,
not chosen by hand.
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src import paths, plots
from src.data import images

ASSET = paths.ROOT / "assets" / "predictions.png"
DPI = 110


def lines_of(row: dict) -> list[str]:
    """The lines beside one image: the truth, the confidence and the score, the nearest prompts."""
    heading = row["truth"] or row["id"]
    score = f"confidence {row['confidence']:.2f}"
    if row["cosine"] is not None:
        score += f", cosine with the truth {row['cosine']:.2f}"
    return [heading, score, *(f"· {prompt}" for prompt in row["prompts"][:3])]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--count", type=int, default=6)
    options = parser.parse_args()

    gallery = pl.read_parquet(paths.resolve(options.output) / paths.GALLERY)
    steps = np.linspace(0, len(gallery) - 1, min(options.count, len(gallery)))
    rows = gallery[steps.round().astype(int)].to_dicts()
    decoded = [images.decode(row["image"]) for row in rows]
    figure = plots.image_page(decoded, [lines_of(row) for row in rows])

    ASSET.parent.mkdir(exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI)
    palette = Image.open(drawn).convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
    palette.save(ASSET, optimize=True)
    print(f"{ASSET.relative_to(paths.ROOT)}: {len(rows)} images")


if __name__ == "__main__":
    main()
