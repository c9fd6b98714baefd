"""The exact search as a multiple of the bare matrix product, beside its peers, from disk, and on
two Dask workers.

    python benchmarks/knn.py product      60,000 x 1,024 store, 6,000 queries, K = 100
    python benchmarks/knn.py peers        beside scikit-learn, torch and hnswlib (with its recall)
    python benchmarks/knn.py growth       15, 30, 60 and 120 thousand rows
    python benchmarks/knn.py disk         5,000,000 x 384 float16 from disk (3.9 GB), peak memory
    python benchmarks/knn.py workers      faiss in this process against two Dask workers

Ratios are of times taken in one run, in turns, so that a busy machine weighs on both sides; --clock
cpu counts processor time. hnswlib is installed for the benchmark alone: pip install hnswlib==0.8.0.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from timing import CLOCKS, in_turns, machine, measure_parser, peak_mib, table
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src import knn
from src.model_b import datastore

K = 100


def rows(n: int, dim: int, seed: int) -> np.ndarray:
    """(n, dim) float32 unit rows around 200 centers, as prompts cluster."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).standard_normal((200, dim), dtype=np.float32)
    x = rng.standard_normal((n, dim), dtype=np.float32) + centers[rng.integers(200, size=n)]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def bare_product(store: np.ndarray, queries: np.ndarray) -> None:
    """The bare float32 product by NumPy, block by block into one buffer, nothing looked at."""
    buffer = np.empty((min(1500, len(queries)), len(store)), np.float32)
    for start in range(0, len(queries), len(buffer)):
        block = queries[start : start + len(buffer)]
        np.matmul(block, store.T, out=buffer[: len(block)])


def ours(store: np.ndarray, queries: np.ndarray) -> tuple:
    return knn.search(store, queries, K, "faiss")


def by_torch(store: np.ndarray, queries: np.ndarray, block: int = 1000) -> tuple:
    x = torch.from_numpy(store)
    parts = []
    for start in range(0, len(queries), block):
        parts.append(torch.topk(torch.from_numpy(queries[start : start + block]) @ x.T, K))
    return torch.cat([p.values for p in parts]).numpy(), torch.cat(
        [p.indices for p in parts]
    ).numpy()


def by_scikit_learn(store: np.ndarray, queries: np.ndarray, metric: str) -> tuple:
    from sklearn.neighbors import NearestNeighbors

    return (
        NearestNeighbors(n_neighbors=K, algorithm="brute", metric=metric)
        .fit(store)
        .kneighbors(queries)
    )


def header(what: str) -> None:
    print(f"{machine()}; {knn.describe('faiss')}; {what}\n", flush=True)


def product(arguments: argparse.Namespace) -> None:
    store = rows(60_000, 1024, 0)
    queries = rows(6000, 1024, 1)
    header(f"60,000 x 1,024 store, 6,000 queries, K = {K}, {arguments.clock} clock")
    functions = {
        "product": lambda: bare_product(store, queries),
        "knn.search": lambda: ours(store, queries),
    }
    table(in_turns(functions, arguments.repeats, CLOCKS[arguments.clock]), "product")


def peers(arguments: argparse.Namespace) -> None:
    import hnswlib

    store = rows(60_000, 1024, 0)
    queries = rows(6000, 1024, 1)
    header(f"60,000 x 1,024 store, 6,000 queries, K = {K}, {arguments.clock} clock")
    start = time.perf_counter()
    index = hnswlib.Index(space="ip", dim=1024)
    index.init_index(len(store), ef_construction=200, M=16)
    index.add_items(store)
    built = time.perf_counter() - start
    index.set_ef(200)
    functions = {
        "product": lambda: bare_product(store, queries),
        "knn.search": lambda: ours(store, queries),
        "torch matmul + topk": lambda: by_torch(store, queries),
        "scikit-learn euclidean": lambda: by_scikit_learn(store, queries, "euclidean"),
        "scikit-learn cosine": lambda: by_scikit_learn(store, queries, "cosine"),
        "hnswlib, search alone": lambda: index.knn_query(queries, K),
    }
    table(in_turns(functions, arguments.repeats, CLOCKS[arguments.clock]), "product")
    exact = ours(store, queries)[1]
    found = index.knn_query(queries, K)[0]
    recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(exact, found, strict=True)])
    print(
        f"hnswlib (M = 16, ef = 200): recall {recall:.3f}; "
        f"building took {built:.1f} s, {len(store) / built:.0f} rows/s"
    )


