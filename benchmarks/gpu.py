"""What a GPU takes over, as multiples of the bare operation on the same GPU and beside the CPU.
Needs a CUDA GPU.

    python benchmarks/gpu.py search     knn.search by cuML and cuVS against torch's product; K = 100
    python benchmarks/gpu.py filter     the scan of filter 2 by precision, against the full product
    python benchmarks/gpu.py text       the text pool's rules on cuDF against polars

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
from timing import compare, machine, measure_parser

from dedup import LINK, THRESHOLD, clustered, product
from knn import K, rows

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src import knn
from src.dedup import filters, similarity
from src.model_b import text_pool


def measured(title: str, functions: dict[str, Callable], repeats: int, base: str) -> None:
    print(f"\n{title}", flush=True)
    compare(functions, repeats, base)


def search(arguments: argparse.Namespace) -> None:
    print(knn.describe("cuml"), knn.describe("cuvs"))
    for n, dim in ((60_000, 1024), (1_000_000, 768)):
        search_one(n, dim, arguments.repeats)


def search_one(n: int, dim: int, repeats: int) -> None:
    """Everything counted: the store comes from pageable memory, in float32 and in float16."""
    store = rows(n, dim, 0)
    queries = rows(6000, dim, 1)
    half = store.astype(np.float16)
    x = torch.from_numpy(store).cuda()
    q = torch.from_numpy(queries).cuda()
    functions = {
        "product": lambda: [block @ x.T for block in q.split(1000)],
        "torch product and topk": lambda: [torch.topk(block @ x.T, K) for block in q.split(1000)],
        "copy, float32": lambda: torch.from_numpy(store).cuda(),
    }
    for engine in ("cuml", "cuvs"):
        functions[f"{engine}, float32"] = lambda e=engine: knn.search(store, queries, K, e)
        functions[f"{engine}, float16"] = lambda e=engine: knn.search(half, queries, K, e)
        functions[f"{engine}, float16, 4 blocks"] = lambda e=engine: knn.search(
            half, queries, K, e, store_rows=-(-n // 4)
        )
    if n < 100_000:
        functions["faiss, float32"] = lambda: knn.search(store, queries, K, "faiss")
    measured(f"{n:,} x {dim} store, 6,000 queries, K = {K}", functions, repeats, "product")

    best = torch.topk(q[:200].double() @ x.T.double(), K)
    for engine in ("cuml", "cuvs"):
        similarity, index = knn.search(store, queries[:200], K, engine)
        off = np.abs(best.values.cpu().numpy() - similarity).max()
        pairs = zip(index, best.indices.cpu().numpy(), strict=True)
        same = np.mean([len(set(a) & set(b)) / K for a, b in pairs])
        print(f"{engine} against float64: off by {off:.1g}, {same:.5f} of the neighbors the same")


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
    parser = measure_parser(__doc__, measures)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA GPU")
    print(f"{torch.cuda.get_device_name()}; {machine()}", flush=True)
    measures[options.measure](options)
