"""A Predictor whose models are arithmetic on pixels, so that the stream around them is tested alone and in seconds.

Run as a script it predicts half of a folder, then waits to be killed.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from src.data.images import ImagePreprocess
from src.metrics import l2_normalize
from src.submit import batch, predictor

GEOMETRY = ImagePreprocess(12)


class Toy(predictor.Predictor):
    def __init__(self, output: Path, *, waits_after: float = float("inf")):
        self.output, self.neighbours, self.waits_after, self.count = output, 2, waits_after, 0
        self.trunks, self.ahead, self.geometries = {}, 2, {GEOMETRY}
        self.pool = ThreadPoolExecutor(2)

    def see(self, pixels: predictor.ImageBatch) -> predictor.Encoded:
        if self.count >= self.waits_after:
            time.sleep(600)
        self.count += len(pixels[GEOMETRY])
        x = pixels[GEOMETRY].reshape(len(pixels[GEOMETRY]), -1)[:, :384].astype(np.float32)
        return {"toy": x}, {}

    def find(self, seen: list[predictor.Encoded]) -> predictor.Prediction:
        x = np.concatenate([members["toy"] for members, _ in seen])
        prompts = [["=1+1 fox", "owl"] if row[0] % 2 else ["an owl", "-fox"] for row in x]
        return predictor.Prediction(
            l2_normalize(x + 1),
            x.mean(axis=1) / 255,
            prompts,
            np.full((len(x), 2), 0.5, np.float32),
        )


def write_images(folder: Path, count: int) -> None:
    """`count` images in two sub-folders and three formats, with two that cannot be read and a file that is no image."""
    random = np.random.default_rng(0)
    for i in range(count):
        file = folder / ("a" if i % 2 else "b/c") / f"{i:04d}{('.png', '.jpg', '.webp')[i % 3]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(file)
    (folder / "a" / "0001.jpg").write_bytes(b"not an image")
    (folder / "a" / "=cmd.png").write_bytes((folder / "a" / "0009.png").read_bytes()[:100])
    (folder / "notes.txt").write_text("no image")


if __name__ == "__main__":
    images, out = map(Path, sys.argv[1:3])
    batch.run(Toy(out.parent, waits_after=20), images, out, batch_size=4, part=8)