def growth(arguments: argparse.Namespace) -> None:
    queries = rows(1000, 1024, 1)
    header(f"1,000 queries x 1,024, K = {K}, {arguments.clock} clock")
    seconds = {}
    for n in (15_000, 30_000, 60_000, 120_000):
        store = rows(n, 1024, 0)
        seconds |= in_turns(
            {f"{n:,} rows": lambda store=store: ours(store, queries)},
            arguments.repeats,
            CLOCKS[arguments.clock],
        )
    table(seconds, "15,000 rows")


def write_store(folder: Path, n: int, dim: int, shards: int) -> None:
    for s in tqdm(range(shards), desc="writing the store", unit="shard"):
        np.save(folder / f"{s:03d}.npy", rows(n // shards, dim, 100 + s).astype(np.float16))


def disk(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_store(Path(folder), arguments.rows, 384, 50)
        header(
            f"{arguments.rows:,} x 384 float16 in 50 shards, {arguments.queries} queries, K = {K}"
        )
        for part in (0.1, 0.5, 1.0):  # a process of its own for each: peak memory is the process's
            subprocess.run(
                [
                    sys.executable,
                    __file__,
                    "stream",
                    "--folder",
                    folder,
                    "--part",
                    str(part),
                    "--queries",
                    str(arguments.queries),
                ],
                check=True,
            )


def stream(arguments: argparse.Namespace) -> None:
    files = sorted(Path(arguments.folder).glob("*.npy"))
    shards = [np.load(file, mmap_mode="r") for file in files[: round(len(files) * arguments.part)]]
    queries = rows(arguments.queries, 384, 1)
    before = peak_mib()
    start = time.perf_counter()
    similarity, index = knn.search(shards, queries, K, "faiss")
    seconds = time.perf_counter() - start
    n = sum(map(len, shards))
    peak = peak_mib()
    own = datastore.take(shards, index[:, 0])
    off = np.abs(np.einsum("qd,qd->q", queries, own) - similarity[:, 0]).max()
    print(
        f"{n:,} rows: {seconds:.1f} s, {n / seconds / 1e3:.0f} thousand rows/s; "
        f"peak {peak:.0f} MiB ({before:.0f} before); first similarities right to {off:.1g}",
        flush=True,
    )


def workers(arguments: argparse.Namespace) -> None:
    from distributed import Client, LocalCluster

    store = rows(60_000, 384, 0)
    queries = rows(1000, 384, 1)
    header(f"60,000 x 384 store, 1,000 queries, K = {K}")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        found = knn.search(store, queries, K, "faiss", cluster=client, store_rows=15_000)
        expected = ours(store, queries)
        functions = {
            "this process": lambda: ours(store, queries),
            "two workers": lambda: knn.search(
                store, queries, K, "faiss", cluster=client, store_rows=15_000
            ),
        }
        table(in_turns(functions, arguments.repeats), "this process")
    odd = [
        (a ^ b, q)
        for q, (a, b) in enumerate(zip(map(set, found[1]), map(set, expected[1]), strict=True))
        if a != b
    ]
    beyond = sum(
        abs(float(queries[q] @ store[i]) - expected[0][q, -1]) > 1e-6
        for rest, q in odd
        for i in rest
    )
    print(
        f"similarities differ by at most {np.abs(found[0] - expected[0]).max():.1g}; "
        f"sets of neighbors differ in {len(odd)} of {len(queries)} lists, "
        f"{beyond} rows of them by more than a tie within 1e-6"
    )


def main() -> None:
    functions = (product, peers, growth, disk, stream, workers)
    measures = {function.__name__: function for function in functions}
    parser = measure_parser(__doc__, measures)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument(
        "--folder", help="where `disk` writes its store; default: the system's temporary folder"
    )
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument(
        "--part", type=float, default=1.0, help="the part of the shards that `stream` searches"
    )
    arguments = parser.parse_args()
    measures[arguments.measure](arguments)


if __name__ == "__main__":
    main()
