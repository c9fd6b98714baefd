"""Filter 2 with its groups and its curve, as multiples of the bare matrix product, and its peers.

    python benchmarks/dedup.py product   against the full n x n product, 60,000 x 384
    python benchmarks/dedup.py peers     against faiss, semhash, sentence-transformers, 20,000 x 384
    python benchmarks/dedup.py growth    15, 30, 60 and 120 thousand rows
    python benchmarks/dedup.py large     300,000 rows

Ratios are of times taken in one run, in turns, so that a busy machine weighs on both sides; --clock
cpu counts processor time. Peers are installed for the benchmark alone: pip install semhash==0.5.0
(faiss-cpu and sentence-transformers are in requirements.txt).
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timing import CLOCKS, in_turns, machine, peak_mib, table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.dedup import folds, similarity
from src.dedup.filters import CURVE

THRESHOLD = 0.85
LINK = 0.7


def clustered(n: int, *, dim: int = 384, seed: int = 0) -> np.ndarray:
    """(n, dim) float32 unit rows as prompts lie: near a common direction, with near-duplicates.

    A third are near-duplicates, one in fifty is an exact copy.
    """
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(dim).astype(np.float32)
    x = rng.standard_normal((n, dim), dtype=np.float32) + 0.5 * common

    near = rng.random(n) < 0.35
    originals = x[rng.integers(n, size=near.sum())]
    x[near] = originals + 0.45 * rng.standard_normal((near.sum(), dim), dtype=np.float32)
    copies = rng.random(n) < 0.02
    x[copies] = x[rng.integers(n, size=copies.sum())]
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def product(rows: torch.Tensor, block: int = 4096) -> None:
    """The full n x n product in float32 where the rows lie, by blocks into one buffer, not read."""
    buffer = torch.empty(block, len(rows), device=rows.device)
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        torch.mm(part, rows.T, out=buffer[: len(part)])


def ours(x: np.ndarray) -> similarity.PairScan:
    scan = similarity.scan_pairs(x, THRESHOLD, curve=CURVE, link=LINK)
    folds.balanced_groups(scan, max_share=0.1)
    return scan


def timed(function: Callable, *arguments) -> tuple[float, object]:
    clock = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - clock, result


def header(n: int, x: np.ndarray) -> None:
    print(f"{machine()}; {n:,} x {x.shape[1]} float32\n", flush=True)


# --- the tables ---


def compare_with_product(n: int, repeats: int, clock: str) -> None:
    x = clustered(n)
    header(n, x)
    ours(x[:2000])  # libraries loaded, threads started
    functions = {"product": lambda: product(torch.from_numpy(x)), "one scan": lambda: ours(x)}
    table(in_turns(functions, repeats, CLOCKS[clock]), "product")
    _, above, kept = alone(x)
    print(f"\nmemory above the input: {above:.0f} MiB; the scan keeps {int(kept):,} of {n:,} rows")


def growth(sizes: list[int]) -> None:
    header(sizes[-1], clustered(10))
    print(f"{'rows':>8} {'seconds':>9} {'MiB above input':>16} {'kept':>9}")
    points = []
    for n in sizes:
        seconds, above, kept = alone(clustered(n))
        points.append((n, seconds))
        print(f"{n:8,} {seconds:9.2f} {above:16.0f} {int(kept):9,}", flush=True)
    if len(points) > 1:
        slope = np.polyfit(*np.log(np.array(points)).T, 1)[0]
        print(f"\ntime grows as rows to the power of {slope:.2f}")


def alone(x: np.ndarray) -> list[float]:
    """Seconds, MiB of memory above the input, and rows kept, of a scan in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/x.npy", x)
        command = [sys.executable, __file__, "one", "--file", f"{folder}/x.npy"]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(number) for number in run.stdout.split()]


def one(file: str) -> None:
    x = np.load(file)
    ours(x[:2000])  # libraries loaded, threads started
    before = peak_mib()
    seconds, scan = timed(ours, x)
    print(seconds, peak_mib() - before, scan.stays.sum())


# --- peers ---


def public_recipe(x: np.ndarray) -> np.ndarray:
    """The competition's public recipe: faiss flat, 1,000 neighbors a row, walked in order.

    A row that still stays removes all later rows that are near it.
    """
    import faiss

    index = faiss.IndexFlatIP(x.shape[1])
    index.add(x)
    stays = np.ones(len(x), bool)
    for start in range(0, len(x), 1000):
        scores, neighbors = index.search(x[start : start + 1000], min(1000, len(x)))
        for row, (score, near) in enumerate(zip(scores, neighbors, strict=True), start):
            if stays[row]:
                near = near[score > THRESHOLD]
                stays[near[near > row]] = False
    return stays


