"""Search against scikit-learn's brute force.

    python benchmarks/search.py [--rows 10000 100000 1000000]

For each number of rows, in one run: what `predict` needs to lay the vectors beside its result, the
opening of an `Index` and its first text query with the vectors not in the page cache, the opening
of a result without them, one query by `Index.by_vector` and by scikit-learn's brute force on the
same vectors in memory, the same with a filter by confidence, whether the answers agree, and memory.
Vectors are random unit rows: an exact search takes as long on any.

With --predictions FILE.parquet (a result of `predict`, or a submission's) and --truth FILE.csv
(imgId, prompt): how often the true prompt of an image, as a query, finds it first (R@1) and among
five (R@5); with --clip NAME also by that CLIP's own text and image embeddings.
"""

import argparse
import os
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
from src import encoder, knn
from src.data import images, prompts, sources
from src.data.sample_submission import WIDTH
from src.metrics import l2_normalize
from src.submit import Index, vectors
from src.submit.predictor import PART_SIZE

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


def private_gib() -> float:
    """Memory of this process that no file backs: mapped vectors do not count, copies of them do."""
    status = Path("/proc/self/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))
    return int(kilobytes) / 2**20


def agree(results: pl.DataFrame, distance: np.ndarray, rows: np.ndarray) -> bool:
    """The same images in the same order, but for those of one similarity."""
    similarity = results["similarity"].to_numpy()
    close = np.allclose(similarity, 1 - distance, atol=AGREE)
    return close and set(results["row"]) == set(rows.tolist())


def forget(file: Path) -> None:
    """Drop a file from the page cache, so that it is read from the disk next."""
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def open_and_search(file: Path) -> tuple[float, float]:
    """Seconds to open an index, and for its first query by a text."""
    index, opening = timed(lambda: Index(file))
    _, query = timed(lambda: index.search("two foxes on a snowy mountain", K))
    return opening, query


def measure(rows: int, runs: int) -> None:
    """Print what opening, searching and memory come to, and whether the answers agree."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors.parquet"
        write_vectors(file, rows, seed=0)
        _, without = timed(lambda: Index(file))

        # as `predict` does it at its end, from parts that it holds one at a time
        parts = pq.ParquetFile(file).iter_batches(columns=["embedding"], batch_size=PART_SIZE)
        columns = (pl.Series("embedding", part["embedding"]) for part in parts)
        _, beside = timed(lambda: vectors.write_vectors(file, columns))

        for one in (file, vectors.vectors_file(file)):
            forget(one)
        from_disk = open_and_search(file)
        cached = open_and_search(file)

        before = private_gib()
        index = Index(file)
        index.search("two foxes on a snowy mountain", K)
        ours_gib = private_gib() - before
        queries = l2_normalize(np.random.default_rng(1).standard_normal((runs, WIDTH)))
        x = np.array(np.load(vectors.vectors_file(file)))
        brute = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="cosine").fit(x)
        brute.kneighbors(queries[:1])
        theirs_gib = private_gib() - before - ours_gib
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

        print(f"{rows:9,} rows ({rows * WIDTH * 4 / 2**30:.2f} GiB of vectors)")
        for name, (opening, query) in {"from disk": from_disk, "again": cached}.items():
            print(
                f"    {name:25} opened in {opening:.2f} s, first text in {query:.2f} s, "
                f"together {opening + query:.2f} s"
            )
        print(f"    vectors beside the result {beside:.2f} s at the end of predict")
        print(f"    a result without them     opened in {without:.2f} s")
        ways = {"search": ours, "search, confidence >= .5": filtered, "scikit-learn": theirs}
        for name, seconds in ways.items():
            span = f"{min(seconds):.3f} to {max(seconds):.3f}"
            print(f"    {name:25} {np.mean(seconds):.3f} s a query ({span})")
        print(
            f"    same answers: {sum(same)} of {len(same)}; memory held: "
            f"search {ours_gib:.2f} GiB, scikit-learn {theirs_gib:.2f} GiB"
        )


# --- how well texts find their images ---


def quality(index: Index, truth: str, clip: str | None) -> None:
    """Print how well true prompts find their images: by predictions, and by a CLIP's embeddings."""
    prompt_of = dict(sources.read_truth(truth).select("imgId", "prompt").rows())
    stems = [Path(identifier).stem for identifier in index.table["id"]]
    rows = np.array([row for row, stem in enumerate(stems) if stem in prompt_of])
    texts = [prompt_of[stems[row]] for row in rows]
    distinct = len(set(texts))
    print(f"{len(index):,} images, {len(rows):,} true prompts, {distinct:,} of them distinct")

    queries = prompts.encode(texts, model=index.sentence_model, device="cpu")
    recall("predictions", index.vectors(), queries, rows)
    if clip is None:
        return

    loaded = encoder.load(clip)
    files = [index.image_path(row) for row in range(len(index))]
    pixels = [images.from_bytes(file.read_bytes(), loaded.geometry) for file in files]
    embedded = encoder.embed_images(loaded, np.stack(pixels))
    recall(clip, embedded, encoder.embed_texts(loaded, texts), rows)


def recall(name: str, store: np.ndarray, queries: np.ndarray, rows: np.ndarray) -> None:
    """Print R@1 and R@5: how often row `rows[i]` of `store` is among the nearest to query i."""
    _, nearest = knn.search(np.ascontiguousarray(store), queries, 5, "auto")
    first = (nearest[:, 0] == rows).mean()
    five = (nearest == rows[:, None]).any(axis=1).mean()
    print(f"{name}: R@1 {first:.3f}, R@5 {five:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--predictions")
    parser.add_argument("--truth")
    parser.add_argument("--images", help="where the images are, if the result does not name it")
    parser.add_argument("--clip", help="also search by this CLIP, as parameters files name it")
    options = parser.parse_args()
    if options.predictions:
        index = Index(options.predictions, images=options.images)
        quality(index, options.truth, options.clip)
        return
    prompts.encode(["a first text"], device="cpu")  # loads the sentence encoder
    for rows in options.rows:
        measure(rows, options.runs)


if __name__ == "__main__":
    main()
