"""The prediction of new images against its own models: python benchmarks/predict.py [--output output] [--images 2000]

Alternately, `--runs` times each: `predict.run` from files to a Parquet file (decoding, models, search, parts, assembly), the
same models and search on the same images already decoded in memory, and the bare CLIP image encoder on them. Prints
images per second, and the ratio with its spread.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src import encoder
from src.model_a.fold_ensemble import FoldEnsemble  # noqa: E402
from src.paths import resolve  # noqa: E402
from src.submit.batch import PART, images_in, run
from src.submit.predictor import Predictor, stack  # noqa: E402


def linked(sources: list[Path], count: int, folder: Path) -> None:
    """`count` images in `folder`, the sources over and over, as links."""
    for i in range(count):
        source = sources[i % len(sources)]
        (folder / f"{i:06d}{source.suffix}").symlink_to(source)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="output")
    parser.add_argument("--images", default="input/demo/test/images")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    options = parser.parse_args()
    predictor = Predictor(options.output)
    sources = [resolve(options.images) / name for name in images_in(resolve(options.images))]
    with tempfile.TemporaryDirectory() as folder:
        images, out = Path(folder) / "images", Path(folder) / "found.parquet"
        images.mkdir()
        linked(sources, options.images, images)
        decoded = list(predictor.pool.map(predictor.decode, sources[: options.images]))
        decoded = [decoded[i % len(decoded)] for i in range(options.images)]
        batches = [
            stack(decoded[i : i + options.batch_size])
            for i in range(0, options.images, options.batch_size)
        ]
        per_part = max(1, PART // options.batch_size)
        clip = predictor.trunks[next(iter(predictor.clips_b.values()))].clip
        bare = FoldEnsemble(clip, {})
        found = []
        for _ in range(options.runs):
            start = time.perf_counter()
            run(predictor, images, out, batch_size=options.batch_size)
            whole = time.perf_counter() - start
            start = time.perf_counter()
            for first in range(0, len(batches), per_part):
                predictor.find(
                    [predictor.see(batch) for batch in batches[first : first + per_part]]
                )
            models = time.perf_counter() - start
            start = time.perf_counter()
            for batch in batches:
                bare(batch[clip.geometry])
            encoding = time.perf_counter() - start
            start = time.perf_counter()
            list(predictor.pool.map(predictor.decode, (sources * 10)[: options.images // 4]))
            decoding = (time.perf_counter() - start) * 4
            found.append((whole, models, encoding, decoding))
    seconds = np.array(found)
    rates = options.images / seconds
    names = ("files to result", "models on decoded images", "bare CLIP encoder", "decoding alone")
    for name, rate in zip(names, rates.T, strict=True):
        print(f"{name}: {rate.mean():.1f} images/s ({rate.min():.1f} to {rate.max():.1f})")
    for name, ratio in (
        ("of the models' own rate", seconds[:, 1] / seconds[:, 0]),
        ("of the slower of models and decoding", seconds[:, [1, 3]].max(axis=1) / seconds[:, 0]),
        (
            "of models and decoding one after the other",
            seconds[:, [1, 3]].sum(axis=1) / seconds[:, 0],
        ),
        ("of the bare encoder's rate", seconds[:, 2] / seconds[:, 0]),
    ):
        print(
            f"files to result reaches {ratio.mean():.2f} {name} ({ratio.min():.2f} to {ratio.max():.2f})"
        )
    folds = sum(
        len(folds) for trunk in predictor.trunks.values() for folds in trunk.members.values()
    )
    shared = [sorted(trunk.shared) for trunk in predictor.trunks.values()]
    print(
        f"{predictor.b.store.height:,} prompts in the store, {folds} folds, blocks shared by {shared}, "
        f"{encoder.describe(clip)}; "
        f"16,000 images at this rate: {16000 / rates[:, 0].mean() / 3600:.2f} h"
    )


if __name__ == "__main__":
    main()
