"""What only a GPU can show: the real cuML, cuDF and CUDA against the CPU. Skipped without a GPU."""

import numpy as np
import polars as pl
import pytest
import torch

from src import dask_workers, encoder, knn
from src.data import prompts
from src.dedup import filters, similarity
from src.knn import gpu
from src.metrics import cosines, l2_normalize
from src.model_a import fit, folds
from src.model_b import text_pool, weighting
from src.submit.predictor import Predictor
from tests.helpers import toy_training, trained_output
from tests.helpers.recipes import small_recipe

cupy = pytest.importorskip("cupy")  # not on every platform
pytestmark = pytest.mark.skipif(not cupy.cuda.is_available(), reason="no GPU that CUDA can use")
_constants = np.random.default_rng(0)


def near_duplicates(n: int, dim: int, spread: float = 0.3) -> np.ndarray:
    """Unit rows around a third as many centers, so that many pairs are near, and a few the same."""
    rng = np.random.default_rng([n, dim])
    x = l2_normalize(
        (
            rng.standard_normal((n // 3, dim))[rng.integers(n // 3, size=n)]
            + spread * rng.standard_normal((n, dim))
        ).astype(np.float32)
    )
    x[5] = x[n - 9]
    x[n - 1] = x[n - 9]
    return x


def same_lists(
    found: knn.Neighbors, expected: knn.Neighbors, queries: np.ndarray, store: np.ndarray
) -> None:
    """The same similarities, each that of the row it names."""
    np.testing.assert_allclose(found[0], expected[0], atol=2e-6)
    named = np.einsum("qd,qkd->qk", queries.astype(np.float64), store[found[1]])
    np.testing.assert_allclose(found[0], named, atol=2e-6)
    assert (np.diff(np.sort(found[1], axis=1), axis=1) > 0).all(), "a row is listed twice"


# --- cuML and cuVS ---

GPU_ENGINES = pytest.mark.parametrize("engine", ["cuml", "cuvs"])


def test_auto_is_cuml_on_a_named_gpu():
    description = knn.describe()
    assert description["engine"] == "cuml"
    assert description["engine_device"] not in ("", "cpu")
    assert knn.describe("cuvs")["engine_version"].count(".") == 2


@GPU_ENGINES
@pytest.mark.parametrize(
    ("spread", "k", "store_rows", "query_rows"),
    [(0.3, 50, None, 8192), (1e-3, 20, 700, 300), (1.0, 1, 1, 64), (0.3, 400, 1500, 100)],
)
def test_a_gpu_gives_what_faiss_gives(engine, spread, k, store_rows, query_rows):
    rows = 3000 if store_rows != 1 else 40
    store = near_duplicates(rows, 384, spread)
    queries = near_duplicates(500, 384, spread)
    queries[:20] = store[:20]  # their own rows are found, at similarity 1
    found = knn.search(store, queries, k, engine, store_rows=store_rows, query_rows=query_rows)
    same_lists(found, knn.search(store, queries, k, "faiss"), queries, store)
    assert (found[0][:20, 0] > 1 - 2e-6).all() and found[0].max() <= 1


@GPU_ENGINES
def test_shards_of_half_precision_rows_left_out_and_a_center(engine, tmp_path):
    half = near_duplicates(4000, 256).astype(np.float16)
    np.save(tmp_path / "shard.npy", half[:2500])
    shards = [np.load(tmp_path / "shard.npy", mmap_mode="r"), half[2500:]]
    rows = np.random.default_rng(1).random(4000) < 0.5
    center = l2_normalize(half.astype(np.float32)).mean(axis=0)
    queries = near_duplicates(300, 256)
    moved = l2_normalize(l2_normalize(half.astype(np.float32)) - center)
    found = knn.search(shards, queries, 30, engine, rows=rows, center=center, store_rows=600)
    expected = knn.search(shards, queries, 30, "faiss", rows=rows, center=center)
    same_lists(found, expected, queries, moved)
    assert rows[found[1]].all()


@GPU_ENGINES
def test_rows_pass_the_staging_buffers_many_times(engine, monkeypatch):
    store = near_duplicates(9000, 256)
    queries = near_duplicates(200, 256)
    monkeypatch.setattr(gpu, "STAGING_BYTES", 100_000)
    found = knn.search(store, queries, 30, engine, store_rows=2500)
    same_lists(found, knn.search(store, queries, 30, "faiss"), queries, store)


def test_float16_scores_on_this_gpu_stay_within_the_margin():
    """The bound's worst assumption is the device's own summation: many terms of one sign."""
    rng = np.random.default_rng(2)
    for dim in (384, 768, 1024):
        store = l2_normalize((rng.random((4000, dim)) + 0.1).astype(np.float32))
        queries = l2_normalize((rng.random((200, dim)) + 0.1).astype(np.float32))
        found = knn.search(store, queries, 20, "cuvs")  # raises beyond the margin
        same_lists(found, knn.search(store, queries, 20, "faiss"), queries, store)


@GPU_ENGINES
def test_a_row_that_is_not_a_unit_row_is_named_on_the_device_too(engine):
    store = near_duplicates(100, 16)
    store[41] *= 2
    with pytest.raises(ValueError, match="row 41 has length 2"):
        knn.search(store, store[:5], 3, engine, store_rows=30)


@GPU_ENGINES
def test_a_worker_for_each_gpu_gives_what_one_process_gives(engine):
    store = near_duplicates(2000, 64)
    queries = near_duplicates(100, 64)
    with dask_workers.connect("local") as client:
        assert len(client.nthreads()) == torch.cuda.device_count()
        found = knn.search(store, queries, 10, engine, cluster=client, store_rows=300)
    same_lists(found, knn.search(store, queries, 10, "faiss"), queries, store)


# --- the cosine pass ---


@pytest.mark.parametrize("precision", ["auto", "float32", "tf32"])
@pytest.mark.parametrize(
    "options",
    [{}, {"keep_one": False}, {"scope": np.arange(6000) % 3, "eligible": np.arange(6000) % 7 > 0}],
)
def test_the_pass_on_a_gpu_gives_what_it_gives_on_the_cpu(precision, options):
    x = near_duplicates(6000, 384)
    on_cpu, on_gpu = (
        similarity.scan_pairs(
            x, 0.85, curve=filters.CURVE, link=0.7, device=device, precision=chosen, **options
        )
        for device, chosen in (("cpu", "float32"), ("cuda", precision))
    )
    for name in ("keeper", "similarity", "stays", "kept"):
        np.testing.assert_array_equal(getattr(on_gpu, name), getattr(on_cpu, name), err_msg=name)
    for level in on_cpu.forest.levels:
        np.testing.assert_array_equal(
            on_gpu.forest.components(level), on_cpu.forest.components(level)
        )
    taken = similarity.choose_precision(torch.device("cuda")) if precision == "auto" else precision
    assert np.abs(on_gpu.nearest - on_cpu.nearest).max() <= similarity.margin(384, taken)


def test_nearest_rows_on_a_gpu_are_those_on_the_cpu():
    x = near_duplicates(3000, 384)
    others = near_duplicates(2000, 384)
    for on_gpu, on_cpu in zip(
        *(similarity.nearest_in(x, others, device=device) for device in ("cuda", "cpu")),
        strict=True,
    ):
        np.testing.assert_array_equal(on_gpu, on_cpu)
    across = [
        similarity.nearest_across(x, np.arange(3000) % 5, device=device)
        for device in ("cuda", "cpu")
    ]
    np.testing.assert_allclose(*across, atol=2e-6)


# --- cuDF ---


def test_cudf_and_polars_write_the_same_text_store(tmp_path, rng):
    odd = [
        "",
        " ",
        "ab",
        "a\tb\nc",
        "  A  Cat   on a mat ",
        "a cat on a mat",
        "\uff21 \uff43\uff41\uff54 on a mat",
        "\u00df",
        "\ufb01ve \ufb01ne \ufb01sh",
        "five fine fish",
        "\u0130stanbul at night",
        "STRASSE stra\u00dfe x",
        "x" * 300,
        "a\u00a0cat\u2003on a mat",
        "a\x1cb\x1dc",
        "e\u0301t\u00e9 en ville",
        "\U0001f98a in the snow",
        "a b c\x85",
        "a\x0bb\x0cc d",
        "\x00 a b",
        "three of. them",
        "a 'quoted' \"prompt\" here",
        "\u039f\u03a3 \u03bf\u03c2 x",
    ]
    words = np.array(
        ["red", "green", "blue", "cat", "dog", "house", "tree", "on", "in", "by", "the", "a"]
    )
    many = [
        " ".join(words[rng.integers(len(words), size=n)]) for n in rng.integers(1, 9, size=5000)
    ]
    batches = [
        pl.DataFrame({"prompt": part}).with_columns(source=pl.lit("list"))
        for part in (odd + many[:3000], many[3000:] + odd)
    ]
    limits = {"min_words": 3, "max_characters": 200, "exclude": pl.Series(["A cat  on a mat"])}
    tallies = [
        text_pool.write_text_pool(batches, tmp_path / f"{engine}.parquet", engine=engine, **limits)
        for engine in ("cudf", "polars")
    ]
    assert tallies[0] == tallies[1] and tallies[0]["training prompt"] > 0
    assert pl.read_parquet(tmp_path / "cudf.parquet").equals(
        pl.read_parquet(tmp_path / "polars.parquet")
    )


# --- towers, training, new images ---


def test_embeddings_of_both_kinds_are_near_those_of_the_cpu(tmp_path, rng):
    name = toy_training.write_clip(tmp_path / "clip")
    pixels = rng.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    texts = [f"an image of {n} things" for n in range(40)]
    on_gpu, on_cpu = (encoder.load(name, device=device) for device in ("cuda", "cpu"))
    assert (
        cosines(encoder.embed_images(on_gpu, pixels), encoder.embed_images(on_cpu, pixels)).min()
        > 0.999
    )
    assert (
        cosines(encoder.embed_texts(on_gpu, texts), encoder.embed_texts(on_cpu, texts)).min()
        > 0.999
    )
    assert (
        cosines(prompts.encode(texts, device="cuda"), prompts.encode(texts, device="cpu")).min()
        > 0.9999
    )


@pytest.mark.parametrize(
    "change", [{}, {"trainable_blocks": -1}, {"compile_tower": True, "trainable_blocks": -1}]
)
def test_a_model_trained_on_a_gpu_predicts_alike_on_the_cpu(tmp_path, change):
    name = toy_training.write_clip(tmp_path / "clip")
    clip = encoder.load(name, device="cuda")
    data = toy_training.data_for(clip)
    rows = np.arange(40)
    scored = np.arange(40, 60)
    recipe = small_recipe(epochs=4, batch_size=16, **change)
    folds.train_fold(
        clip, data, data, rows=rows, scored=scored, recipe=recipe, seed=0, base=tmp_path / "fold"
    )
    trained = [
        folds.load_fold(tmp_path / "fold", encoder.load(name, device=device))
        for device in ("cuda", "cpu")
    ]
    assert next(trained[0].tower.parameters()).is_cuda
    on_gpu, on_cpu = (
        fit.predict_pixels(fitted, encoder.load(name, device=device), data.pixels)
        for fitted, device in zip(trained, ("cuda", "cpu"), strict=True)
    )
    assert cosines(on_gpu, on_cpu).min() > 0.999


def test_new_images_get_the_same_embeddings_and_prompts_on_a_gpu(tmp_path):
    folder = trained_output.write_output(tmp_path)
    images = sorted((folder / "test").glob("*.png"))
    on_gpu, on_cpu = (
        Predictor(folder / "output", device=device, engine=engine)(images)
        for device, engine in (("cuda", "cuml"), ("cpu", "faiss"))
    )
    close = cosines(on_gpu.embedding, on_cpu.embedding)
    same = np.array(
        [set(gpu) == set(cpu) for gpu, cpu in zip(on_gpu.prompts, on_cpu.prompts, strict=True)]
    )
    assert (
        same.mean() > 0.5 and close[same].min() > 0.999
    )  # bf16 may exchange the last of two neighbors as near as each other
    assert close.min() > 0.99 and all(
        first[0] in names for first, names in zip(on_gpu.prompts, on_cpu.prompts, strict=True)
    )


def test_k_and_weights_tuned_there_are_those_of_the_cpu():
    rng = np.random.default_rng(5)
    values = l2_normalize(rng.standard_normal((900, 384), dtype=np.float32))
    similarity = -np.sort(-rng.uniform(0.1, 0.9, (300, 60)), axis=1).astype(np.float32)
    index = np.stack([rng.permutation(900)[:60] for _ in range(300)])
    truth = l2_normalize(values[index[:, :5]].mean(axis=1))
    every = [weighting.Weighting(dim=d) for d in (2, 8, 48)] + [weighting.Weighting(tau=0.05)]
    grids = {"k_grid": [5, 20, 60], "weightings": every}
    fold = np.arange(300) % 3
    on_cpu, on_gpu = (
        weighting.tune(similarity, index, values.__getitem__, truth, fold, **grids, device=device)
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(on_gpu.grid["avg_cos"], on_cpu.grid["avg_cos"], atol=1e-5)
    assert (on_gpu.k, on_gpu.weighting) == (on_cpu.k, on_cpu.weighting)
    np.testing.assert_allclose(on_gpu.prediction, on_cpu.prediction, atol=1e-5)
