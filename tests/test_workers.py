"""Decoding and encoding on Dask workers: the same files as on one machine."""

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from src import dask_workers, encoder, paths
from src.data import images, prompts
from src.model_a import training_set
from src.model_b import datastore, inputs
from tests.helpers import tiny_clip
from tests.helpers.recipes import small_recipe

GEOMETRY = images.ImagePreprocess(32)


@pytest.fixture(scope="module")
def scheduler():
    """The address of a scheduler with two workers, as on two machines."""
    from distributed import LocalCluster

    two = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**two) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def one_thread():
    """As a worker computes: sums in another order differ in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def image_table(folder):
    """150 images, every tenth like one before it, and two that cannot be read."""
    rng = np.random.default_rng(0)
    paths = []
    for n in range(150):
        path = folder / f"{n:03d}.png"
        if n % 10 == 9:
            path.write_bytes(paths[n - 5].read_bytes())
        else:
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
        paths.append(path)
    paths[20].write_bytes(b"no image")
    paths[99].write_bytes(paths[99].read_bytes()[:100])
    names = [str(path) for path in paths]
    return pl.DataFrame({"id": [f"id{n}" for n in range(150)], "image": names})


def test_workers_decode_the_same_cache(tmp_path, scheduler, one_thread):
    table = image_table(tmp_path)
    caches = []
    for name, cluster in (("alone", None), ("workers", scheduler)):
        folder = tmp_path / name
        pixels, bad = images.cache(table, folder, geometry=GEOMETRY, name="x", cluster=cluster)
        file = next(folder.glob("*.u8"))
        caches.append((pixels, bad, file.read_bytes()))

    (alone, bad_alone, bytes_alone), (workers, bad_workers, bytes_workers) = caches
    assert len(alone.ids) == 148 and len(bytes_alone) == 3 * 32 * 32 * 134
    assert bytes_workers == bytes_alone
    assert (workers.ids, workers.key) == (alone.ids, alone.key)
    assert bad_workers.equals(bad_alone)


def test_workers_decode_for_further_clips(tmp_path, scheduler, one_thread, monkeypatch):
    """Notebooks 02 and 03: the images of a second CLIP of another size are Dask tasks too."""
    tiny_clip.write_clip(tmp_path / "clip")
    name = f"local-dir:{tmp_path / 'clip'}"
    clips = [encoder.load(clip, device="cpu") for clip in (name, f"{name}@96")]
    table = image_table(tmp_path)[:20]
    size = clips[1].geometry.size
    assert size != clips[0].geometry.size

    sent = []
    real = dask_workers.results

    def counted(function, tasks, **options):
        sent.append(function)
        return real(function, tasks, **options)

    monkeypatch.setattr(dask_workers, "results", counted)
    decoded = {}
    for kind, cluster in (("alone", None), ("workers", scheduler)):
        for notebook in ("02", "03"):
            out = tmp_path / kind / notebook
            cache = out / paths.CACHE
            if notebook == "02":
                recipe = small_recipe(trainable_blocks=0)
                for clip in clips:
                    training_set.prediction_set(
                        clip, table, out, name="test.x", recipe=recipe, cluster=cluster
                    )
            else:
                inputs.image_embeddings(clips, table, cache, name="test", cluster=cluster)
            files = sorted(cache.glob("pixels_*.u8")) + sorted(cache.glob("*.npy"))
            decoded[kind, notebook] = {file.name: file.read_bytes() for file in files}

    # for each notebook both sizes, and none of them in this process
    assert sent == [images.attempt_all] * 4
    for notebook in ("02", "03"):
        alone = decoded["alone", notebook]
        # two geometries, and the embeddings of both CLIPs in 03
        assert len([file for file in alone if file.endswith(".u8")]) == 2
        assert any(len(content) == 18 * 3 * size**2 for content in alone.values())
        assert decoded["workers", notebook] == alone


def test_workers_encode_the_same_datastore(tmp_path, scheduler, one_thread):
    tiny_clip.write_clip(tmp_path / "clip")
    clip = encoder.load(f"local-dir:{tmp_path / 'clip'}", device="cpu")
    encoders = inputs.column_encoders([clip], prompts.EMBEDDED, device="cpu")
    texts = [f"a fox and {n} owls, {'oil on canvas, ' * (n % 7)}at night" for n in range(50)]

    stores = []
    for name, cluster in (("alone", None), ("workers", scheduler)):
        empty = datastore.open_datastore(
            tmp_path / name, dtype="float16", sentence_model=prompts.EMBEDDED
        )
        values = {datastore.VALUES: encoders[datastore.VALUES]}
        stored = datastore.add(empty, texts[:20], values, shard_rows=8, cluster=cluster)
        stores.append(datastore.add(stored, texts, encoders, shard_rows=8, cluster=cluster))

    alone, workers = stores
    assert [shard["rows"] for shard in alone.shards] == [8, 8, 4, 8, 8, 8, 6]
    assert workers.shards == alone.shards
    names = sorted(file.name for file in alone.folder.iterdir())
    assert names == sorted(file.name for file in workers.folder.iterdir())
    assert len(names) == 7 * 3 + 1  # prompts, keys and values of each shard, and the index
    for name in names:
        if name.endswith(".npy"):
            assert (workers.folder / name).read_bytes() == (alone.folder / name).read_bytes()
    assert workers.prompts().equals(alone.prompts())


def square(n, plus):
    if n == 7:
        raise ValueError("seven")
    return n * n + plus


def test_results_come_in_order_and_an_error_reaches_the_caller(scheduler):
    for cluster in (None, scheduler):
        tasks = ({"n": n} for n in range(30))
        results = dask_workers.results(square, tasks, shared={"plus": 1}, cluster=cluster)
        assert [next(results) for _ in range(7)] == [n * n + 1 for n in range(7)]
        with pytest.raises(ValueError, match="seven"):
            next(results)
