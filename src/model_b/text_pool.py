"""Text-only prompts for Model B: judged by data filter 1's rules and made distinct.

The same expressions run on polars and on cuDF.
"""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import narwhals as nw
import polars as pl
from narwhals.typing import IntoDataFrameT

from src.artifacts import atomic
from src.data.normalize import normalize_prompts

BUCKETS = 64  # files that the prompts are divided into; one at a time is made distinct in memory
SCHEMA = pl.Schema({"row": pl.Int64, "prompt": pl.String, "source": pl.String})


def frame_engine(engine: str = "auto") -> str:
    """`cudf` where a GPU is usable, else `polars`. Raises ValueError for another name, or cudf
    without a GPU.
    """
    if engine not in ("auto", "polars", "cudf"):
        raise ValueError(f"engine must be auto, polars or cudf, got {engine!r}")
    try:
        import cupy

        usable = cupy.cuda.is_available()
    except ImportError:
        usable = False

    if engine == "cudf" and not usable:
        raise ValueError("engine: cudf was asked for, but no GPU is usable; use auto or polars")
    return "cudf" if usable and engine != "polars" else "polars"


def judge_prompts(batch: IntoDataFrameT, *, min_words: int, max_characters: int) -> IntoDataFrameT:
    """A table `prompt, ...` (polars or cuDF) with its normalized `text`, and the `reason` to drop a
    row, by the row alone.
    """
    frame = nw.from_native(batch, eager_only=True)
    text = nw.from_native(normalize_prompts(frame["prompt"].to_native()), series_only=True)
    frame = frame.with_columns(text.alias("text"))

    # a normalized text has single spaces, so words are spaces plus one
    length = nw.col("text").str.len_chars()
    length_without_spaces = nw.col("text").str.replace_all(" ", "", literal=True).str.len_chars()
    words = length - length_without_spaces + 1

    too_long = nw.lit(f"more than {max_characters} characters")
    too_short = nw.lit(f"fewer than {min_words} words")
    # the last rule that a prompt breaks is its reason; null where it breaks none
    reason: nw.Expr = nw.when(length > max_characters).then(too_long)
    reason = nw.when(words < min_words).then(too_short).otherwise(reason)
    reason = nw.when(nw.col("text") == "").then(nw.lit("empty")).otherwise(reason)
    return frame.with_columns(reason.alias("reason")).to_native()


def write_text_pool(
    batches: Iterable[pl.DataFrame],
    file: Path,
    *,
    min_words: int = 3,
    max_characters: int = 2000,
    exclude: pl.Series | None = None,
    engine: str = "auto",
) -> Counter[str]:
    """Write the distinct usable prompts of `batches` (prompt, source) to a Parquet `file` (row,
    prompt, source).

    Of prompts that are equal when normalized the first stays, and none that equals one of
    `exclude`. Exact, in the memory of a batch and of one of 64 parts that the prompts are divided
    into on disk; rows are in the order of the parts. Returns the number of rows by reason, and of
    those `kept`.
    """
    engine = frame_engine(engine)
    excluded = (
        pl.Series(dtype=pl.String) if exclude is None else normalize_prompts(exclude).unique()
    )
    limits = {"min_words": min_words, "max_characters": max_characters}

    reason_counts: Counter[str] = Counter()
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent) as folder:
        reason_counts.update(_partition_usable(batches, Path(folder), engine, **limits))
        with atomic(file) as temporary:
            reason_counts.update(_write_distinct(Path(folder), temporary, excluded))
    return reason_counts


def _partition_usable(
    batches: Iterable[pl.DataFrame], folder: Path, engine: str, **limits: int
) -> Counter[str]:
    """Apply the rules batch by batch; what stays goes to the part that its text's hash names."""
    import pyarrow.parquet as pq

    reason_counts: Counter[str] = Counter()
    # a text goes by its hash: all copies of it, from any batch, meet in one part
    writers = {}
    rows_read = 0
    for batch in batches:
        numbered = batch.select("prompt", "source").with_row_index("row", offset=rows_read)
        rows_read += len(batch)
        judged = _judge_on(engine, numbered, **limits)
        dropped = judged.drop_nulls("reason").group_by("reason").len()
        reason_counts.update(dict(dropped.rows()))

        usable = judged.filter(pl.col("reason").is_null()).select(
            pl.col("row").cast(pl.Int64),
            "prompt",
            "source",
            "text",
            part=(pl.col("text").hash() % BUCKETS).cast(pl.Int64),
        )
        for (part,), rows in usable.partition_by("part", as_dict=True, include_key=False).items():
            table = rows.to_arrow()
            if part not in writers:
                writers[part] = pq.ParquetWriter(folder / f"{part:03}.parquet", table.schema)
            writers[part].write_table(table)

    for writer in writers.values():
        writer.close()
    return reason_counts


def _judge_on(engine: str, batch: pl.DataFrame, **limits: int) -> pl.DataFrame:
    if engine == "cudf":
        import cudf

        judged = judge_prompts(cudf.DataFrame.from_arrow(batch.to_arrow()), **limits)
        return cast(pl.DataFrame, pl.from_arrow(judged.to_arrow()))
    return judge_prompts(batch, **limits)


def _write_distinct(folder: Path, file: Path, excluded: pl.Series) -> Counter[str]:
    """Write the first of each text of the parts in `folder` to `file`, without those `excluded`."""
    import pyarrow.parquet as pq

    reason_counts: Counter[str] = Counter()
    with pq.ParquetWriter(file, pl.DataFrame(schema=SCHEMA).to_arrow().schema) as writer:
        for part in sorted(folder.glob("*.parquet")):
            usable = pl.read_parquet(part, glob=False)
            distinct = usable.unique("text", keep="first", maintain_order=True)
            kept = distinct.filter(~pl.col("text").is_in(excluded.implode()))
            writer.write_table(kept.select(*SCHEMA).cast(SCHEMA).to_arrow())

            reason_counts["exact duplicate"] += len(usable) - len(distinct)
            reason_counts["training prompt"] += len(distinct) - len(kept)
            reason_counts["kept"] += len(kept)
    return reason_counts
