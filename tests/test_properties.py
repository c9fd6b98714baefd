"""What must hold for any input: hypothesis looks for one that breaks it."""

import csv
import io
import json
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from src.data import sources
from src.data.normalize import normalize_prompts
from src.dedup import filters, folds, similarity
from src.metrics import l2_normalize
from src.submit import submission

SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
TEXT = st.text(max_size=40)  # any character but halves of surrogate pairs
JSON_TEXT = st.text(st.characters(codec=None), max_size=40)  # those too: JSON can spell them out
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | JSON_TEXT,
    lambda v: st.lists(v, max_size=3) | st.dictionaries(JSON_TEXT, v),
)


@pytest.fixture(scope="module")
def folder():
    """One folder for all examples: names without an image are rejected, their texts still seen."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def expected(text: str) -> str:
    return text.replace("\0", "")


def assert_rows(folder: Path, texts: list[str]) -> None:
    """Every text came back once, in order: kept, or rejected as blank, and nothing besides."""
    pairs, rejected = sources.read_pairs(folder)
    kept = [expected(text) for text in texts if not sources.blank(pl.Series([expected(text)]))[0]]
    assert pairs["prompt"].to_list() == kept
    assert rejected["reason"].to_list() == ["empty prompt"] * (len(texts) - len(kept))
    assert sources.reason_counts(rejected)["rows"].sum() + len(pairs) == len(texts)


def replaced(folder: Path, name: str, content: bytes) -> Path:
    for file in folder.iterdir():
        file.unlink()
    (folder / name).write_bytes(content)
    return folder


def names(n: int) -> list[str]:
    return [f"{i}.png" for i in range(n)]


def with_images(folder: Path, n: int) -> None:
    for name in names(n):
        (folder / name).touch()


@SETTINGS
@given(
    texts=st.lists(TEXT, min_size=1, max_size=8),
    delimiter=st.sampled_from([",", "\t"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_any_text_in_a_csv_comes_back_or_is_rejected(folder, texts, delimiter, quoting):
    stream = io.StringIO(newline="")
    texts = [text.replace("\0", "") for text in texts]  # the writer's own limit
    rows = [(name, text) for name, text in zip(names(len(texts)), texts, strict=True)]
    csv.writer(stream, delimiter=delimiter, quoting=quoting).writerows(
        [("file_name", "prompt"), *rows]
    )
    replaced(folder, "table.csv" if delimiter == "," else "table.tsv", stream.getvalue().encode())
    with_images(folder, len(texts))
    assert_rows(folder, texts)


@SETTINGS
@given(texts=st.lists(JSON_TEXT, min_size=1, max_size=8), ascii_only=st.booleans())
def test_any_text_in_json_lines_comes_back_or_is_rejected(folder, texts, ascii_only):
    lines = [
        json.dumps({"file_name": name, "prompt": text}, ensure_ascii=ascii_only)
        for name, text in zip(names(len(texts)), texts, strict=True)
    ]
    replaced(folder, "metadata.jsonl", "\n".join(lines).encode("utf-8", "surrogatepass"))
    with_images(folder, len(texts))
    pairs, rejected = sources.read_pairs(folder)
    assert len(pairs) + len(rejected) == len(texts)
    if not any("\ud800" <= c <= "\udfff" for text in texts for c in text):
        assert_rows(folder, texts)


@SETTINGS
@given(texts=st.lists(TEXT, min_size=1, max_size=8))
def test_any_text_in_parquet_or_a_shard_comes_back_or_is_rejected(folder, texts):
    replaced(folder, "x", b"").joinpath("x").unlink()
    pl.DataFrame({"file_name": names(len(texts)), "prompt": texts}).write_parquet(
        folder / "metadata.parquet"
    )
    with_images(folder, len(texts))
    assert_rows(folder, texts)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, text in zip(names(len(texts)), texts, strict=True):
            for member, content in ((name, b"x"), (name[:-3] + "txt", text.encode())):
                header = tarfile.TarInfo(member)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    assert_rows(replaced(folder, "0.tar", stream.getvalue()), texts)


@SETTINGS
@given(
    rows=st.lists(
        st.dictionaries(
            st.sampled_from(["file_name", "image", "prompt", "text", "x", "\ud800"]), VALUES
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_json_values_are_counted_or_the_table_is_refused(folder, rows):
    replaced(folder, "metadata.jsonl", "\n".join(map(json.dumps, rows)).encode())
    try:
        pairs, rejected = sources.read_pairs(folder)
    except ValueError as error:
        assert "metadata.jsonl" in str(error)
    else:
        column = next((name for name in ("prompt", "text") if any(name in r for r in rows)), None)
        captions = [row.get(column) for row in rows]
        wanted = sum(len(c) if isinstance(c, list) and c else 1 for c in captions)
        assert len(pairs) + len(rejected) == wanted and rejected["reason"].null_count() == 0


@SETTINGS
@given(
    content=st.binary(max_size=300)
    | st.text(st.sampled_from('file_name,prompt\n\r\t"\ufeff\0x{}:[]'), max_size=80).map(
        str.encode
    ),
    name=st.sampled_from(
        [
            "metadata.csv",
            "metadata.jsonl",
            "metadata.parquet",
            "0.tar",
            "captions_x.json",
            "part-000001.json",
        ]
    ),
)
def test_any_bytes_as_a_source_are_read_or_refused(folder, content, name):
    try:
        pairs, rejected = sources.read_pairs(replaced(folder, name, content))
    except ValueError:
        return
    assert pairs.is_empty() and rejected["reason"].null_count() == 0


@SETTINGS
@given(texts=st.lists(TEXT, max_size=8))
def test_any_lines_of_text_come_back(folder, texts):
    texts = [text.replace("\n", "").rstrip("\r") for text in texts]
    replaced(folder, "a.txt", "".join(text + "\n" for text in texts).encode())
    found = sources.read_text(str(folder / "a.txt"))["prompt"].to_list()
    texts = [text.removeprefix("\ufeff") if i == 0 else text for i, text in enumerate(texts)]
    assert found == [
        expected(text) for text in texts if not sources.blank(pl.Series([expected(text)]))[0]
    ]


@SETTINGS
@given(
    texts=st.lists(st.text("ab \t\n\u3000Ａé", max_size=6) | TEXT, min_size=1, max_size=12),
    min_words=st.integers(0, 3),
)
def test_rules_keep_one_of_equal_prompts_and_account_for_every_row(texts, min_words):
    series = pl.Series("prompt", texts, dtype=pl.String)
    n_tokens = np.array([len(text) for text in texts])
    reason = filters.rules(
        series, min_words=min_words, max_tokens=20, edge_characters=0, n_tokens=n_tokens
    )
    kept = reason.is_null()
    assert len(reason) == len(texts) and normalize_prompts(series).filter(kept).is_unique().all()
    again = filters.rules(
        series.filter(kept),
        min_words=min_words,
        max_tokens=20,
        edge_characters=0,
        n_tokens=n_tokens[kept.to_numpy()],
    )
    assert again.null_count() == kept.sum(), "what stays, stays"
    texts_of_kept = set(normalize_prompts(series).filter(kept))
    for text, why in zip(normalize_prompts(series), reason, strict=True):
        assert why != "exact duplicate" or text in texts_of_kept or len(set(reason)) > 1


@st.composite
def rows(draw) -> np.ndarray:
    """Unit rows in a few clusters, some of them equal."""
    n = draw(st.integers(2, 40))
    dim = draw(st.integers(2, 8))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, n // 4), dim))
    x = centres[rng.integers(len(centres), size=n)] + draw(
        st.sampled_from([0, 0.05, 0.3])
    ) * rng.standard_normal((n, dim))
    return l2_normalize(x.astype(np.float32))


@SETTINGS
@given(x=rows(), threshold=st.floats(0.1, 0.99), block=st.integers(1, 50), data_=st.data())
def test_the_cosine_filter_keeps_its_promises(x, threshold, block, data_):
    keeper, near = filters.cosine_filter(x, threshold, block=block)
    whole, near_whole = filters.cosine_filter(x, threshold, block=len(x))
    assert (keeper == whole).all() and (near == near_whole).all(), "the block makes no difference"
    kept = np.flatnonzero(keeper == np.arange(len(x)))
    removed = np.flatnonzero(keeper != np.arange(len(x)))
    cosine = (x.astype(np.float64) @ x.T.astype(np.float64)).astype(np.float32)
    np.fill_diagonal(cosine, -2)
    assert kept[0] == 0 and (cosine[np.ix_(kept, kept)] <= np.float32(threshold)).all()
    assert np.isin(keeper[removed], kept).all() and (keeper[removed] < removed).all()
    assert (cosine[removed, keeper[removed]] == near[removed]).all() and (
        near[removed] > np.float32(threshold)
    ).all()
    order = np.array(data_.draw(st.permutations(range(len(x)))))
    found = similarity.scan_pairs(x, threshold, order=order, block=block)
    kept = np.flatnonzero(found.stays)
    assert (
        (cosine[np.ix_(kept, kept)] <= np.float32(threshold)).all()
        and found.stays[found.keeper].all()
        and found.stays[order[0]]
    )


@SETTINGS
@given(x=rows(), level=st.floats(0.1, 0.95), n_folds=st.integers(2, 4))
def test_no_pair_above_the_level_stands_in_two_groups_or_two_folds(x, level, n_folds):
    label = folds.groups(x, level)
    cosine = (x.astype(np.float64) @ x.T.astype(np.float64)).astype(np.float32)
    assert (label[:, None] == label)[cosine > np.float32(level)].all()
    if label.max() + 1 >= n_folds:
        fold = folds.folds(label, n_folds)
        assert set(fold) == set(range(n_folds)) and all(
            len(set(fold[label == g])) == 1 for g in set(label)
        )


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
IDENTIFIERS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=8),
    min_size=1,
    max_size=4,
    unique=True,
)


@settings(SETTINGS, max_examples=40)
@given(ids=IDENTIFIERS, some=st.lists(FLOATS, min_size=1, max_size=30), seed=st.integers(0, 99))
def test_a_submission_reads_back_as_the_float32_that_went_in(folder, ids, some, seed):
    rng = np.random.default_rng(seed)
    x = rng.choice(np.array(some, np.float32), (len(ids), 384))
    submission.write(ids, x, folder / "own")
    submission.check(folder / "own")
    assert_written(folder / "own", sorted(ids), x[np.argsort(np.array(ids, object))])
    order = rng.permutation(len(ids))
    submission.write(
        [ids[i] for i in order], x[order], folder / "submission", folder / "own.csv"
    )  # another order goes in
    submission.check(folder / "submission", folder / "own.csv")
    assert (folder / "submission.csv").read_bytes() == (folder / "own.csv").read_bytes()
    turned = [ids[i] for i in order]
    sample = pl.DataFrame(
        {"imgId_eId": [f"{i}_{e}" for i in turned for e in range(384)], "val": 0.0}
    )
    sample.write_csv(folder / "sample.csv")
    submission.write(ids, x, folder / "submission", folder / "sample.csv")
    submission.check(folder / "submission", folder / "sample.csv")
    assert_written(folder / "submission", turned, x[order])


def assert_written(path: Path, ids: list[str], x: np.ndarray) -> None:
    frame = pl.read_csv(
        path.with_suffix(".csv"), schema={"imgId_eId": pl.String, "val": pl.Float32}
    )
    assert frame["imgId_eId"].to_list() == [f"{i}_{e}" for i in ids for e in range(384)]
    assert (frame["val"].to_numpy().reshape(x.shape) == x).all()
    parquet = pl.read_parquet(path.with_suffix(".parquet"))
    assert parquet["id"].to_list() == ids and (parquet["embedding"].to_numpy() == x).all()
    assert (np.load(path.with_suffix(".npy")) == x).all()
