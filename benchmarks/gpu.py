"""What a GPU takes over, as multiples of the bare operation on the same GPU and beside the CPU.
Needs a CUDA GPU.

    python benchmarks/gpu.py search     cuML behind knn.search against torch's product and topk, and faiss; K = 100
    python benchmarks/gpu.py filter     the scan of filter 2 by precision, against the full product
    python benchmarks/gpu.py text       the text store's rules on cuDF against polars, 1,000,000 prompts

Ratios are of times taken in one run, in turns. Transfers to and from the GPU count on our side; the
bare operation finds its inputs there. train.py and predict.py take a GPU where there is one.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch
from timing import in_turns, machine, table

from dedup import LINK, THRESHOLD, clustered, product
from knn import K, rows

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src import knn
from src.dedup import filters, similarity
from src.model_b import text_pool


def measured(title: str, functions: dict[str, Callable], repeats: int, base: str) -> None:
    print(f"\n{title}", flush=True)
    in_turns(functions, 1)  # libraries loaded, kernels chosen, memory taken
    table(in_turns(functions, repeats), base)


def search(arguments: argparse.Namespace) -> None:
    print(knn.describe("cuml"))
    for n, dim in ((60_000, 1024), (1_000_000, 768)):
        search_one(n, dim, arguments.repeats)


def search_one(n: int, dim: int, repeats: int) -> None:
    store, queries = rows(n, dim, 0), rows(6000, dim, 1)
    x, q = torch.from_numpy(store).cuda(), torch.from_numpy(queries).cuda()
    functions = {
        "product": lambda: [block @ x.T for block in q.split(1000)],
        "torch product and topk": lambda: [torch.topk(block @ x.T, K) for block in q.split(1000)],
        "knn.search, cuML": lambda: knn.search(store, queries, K, "cuml"),
    }
    if n < 100_000:
        functions["knn.search, faiss"] = lambda: knn.search(store, queries, K, "faiss")
    measured(f"{n:,} x {dim} store, 6,000 queries, K = {K}", functions, repeats, "product")
    found, index = knn.search(store, queries[:200], K, "cuml")
    best, where = (part.cpu().numpy() for part in torch.topk(q[:200].double() @ x.T.double(), K))
    same = np.mean([len(set(a) & set(b)) / K for a, b in zip(index, where, strict=True)])
    print(
        f"against float64: similarities within {np.abs(best - found).max():.1g}, {same:.5f} of the neighbors the same"
    )


def filter2(arguments: argparse.Namespace) -> None:
    for n in (60_000, 300_000):
        rows = clustered(n)
        x = torch.from_numpy(rows).cuda()

        def scan(device: str, precision: str, rows: np.ndarray = rows) -> similarity.PairScan:
            return similarity.scan_pairs(
                rows, THRESHOLD, curve=filters.CURVE, link=LINK, device=device, precision=precision
            )

        functions = {"product": lambda x=x: product(x)}
        functions |= {
            precision: lambda p=precision, f=scan: f("cuda", p) for precision in ("float32", "tf32")
        }
        if n < 100_000:
            functions["float32 on the CPU"] = lambda f=scan: f("cpu", "float32")
        measured(f"{n:,} x 384 float32", functions, arguments.repeats, "product")


def text(arguments: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"word{n}" for n in range(5000)])
    prompts = pl.DataFrame(
        {
            "prompt": [" ".join(words[rng.integers(5000, size=12)]) for _ in range(1_000_000)],
            "source": "list",
        }
    )
    batches = [prompts[start : start + 100_000] for start in range(0, len(prompts), 100_000)]
    with tempfile.TemporaryDirectory() as folder:
        functions = {
            engine: lambda e=engine: text_pool.write_text_pool(
                batches, Path(folder) / f"{e}.parquet", engine=e
            )
            for engine in ("polars", "cudf")
        }
        measured("1,000,000 prompts of 12 words", functions, arguments.repeats, "polars")


if __name__ == "__main__":
    measures = {"search": search, "filter": filter2, "text": text}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measure", choices=measures)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA GPU")
    print(f"{torch.cuda.get_device_name()}; {machine()}", flush=True)
    measures[options.measure](options)
