"""A Predictor whose models are arithmetic on pixels: the stream around them is tested alone.

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
from src.submit.folder import read_folder

PREPROCESS = ImagePreprocess(12)


class Toy(predictor.Predictor):
    def __init__(self, output: Path, *, waits_after: float = float("inf")):
        self.output = output
        self.neighbors = 2
        self.sentence_model = "all-MiniLM-L6-v2"
        self.waits_after = waits_after
        self.count = 0
        self.ensembles = {}
        self.batches_ahead = 2
        self.preprocesses = {PREPROCESS}
        self.pool = ThreadPoolExecutor(2)

    def encode(self, pixels: predictor.ImageBatch) -> predictor.Encoded:
        if self.count >= self.waits_after:
            time.sleep(600)
        self.count += len(pixels[PREPROCESS])
        x = pixels[PREPROCESS].reshape(len(pixels[PREPROCESS]), -1)[:, :384].astype(np.float32)
        return predictor.Encoded({"toy": x}, {})

    def blend(self, batches: list[predictor.Encoded]) -> predictor.Prediction:
        x = np.concatenate([batch.by_member["toy"] for batch in batches])
        prompts = [["=1+1 fox", "owl"] if row[0] % 2 else ["an owl", "-fox"] for row in x]
        return predictor.Prediction(
            l2_normalize(x + 1),
            x.mean(axis=1) / 255,
            prompts,
            np.full((len(x), 2), 0.5, np.float32),
        )


def write_images(folder: Path, count: int) -> None:
    """`count` images in two sub-folders and three formats, two of them broken, and another file."""
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
    toy = Toy(out.parent, waits_after=20)
    batch.predict_folder(toy, read_folder(images), out, batch_size=4, part_size=8)
