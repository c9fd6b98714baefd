"""Seconds of tuning K and the weights (notebook 03), on lists as a search gives them.

    python benchmarks/tuning.py --rows 4000 20000

The grids are the notebook's: 7 values of K up to 400, 16 weightings. The store holds float16 values
of the rows' prompts and 20,000 others. Wall and CPU seconds, lowest and highest of the repeats, and
the most memory beyond what was held before.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from timing import machine, peak_mib, reset_peak

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.metrics import l2_normalize
from src.model_b import datastore, weighting
from src.model_b.weighting import Weighting

K_GRID = [5, 10, 20, 50, 100, 200, 400]
WEIGHTINGS = [Weighting(dim=d) for d in (2, 4, 6, 8, 12, 16, 24, 32, 48)]
WEIGHTINGS += [Weighting(tau=t) for t in (0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3)]
OTHERS = 20_000
WIDTH = 384


def lists(rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Similarities in descending order and different rows of the store, for each of `rows`."""
    rng = np.random.default_rng(0)
    similarity = -np.sort(-rng.uniform(0.1, 0.9, (rows, k)), axis=1).astype(np.float32)
    first = rng.integers(rows + OTHERS, size=(rows, 1))
    step = rng.integers(1, 50, size=(rows, 1))
    return similarity, (first + step * np.arange(k)) % (rows + OTHERS)


def tune(rows: int, device: str, repeats: int) -> None:
    rng = np.random.default_rng(1)
    values = l2_normalize(rng.standard_normal((rows + OTHERS, WIDTH), dtype=np.float32))
    view = datastore.ColumnView([values.astype(np.float16)], np.arange(rows + OTHERS))
    similarity, index = lists(rows, K_GRID[-1])
    grids = {"k_grid": K_GRID, "weightings": WEIGHTINGS}
    options = {} if device == "cpu" else {"device": device}

    held = reset_peak()
    wall = []
    cpu = []
    for _ in range(repeats):
        start = time.perf_counter()
        cpu_start = time.process_time()
        tuned = weighting.tune(
            similarity, index, view.take, values[:rows], np.arange(rows) % 3, **grids, **options
        )
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
    best = tuned.grid["avg_cos"].max()
    times = f"{min(wall):.1f} to {max(wall):.1f} s, CPU {min(cpu):.1f} to {max(cpu):.1f} s"
    memory = f"{peak_mib() - held:.0f} MiB above {held:.0f}"
    result = f"best {best:.6f} at K = {tuned.k}"
    print(f"{rows:7,} rows on {device}: {times}; {memory}; {result}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[4000, 20_000])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(machine())
    for rows in arguments.rows:
        tune(rows, arguments.device, arguments.repeats)
