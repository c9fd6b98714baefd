"""The data filters: exact on a toy of named rows, and blocked equals naive."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from src.data.normalize import normalize_prompts
from src.dedup import filters, similarity
from src.model_b import text_pool
from src.paths import ROOT


def rows_at(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def clustered(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n // 3, 16))[rng.integers(n // 3, size=n)] + 0.3 * rng.standard_normal(
        (n, 16)
    )
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def naive_filter(x: np.ndarray, threshold: float) -> np.ndarray:
    kept, keeper = [], []
    for i in range(len(x)):
        near = [(float(x[i] @ x[j]), j) for j in kept if x[i] @ x[j] > threshold]
        keeper.append(max(near)[1] if near else i)
        kept += [] if near else [i]
    return np.array(keeper)


def test_filter_keeps_one_of_a_cluster_and_names_the_keeper():
    # 0 and 20 degrees are near (cos .94), 40 is near 20 but not 0, so it stays once 20 is gone
    keeper, similarity = filters.cosine_filter(rows_at(0, 20, 40, 180), 0.85)
    assert keeper.tolist() == [0, 0, 2, 3]
    assert similarity == pytest.approx([1, np.cos(np.deg2rad(20)), 1, 1], abs=1e-6)


@pytest.mark.parametrize("block", [17, 64, 1000])
def test_filter_is_the_same_for_every_block_size(block):
    x = clustered(300)
    keeper, similarity = filters.cosine_filter(x, 0.85, block=block)
    assert (keeper == naive_filter(x, 0.85)).all()
    removed = np.flatnonzero(keeper != np.arange(len(x)))
    assert len(removed) > 50
    assert (keeper[keeper[removed]] == keeper[removed]).all()
    assert np.einsum("nd,nd->n", x[removed], x[keeper[removed]]) == pytest.approx(
        similarity[removed], abs=1e-6
    )
    kept = x[keeper == np.arange(len(x))]
    assert (kept @ kept.T - 2 * np.eye(len(kept))).max() <= 0.85


def test_rules_give_each_prompt_its_first_reason():
    prompts = pl.Series(
        ["a red fox", "A  red FOX ", "fox", " ", "a very long prompt about a fox", "a ｒed fox"]
    )
    reason = filters.rules(
        prompts,
        min_words=2,
        max_tokens=10,
        edge_characters=0,
        n_tokens=np.array([5, 5, 3, 2, 99, 5]),
    )
    assert reason.to_list() == [
        None,
        "exact duplicate",
        "fewer than 2 words",
        "empty",
        "more than 10 tokens",
        "exact duplicate",
    ]


def test_rules_let_pass_what_is_just_at_a_limit():
    prompts = pl.Series(["a fox", "two owls", "fox"])
    reason = filters.rules(
        prompts, min_words=2, max_tokens=7, edge_characters=0, n_tokens=np.array([7, 8, 1])
    )
    assert reason.to_list() == [None, "more than 7 tokens", "fewer than 2 words"]
    with pytest.raises(ValueError, match="3 prompts, 2 token counts"):
        filters.rules(
            prompts, min_words=2, max_tokens=7, edge_characters=0, n_tokens=np.array([7, 8])
        )


def test_a_missing_prompt_stays_missing_when_normalised():
    assert normalize_prompts(pl.Series(["ÉCOLE", None, "A  Fox "])).to_list() == [
        "école",
        None,
        "a fox",
    ]


def test_rules_can_drop_equal_openings_as_the_public_recipe_does():
    prompts = pl.Series(
        ["a painting of a fox, oil", "a painting of a cat, ink", "one dog in the rain, oil"]
    )
    tokens = np.full(3, 5)
    assert (
        filters.rules(
            prompts, min_words=1, max_tokens=9, edge_characters=0, n_tokens=tokens
        ).null_count()
        == 3
    )
    reasons = filters.rules(
        prompts, min_words=1, max_tokens=9, edge_characters=5, n_tokens=tokens
    ).to_list()
    assert reasons == [None, "opening seen before", "ending seen before"]


def test_the_curve_is_drawn_at_44_thresholds():
    assert filters.CURVE.tolist() == [round(0.55 + 0.01 * i, 2) for i in range(44)]


def test_the_longest_or_the_most_imaged_prompt_of_a_cluster_stays():
    prompts = pl.Series(["a fox", "a very red fox", "A  fox", "an owl"])
    assert filters.walk_order(prompts).tolist() == [0, 1, 2, 3]
    assert filters.walk_order(prompts, "longest").tolist() == [1, 2, 3, 0]
    assert filters.walk_order(prompts, "most_images").tolist() == [0, 2, 1, 3]
    found = similarity.scan_pairs(
        rows_at(0, 1, 2, 90), 0.85, order=filters.walk_order(prompts, "longest")
    )
    assert found.keeper.tolist() == [1, 1, 1, 3]
    with pytest.raises(ValueError, match="first, longest, most_images, got 'last'"):
        filters.walk_order(prompts, "last")


def test_one_row_of_a_cluster_stays_or_none():
    assert filters.keeps_one("one") is True and filters.keeps_one("none") is False
    with pytest.raises(ValueError, match="cosine_keep must be one or none, got 'first'"):
        filters.keeps_one("first")


def test_rules_within_a_source():
    prompts, scope = pl.Series(["a red fox"] * 3), pl.Series(["a", "b", "a"])
    reason = filters.rules(
        prompts, min_words=1, max_tokens=9, edge_characters=0, n_tokens=np.full(3, 5), scope=scope
    )
    assert reason.to_list() == [None, None, "exact duplicate"]


ODD = [
    "A  red\tFOX ",
    "a ｒed fox",
    "ÉCOLE  d'été",
    "赤い狐が 眠る",
    "",
    " ",
    "fox",
    "a b c",
    "x " * 50,
    "a red fox",
]
CONTROL = [
    "a\x1cb\x1dc d",
    "\x00 a b c\x1f",
    "\x0ba\x0cb\rc\n",
]  # libraries differ in which of these are white space


def test_the_rules_of_the_text_store_are_the_same_on_every_frame_library():
    import narwhals as nw

    frame = pl.DataFrame({"prompt": ODD + CONTROL})
    answers = [
        nw.from_native(text_pool.judge_prompts(native, min_words=3, max_characters=40))
        for native in (frame, frame.to_pandas(), frame.to_arrow())
    ]
    texts, reasons = (
        [answer[column].to_list() for answer in answers] for column in ("text", "reason")
    )
    assert texts[0] == texts[1] == texts[2]
    assert texts[0][:4] == ["a red fox", "a red fox", "école d'été", "赤い狐が 眠る"]
    plain = [[None if r != r else r for r in reason] for reason in reasons]  # pandas writes NaN
    assert plain[0] == plain[1] == plain[2]
    short, long = "fewer than 3 words", "more than 40 characters"
    assert plain[0] == [
        None,
        None,
        short,
        short,
        "empty",
        "empty",
        short,
        None,
        long,
        None,
        short,
        None,
        None,
    ]
    assert texts[0][-3:] == ["a\x1cb\x1dc d", "\x00 a b c\x1f", "a b c"]


def test_a_text_store_keeps_the_first_of_equal_prompts_across_batches(tmp_path):
    batches = [
        pl.DataFrame({"prompt": ODD[i : i + 3], "source": "list"}) for i in range(0, len(ODD), 3)
    ]
    tally = text_pool.write_text_pool(
        batches,
        tmp_path / "store.parquet",
        min_words=3,
        max_characters=40,
        exclude=pl.Series(["A B C"]),
        engine="polars",
    )
    store = pl.read_parquet(tmp_path / "store.parquet").sort("row")
    assert store.rows() == [(0, "A  red\tFOX ", "list")]
    assert tally == {
        "exact duplicate": 2,
        "empty": 2,
        "fewer than 3 words": 3,
        "more than 40 characters": 1,
        "training prompt": 1,
        "kept": 1,
    }
    assert [f.name for f in tmp_path.iterdir()] == ["store.parquet"]
    with pytest.raises(ValueError, match="auto, polars or cudf, got 'spark'"):
        text_pool.frame_engine("spark")


def test_a_text_store_numbers_its_rows_over_all_batches(tmp_path):
    texts = [f"the prompt number {i}" for i in range(300)]
    batches = [
        pl.DataFrame({"source": f"list {i}", "prompt": texts[i : i + 100]})
        for i in range(0, 300, 100)
    ]
    tally = text_pool.write_text_pool(
        batches, tmp_path / "new" / "store" / "all.parquet", engine="polars"
    )
    store = pl.read_parquet(tmp_path / "new" / "store" / "all.parquet")
    assert store.sort("row").rows() == [
        (i, text, f"list {i // 100 * 100}") for i, text in enumerate(texts)
    ]
    assert tally["kept"] == tally.total() == 300


def test_a_text_store_is_made_distinct_in_64_parts(tmp_path):
    batches = [
        pl.DataFrame({"prompt": [f"the prompt number {i}" for i in range(1000)], "source": "list"})
    ]
    text_pool._partition_usable(batches, tmp_path, "polars", min_words=3, max_characters=99)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        f"{part:03}.parquet" for part in range(64)
    ]


def test_a_text_store_takes_three_words_to_two_thousand_characters(tmp_path):
    texts = ["a fox", "a red fox", "a red " + "x" * 1994, "a red " + "x" * 1995]
    tally = text_pool.write_text_pool(
        [pl.DataFrame({"prompt": texts, "source": "list"})], tmp_path / "store.parquet"
    )
    assert pl.read_parquet(tmp_path / "store.parquet")["prompt"].sort().to_list() == texts[1:3]
    assert tally["fewer than 3 words"] == tally["more than 2000 characters"] == 1


def test_frames_are_cudf_s_only_on_a_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)  # it is not installed
    assert (text_pool.frame_engine(), text_pool.frame_engine("polars")) == ("polars", "polars")
    with pytest.raises(ValueError, match="no GPU is usable; use auto or polars"):
        text_pool.frame_engine("cudf")
    for usable, engine in ((False, "polars"), (True, "cudf")):
        monkeypatch.setitem(
            sys.modules,
            "cupy",
            SimpleNamespace(cuda=SimpleNamespace(is_available=lambda usable=usable: usable)),
        )
        assert (text_pool.frame_engine("auto"), text_pool.frame_engine("polars")) == (
            engine,
            "polars",
        )
    assert text_pool.frame_engine("cudf") == "cudf"


MILLION = """
import resource, sys
import polars as pl
from src.data import sources
from src.model_b import text_pool
tally = text_pool.write_text_pool(sources.text_batches(sys.argv[1]), __import__("pathlib").Path(sys.argv[2]), engine="polars")
print(tally["kept"], tally["exact duplicate"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_a_million_prompts_pass_the_rules_within_2_gb(tmp_path):
    with open(tmp_path / "prompts.txt", "w", encoding="utf-8") as stream:
        for n in range(1_000_000):
            stream.write(
                f"a highly detailed painting of the {n % 900_000}th fox, in the style of an old master, oil on canvas\n"
            )
    run = subprocess.run(
        [sys.executable, "-c", MILLION, tmp_path / "prompts.txt", tmp_path / "store.parquet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    kept, duplicates, peak = map(int, run.stdout.split())
    assert (kept, duplicates) == (900_000, 100_000)
    assert peak < 2048, f"{peak} MiB"
