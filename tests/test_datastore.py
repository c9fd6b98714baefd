"""The datastore: rows appended in shards, read back in order, and searched as a run needs them."""

import numpy as np
import pytest

from src import knn
from src.metrics import l2_normalize
from src.model_b import datastore

WORDS = ["fox", "owl", "boat", "lantern", "mountain", "river", "cat"]


class Encoder:
    """Gives each text a direction of its own, and keeps what it was asked for."""

    def __init__(self, width, seed):
        self.width = width
        self.seed = seed
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        return l2_normalize(np.stack([self.of(text) for text in texts]))

    def of(self, text):
        return (
            np.random.default_rng([self.seed, *text.encode()])
            .standard_normal(self.width)
            .astype(np.float32)
        )


def filled(folder, texts=WORDS, dtype="float16", **more):
    encoders = {"values": Encoder(6, 1), "clip": Encoder(4, 2), **more}
    empty = datastore.open_datastore(folder, dtype=dtype, sentence_model="toy")
    return datastore.add(empty, texts, encoders, shard_rows=3), encoders


@pytest.mark.parametrize("dtype", datastore.DTYPES)
def test_rows_keys_and_values_stay_together(tmp_path, dtype):
    store, encoders = filled(tmp_path, [*WORDS, "fox"], dtype)
    assert store.prompts()["prompt"].to_list() == WORDS and [
        len(x) for x in store.column("clip")
    ] == [
        3,
        3,
        1,
    ]
    assert {x.dtype.name for x in store.column("values")} == {dtype}
    rows = datastore.rows_of_prompts(store, ["boat", "cat", "fox"])
    for name, encoder in encoders.items():
        expected = l2_normalize(np.stack([encoder.of(t) for t in ("boat", "cat", "fox")]))
        np.testing.assert_allclose(
            datastore.take(store.column(name), rows),
            expected,
            atol=2e-3 if dtype == "float16" else 1e-6,
        )


def test_rows_are_those_of_the_prompts_in_the_order_asked(tmp_path):
    store, _ = filled(tmp_path)
    rows = datastore.rows_of_prompts(store, ["cat", "fox", "cat", "boat"])
    assert rows.tolist() == [6, 0, 6, 2] and rows.dtype == np.int64
    assert datastore.rows_of_prompts(store, []).shape == (0,)
    with pytest.raises(KeyError, match="2 prompts are not in the datastore, e.g. 'dog'"):
        datastore.rows_of_prompts(store, ["fox", "dog", "cow"])


def test_what_is_there_is_not_encoded_again(tmp_path):
    filled(tmp_path, WORDS[:4])
    store, encoders = filled(tmp_path)
    assert encoders["values"].asked == encoders["clip"].asked == WORDS[4:]
    assert (
        store.prompts()["prompt"].to_list()
        == WORDS
        == datastore.open_datastore(tmp_path).prompts()["prompt"].to_list()
    )
    assert filled(tmp_path)[1]["clip"].asked == []


def test_another_clip_gets_keys_for_all_rows_and_touches_no_other(tmp_path):
    filled(tmp_path, WORDS[:4])
    store, encoders = filled(tmp_path, second=Encoder(5, 3))
    assert encoders["second"].asked == WORDS and encoders["clip"].asked == WORDS[4:]
    assert sum(map(len, store.column("second"))) == len(store) == 7


def test_a_shard_that_was_not_finished_is_written_again(tmp_path):
    class Dies(Encoder):
        def __call__(self, texts):
            if "river" in texts:
                raise KeyboardInterrupt
            return super().__call__(texts)

    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path, clip=Dies(4, 2))
    assert datastore.open_datastore(tmp_path).prompts()["prompt"].to_list() == WORDS[:3]
    store, encoders = filled(tmp_path)
    assert encoders["clip"].asked == WORDS[3:] and store.prompts()["prompt"].to_list() == WORDS


def test_precomputed_shards_are_searched_where_they_lie(tmp_path):
    store, encoders = filled(tmp_path / "store")
    draw = np.random.default_rng(0)
    keys, values = (
        l2_normalize(draw.standard_normal((20, d)).astype(np.float32)).astype(np.float16)
        for d in (4, 6)
    )
    pairs = []
    for n in range(2):
        files = tmp_path / f"keys{n}.npy", tmp_path / f"values{n}.npy"
        for file, x in zip(files, (keys, values), strict=True):
            np.save(file, x[10 * n : 10 * n + 10])
        pairs.append(files)
    for _ in range(2):  # the second time nothing is added
        store = datastore.add_precomputed(store, pairs, clip="clip")
    rows = datastore.precomputed_prompts(store, pairs)
    assert (
        len(store) == 27
        and rows["row"].to_list() == list(range(7, 27))
        and rows["prompt"].null_count() == 20
    )
    assert rows["id"].n_unique() == 20 and rows["id"][11] == "values1/00004/1"
    chosen = datastore.ColumnView(
        store.column("clip"), np.concatenate([[6, 0], rows["row"].to_numpy()])
    )
    queries = l2_normalize(keys[:3].astype(np.float32))
    similarity, index = chosen.search(queries, 1, "faiss")
    assert index[:, 0].tolist() == [2, 3, 4] and similarity.min() > 0.999
    with pytest.raises(ValueError, match="came without its text: second cannot be encoded"):
        filled(tmp_path / "store", second=Encoder(5, 3))


def test_a_selection_searches_its_rows_alone_in_its_own_order(tmp_path):
    draw = np.random.default_rng(0)
    x = l2_normalize(draw.standard_normal((50, 8)).astype(np.float32))
    place = draw.permutation(50)[:30]
    seen = draw.random(30) < 0.6
    found = datastore.ColumnView([x[:20], x[20:]], place).search(x[:9], 5, "faiss", visible=seen)
    expected = knn.search(x[place], x[:9], 5, "faiss", rows=seen)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)


def test_refuses(tmp_path):
    with pytest.raises(ValueError, match="dtype 'int8' is not one of"):
        datastore.open_datastore(tmp_path, dtype="int8", sentence_model="toy")
    with pytest.raises(FileNotFoundError):
        datastore.open_datastore(tmp_path)
    store, _ = filled(tmp_path / "store")
    with pytest.raises(ValueError, match="was started with dtype float16, float32 is asked for"):
        datastore.open_datastore(tmp_path / "store", dtype="float32", sentence_model="toy")
    with pytest.raises(ValueError, match=r"rows 0\.\.7 are not within the 7 of the datastore"):
        datastore.take(store.column("clip"), np.array([0, 7]))
    np.save(tmp_path / "k.npy", np.zeros((3, 4), np.float16))
    np.save(tmp_path / "v.npy", np.zeros((2, 6), np.float16))
    with pytest.raises(ValueError, match="not row-aligned 2-D shards"):
        datastore.add_precomputed(store, [(tmp_path / "k.npy", tmp_path / "v.npy")], clip="clip")
    with pytest.raises(ValueError, match="3 rows wanted, got"):
        filled(tmp_path / "other", clip=lambda texts: np.zeros((2, 4)))
