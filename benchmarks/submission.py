"""A competition-sized submission: python benchmarks/submission.py [--images 16000] [--runs 3]

Prints the seconds of `submission.write` and `submission.check` by id and in a sample's order, the
size of the files, and whether the values that come back are the float32 values that went in.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.data import sample_submission
from src.metrics import l2_normalize
from src.submit import submission


def timed(ids: list[str], x: np.ndarray, path: Path, sample: Path | None) -> tuple[float, float]:
    """Seconds of writing and of checking."""
    confidence = np.full(len(ids), 0.5, np.float32)
    start = time.perf_counter()
    submission.write(ids, x, path, sample, confidence=confidence)
    middle = time.perf_counter()
    submission.check(path, sample)
    return middle - start, time.perf_counter() - middle


def values_return(path: Path, ids: list[str], x: np.ndarray) -> bool:
    """Whether the CSV at `path` gives back `x`, the rows of `ids`, bit by bit."""
    table = pl.read_csv(path, schema={"imgId_eId": pl.String, "val": pl.Float32})
    first_cells = table["imgId_eId"].gather_every(sample_submission.WIDTH)
    row = {identifier: n for n, identifier in enumerate(ids)}
    order = [row[cell.rpartition("_")[0]] for cell in first_cells]
    return np.array_equal(table["val"].to_numpy().reshape(x.shape), x[order])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=16_000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()

    shape = (options.images, sample_submission.WIDTH)
    x = l2_normalize(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    ids = [f"{i * 2654435761 % 16**9:09x}" for i in range(options.images)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "submission"
        csv = path.with_suffix(".csv")
        sample = Path(folder) / "sample_submission.csv"
        submission.write(ids[::-1], x[::-1], Path(folder) / "any")
        (Path(folder) / "any.csv").rename(sample)

        for name, order in (("by id", None), ("by the sample", sample)):
            seconds = np.array([timed(ids, x, path, order) for _ in range(options.runs)])
            write, check = (f"{s.mean():.1f} s ({s.min():.1f} to {s.max():.1f})" for s in seconds.T)
            print(
                f"{shape[0]:,} x {shape[1]}, {name}: write {write}, check {check}, "
                f"together at most {seconds.sum(axis=1).max():.1f} s"
            )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"values read back equal to float32: {values_return(csv, ids, x)}; "
            f"csv {csv.stat().st_size / 2**20:.0f} MiB; peak memory {peak:.1f} GiB"
        )


if __name__ == "__main__":
    main()