def semhash_filter(x: np.ndarray) -> np.ndarray:
    """semhash over ready vectors, with its exact backend."""
    from semhash import SemHash
    from vicinity import Backend

    class Ready:
        """Looks the vectors up instead of encoding."""

        def encode(self, sentences, **_):
            return x[[int(s) for s in sentences]]

    records = [str(n) for n in range(len(x))]
    kept = (
        SemHash.from_records(records, model=Ready(), ann_backend=Backend.BASIC)
        .self_deduplicate(threshold=THRESHOLD)
        .selected
    )
    stays = np.zeros(len(x), bool)
    stays[[int(record) for record in kept]] = True
    return stays


def sentence_transformers_filter(x: np.ndarray) -> np.ndarray:
    """sentence-transformers' community_detection at the threshold; one row of a cluster stays."""
    from sentence_transformers.util import community_detection

    stays = np.ones(len(x), bool)
    for cluster in community_detection(
        torch.from_numpy(x), threshold=THRESHOLD, min_community_size=2
    ):
        stays[cluster[1:]] = False
    return stays


def paraphrase_mining(x: np.ndarray) -> np.ndarray:
    """sentence-transformers' mining of pairs at its own settings, then the greedy walk."""
    from sentence_transformers.util import paraphrase_mining_embeddings

    pairs = paraphrase_mining_embeddings(torch.from_numpy(x))
    near: dict[int, list[int]] = {}
    for score, i, j in pairs:
        if score > THRESHOLD:
            near.setdefault(max(i, j), []).append(min(i, j))
    stays = np.ones(len(x), bool)
    for row in sorted(near):
        stays[row] = not stays[near[row]].any()
    return stays


def judge(x: np.ndarray, stays: np.ndarray) -> tuple[int, int]:
    """How many kept rows are near another kept row, and how many removed rows are near none."""
    kept = np.flatnonzero(stays)
    removed = np.flatnonzero(~stays)
    inside = similarity.scan_pairs(x[kept], THRESHOLD, keep_one=False)
    lost = 0
    if len(removed):
        best, _ = similarity.nearest_in(x[removed], x[kept])
        lost = int((best <= np.float32(THRESHOLD)).sum())
    return int((~inside.stays).sum()), lost


def compare_with_peers(n: int, repeats: int) -> None:
    x = clustered(n)
    header(n, x)
    filters = {
        "one scan (this)": lambda x: ours(x).stays,
        "public recipe, faiss": public_recipe,
        "semhash": semhash_filter,
        "s-t paraphrase mining": paraphrase_mining,
        "s-t community detection": sentence_transformers_filter,
    }
    columns = f"{'times this':>11} {'(spread)':>15} {'kept':>8} {'near pairs left':>16} {'lost':>6}"
    print(f"{'':>24} {columns}")
    seconds = {name: [] for name in filters}
    answers = {}
    for _ in range(repeats):
        for name, function in filters.items():
            took, answers[name] = timed(function, x)
            seconds[name].append(took)
    base = seconds["one scan (this)"]
    for name, stays in answers.items():
        ratios = [a / b for a, b in zip(seconds[name], base, strict=True)]
        left, lost = judge(x, stays)
        spread = f"{min(ratios):.2f} - {max(ratios):.2f}"
        counts = f"{stays.sum():8,} {left:16,} {lost:6,}"
        print(f"{name:>24} {statistics.median(ratios):11.2f} {spread:>15} {counts}", flush=True)
    print("\nnear pairs left: kept rows above the threshold with another kept row")
    print("lost: removed rows that no kept row is near")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "measure",
        choices=["product", "peers", "growth", "large", "one"],
        metavar="{product,peers,growth,large}",
    )
    parser.add_argument("--rows", type=int, help="other than the table's own size")
    parser.add_argument("--file", help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="of product")
    options = parser.parse_args()
    if options.measure == "product":
        compare_with_product(options.rows or 60_000, options.repeats, options.clock)
    elif options.measure == "peers":
        compare_with_peers(options.rows or 20_000, options.repeats)
    elif options.measure == "one":
        one(options.file)
    else:
        growth(
            [options.rows or 300_000]
            if options.measure == "large"
            else [15_000, 30_000, 60_000, 120_000]
        )
