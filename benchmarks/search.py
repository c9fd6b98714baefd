"""Search against scikit-learn's brute force: python benchmarks/search.py [--rows 10000 100000 1000000]

For each number of rows, in one run: opening an `Index` for the first time (the vectors are copied
out of the Parquet file) and again, one query by `Index.by_vector` and by scikit-learn's brute force
on the same vectors in memory, the same with a filter by confidence, whether the answers agree, and
memory. Vectors are random unit rows: an exact search takes as long on any.

With --predictions FILE.parquet and --truth FILE.csv (imgId, prompt): how often the true prompt of
an image, as a query, finds it first (R@1) and among five (R@5).
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.neighbors import NearestNeighbors

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src.data import sources
from src.data.sample_submission import WIDTH
from src.metrics import l2_normalize
from src.submit import Index
from src.submit.index import vectors_file

K = 20
BATCH = 50_000
AGREE = 1e-5  # by which two similarities of one image may differ


def write_vectors(file: Path, rows: int, seed: int) -> None:
    """A result of `predict` with random vectors, as `predict` writes it: 1,024 rows a group."""
    random = np.random.default_rng(seed)
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("embedding", pa.list_(pa.float32(), WIDTH)),
            ("confidence", pa.float32()),
            ("prompts", pa.list_(pa.string())),
        ]
    )
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, rows, BATCH):
            count = min(BATCH, rows - start)
            x = l2_normalize(random.standard_normal((count, WIDTH), dtype=np.float32))
            columns = [
                pa.array(
                    [f"{row // 1000:04d}/{row:07d}.jpg" for row in range(start, start + count)]
                ),
                pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH),
                pa.array(random.random(count, dtype=np.float32)),
                pa.array([[f"prompt {row}"] * 5 for row in range(start, start + count)]),
            ]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=1024)


def timed(call: Callable[[], object]) -> tuple[object, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def agree(results: pl.DataFrame, distance: np.ndarray, rows: np.ndarray) -> bool:
    """The same images in the same order, but for those of one similarity."""
    similarity = results["similarity"].to_numpy()
    close = np.allclose(similarity, 1 - distance, atol=AGREE)
    return close and set(results["row"]) == set(rows.tolist())


def measure(rows: int, runs: int) -> None:
    """Print one line for each way, and whether the answers agree."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors.parquet"
        write_vectors(file, rows, seed=0)
        _, first_open = timed(lambda: Index(file))
        index, second_open = timed(lambda: Index(file))
        queries = l2_normalize(np.random.default_rng(1).standard_normal((runs, WIDTH)))
        _, cold = timed(lambda: index.by_vector(queries[0], K))
        before = peak_gib()

        x = np.array(np.load(vectors_file(file)))
        brute = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="cosine").fit(x)
        ours = []
        filtered = []
        theirs = []
        same = []
        for query in queries:
            results, seconds = timed(lambda query=query: index.by_vector(query, K))
            ours.append(seconds)
            _, seconds = timed(lambda query=query: index.by_vector(query, K, min_confidence=0.5))
            filtered.append(seconds)
            (distance, nearest), seconds = timed(lambda query=query: brute.kneighbors(query[None]))
            theirs.append(seconds)
            same.append(agree(results, distance[0], nearest[0]))

        print(
            f"{rows:9,} rows: first opening {first_open:.2f} s, again {second_open:.2f} s, first "
            f"query {cold:.3f} s; peak memory so far {before:.2f} GiB "
            f"(the vectors are {rows * WIDTH * 4 / 2**30:.2f})"
        )
        ways = {"search": ours, "search, confidence >= .5": filtered, "scikit-learn": theirs}
        for name, seconds in ways.items():
            span = f"{min(seconds):.3f} to {max(seconds):.3f}"
            print(f"    {name:25} {np.mean(seconds):.3f} s a query ({span})")
        print(f"    same answers: {sum(same)} of {len(same)}; peak memory {peak_gib():.2f} GiB")


def quality(predictions: str, truth: str) -> None:
    """Print how well true prompts find their images."""
    index = Index(predictions)
    known = dict(sources.read_truth(truth).select("imgId", "prompt").rows())
    ids = [Path(identifier).stem for identifier in index.table["id"]]
    found = []
    for row, identifier in enumerate(ids):
        if identifier in known:
            nearest = index.search(known[identifier][:2000], 5)["row"].to_list()
            found.append((nearest[0] == row, row in nearest))
    first, five = np.mean(found, axis=0)
    print(f"{len(found)} images by their true prompts: R@1 {first:.3f}, R@5 {five:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--predictions")
    parser.add_argument("--truth")
    options = parser.parse_args()
    if options.predictions:
        quality(options.predictions, options.truth)
        return
    for rows in options.rows:
        measure(rows, options.runs)


if __name__ == "__main__":
    main()
