"""`predict` against its own models: python benchmarks/predict.py [--output output] [--count 2000]

Alternately, `--runs` times each: `batch.predict_folder` from files to a Parquet file (decoding,
models, search, parts, assembly), the same models and search on the same images already decoded in
memory, the bare CLIP image encoder on them, and decoding alone. Prints images per second, and the
ratios with their spread.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src import encoder
from src.model_a.fold_ensemble import FoldEnsemble
from src.paths import resolve
from src.submit.batch import predict_folder
from src.submit.folder import read_folder
from src.submit.predictor import PART_SIZE, ImageBatch, Predictor, stack

DECODED_SHARE = 4  # decoding alone is timed on one image in so many


def linked(sources: list[Path], count: int, folder: Path) -> None:
    """`count` images in `folder`, the sources over and over, as links."""
    folder.mkdir()
    for i in range(count):
        source = sources[i % len(sources)]
        (folder / f"{i:06d}{source.suffix}").symlink_to(source)


def decoded_batches(
    predictor: Predictor, sources: list[Path], count: int, batch_size: int
) -> list[ImageBatch]:
    """`count` decoded images, the sources over and over, in batches."""
    decoded = list(predictor.pool.map(predictor.decode, sources[:count]))
    decoded = [decoded[i % len(decoded)] for i in range(count)]
    return [stack(decoded[i : i + batch_size]) for i in range(0, count, batch_size)]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def run_models(predictor: Predictor, batches: list[ImageBatch], per_part: int) -> None:
    for first in range(0, len(batches), per_part):
        predictor.blend([predictor.encode(b) for b in batches[first : first + per_part]])


def report(rates: np.ndarray, measured: np.ndarray) -> None:
    """Images per second of each way, and how close the whole comes to its parts."""
    names = ("files to result", "models on decoded images", "bare CLIP encoder", "decoding alone")
    for name, rate in zip(names, rates.T, strict=True):
        print(f"{name}: {rate.mean():.1f} images/s ({rate.min():.1f} to {rate.max():.1f})")

    whole, models, bare, decoding = measured.T
    ratios = {
        "the models' own rate": models / whole,
        "the slower of models and decoding": np.maximum(models, decoding) / whole,
        "models and decoding one after the other": (models + decoding) / whole,
        "the bare encoder's rate": bare / whole,
    }
    for name, ratio in ratios.items():
        span = f"{ratio.min():.2f} to {ratio.max():.2f}"
        print(f"files to result reaches {ratio.mean():.2f} of {name} ({span})")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output")
    parser.add_argument("--images", default="input/demo/test/images")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()

    predictor = Predictor(options.output)
    folder = resolve(options.images)
    sources = [folder / name for name in read_folder(folder).images]
    batches = decoded_batches(predictor, sources, options.count, options.batch_size)
    per_part = max(1, PART_SIZE // options.batch_size)
    clip = predictor.ensembles[next(iter(predictor.clips_b.values()))].clip
    bare = FoldEnsemble(clip, {})
    some = (sources * DECODED_SHARE)[: options.count // DECODED_SHARE]

    measured = []
    with tempfile.TemporaryDirectory() as temporary:
        linked(sources, options.count, Path(temporary) / "images")
        source = read_folder(Path(temporary) / "images")
        out = Path(temporary) / "predicted.parquet"
        size = options.batch_size
        for _ in range(options.runs):
            whole = seconds(lambda: predict_folder(predictor, source, out, batch_size=size))
            models = seconds(lambda: run_models(predictor, batches, per_part))
            encoding = seconds(lambda: [bare(batch[clip.geometry]) for batch in batches])
            decoding = seconds(lambda: list(predictor.pool.map(predictor.decode, some)))
            measured.append((whole, models, encoding, decoding * options.count / len(some)))

    measured = np.array(measured)
    rates = options.count / measured
    report(rates, measured)
    ensembles = predictor.ensembles.values()
    folds = sum(len(folds) for ensemble in ensembles for folds in ensemble.members.values())
    print(
        f"{predictor.model_b.prompts.height:,} prompts in the store, {folds} folds, "
        f"blocks shared by {[sorted(ensemble.shared) for ensemble in ensembles]}, "
        f"{encoder.describe(clip)}; "
        f"16,000 images at this rate: {16000 / rates[:, 0].mean() / 3600:.2f} h"
    )


if __name__ == "__main__":
    main()
