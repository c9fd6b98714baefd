"""Text-only prompts for Model B: the rules on every frame library, and distinct prompts."""

import subprocess
import sys
from types import SimpleNamespace

import polars as pl
import pytest

from src.model_b import text_pool
from src.paths import ROOT

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
    short = "fewer than 3 words"
    long = "more than 40 characters"
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


# VmHWM is this process's own peak; getrusage would count what its parent held when it started
MILLION = """
import sys
from pathlib import Path
from src.data import sources
from src.model_b import text_pool
counts = text_pool.write_text_pool(
    sources.text_batches(sys.argv[1]), Path(sys.argv[2]), engine="polars"
)
status = Path("/proc/self/status").read_text()
peak = int(status.partition("VmHWM:")[2].split()[0]) // 1024
print(counts["kept"], counts["exact duplicate"], peak)
"""


def test_a_million_prompts_pass_the_rules_within_2_gb(tmp_path):
    with open(tmp_path / "prompts.txt", "w", encoding="utf-8") as stream:
        for n in range(1_000_000):
            subject = f"a highly detailed painting of the {n % 900_000}th fox"
            stream.write(f"{subject}, in the style of an old master, oil on canvas\n")
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
