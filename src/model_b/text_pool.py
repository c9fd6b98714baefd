"""Text-only prompts for Model B: judged by the rules of data filter 1 and made distinct, on polars or cuDF."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import narwhals as nw
import polars as pl

from src.artifacts import atomic
from src.data.normalize import normalize_prompts

BUCKETS = 64  # files that a text store is divided into while it is made distinct: one of them is in memory at a time


# --- text at tens of millions of prompts ---


def frame_engine(engine: str = "auto") -> str:
    """`cudf` where a GPU is usable, else `polars`. Raises ValueError for another name, or cudf without a GPU."""
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


def judge_prompts(batch, *, min_words: int, max_characters: int):
    """A table `prompt, ...` (polars or cuDF) with its normalised `text` and the `reason` to drop a row, by the row alone."""
    frame = nw.from_native(batch, eager_only=True)
    frame = frame.with_columns(
        nw.from_native(normalize_prompts(frame["prompt"].to_native()), series_only=True).alias(
            "text"
        )
    )
    words = (
        nw.col("text").str.len_chars()
        - nw.col("text").str.replace_all(" ", "", literal=True).str.len_chars()
        + 1
    )
    reason = nw.when(nw.col("text").str.len_chars() > max_characters).then(
        nw.lit(f"more than {max_characters} characters")
    )
    reason = (
        nw.when(words < min_words).then(nw.lit(f"fewer than {min_words} words")).otherwise(reason)
    )
    return frame.with_columns(
        nw.when(nw.col("text") == "").then(nw.lit("empty")).otherwise(reason).alias("reason")
    ).to_native()


def write_text_pool(
    batches: Iterable[pl.DataFrame],
    file: Path,
    *,
    min_words: int = 3,
    max_characters: int = 2000,
    known: pl.Series | None = None,
    engine: str = "auto",
) -> Counter:
    """Write the distinct usable prompts of `batches` (prompt, source) to a Parquet `file` (row, prompt, source); the tally.

    Of prompts that are equal when normalised the first stays, and none that equals a `known` one. Exact, in the memory of a
    batch and of one of 64 parts that the prompts are divided into on disk; rows are in the order of the parts. The tally
    counts rows by reason, and those `kept`.
    """
    tally, engine = Counter(), frame_engine(engine)
    known = normalize_prompts(known).unique() if known is not None else pl.Series(dtype=pl.String)
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent) as folder:
        tally.update(
            _divide(
                batches, Path(folder), engine, min_words=min_words, max_characters=max_characters
            )
        )
        with atomic(file) as temporary:
            tally.update(_distinct(Path(folder), temporary, known))
    return tally


def _divide(batches: Iterable[pl.DataFrame], folder: Path, engine: str, **limits: int) -> Counter:
    """Apply the rules batch by batch, and append what stays to the part that its text's hash names."""
    import pyarrow.parquet as pq

    tally, writers, rows = Counter(), {}, 0
    for batch in batches:
        numbered = batch.select("prompt", "source").with_row_index("row", offset=rows)
        rows += len(batch)
        if engine == "cudf":
            import cudf

            seen = pl.from_arrow(
                judge_prompts(cudf.DataFrame.from_arrow(numbered.to_arrow()), **limits).to_arrow()
            )
        else:
            seen = judge_prompts(numbered, **limits)
        tally.update(dict(seen.drop_nulls("reason").group_by("reason").len().rows()))
        usable = (
            seen.filter(pl.col("reason").is_null())
            .drop("reason")
            .with_columns(pl.col("row").cast(pl.Int64))
        )
        usable = usable.with_columns(part=(pl.col("text").hash() % BUCKETS).cast(pl.Int64))
        for (part,), piece in usable.partition_by("part", as_dict=True, include_key=False).items():
            table = piece.to_arrow()
            if part not in writers:
                writers[part] = pq.ParquetWriter(folder / f"{part:03}.parquet", table.schema)
            writers[part].write_table(table)
    for writer in writers.values():
        writer.close()
    return tally


def _distinct(folder: Path, file: Path, known: pl.Series) -> Counter:
    import pyarrow.parquet as pq

    tally, schema = Counter(), {"row": pl.Int64, "prompt": pl.String, "source": pl.String}
    with pq.ParquetWriter(file, pl.DataFrame(schema=schema).to_arrow().schema) as writer:
        for part in sorted(folder.glob("*.parquet")):
            frame = pl.read_parquet(part)
            once = frame.unique("text", keep="first", maintain_order=True)
            fresh = once.filter(~pl.col("text").is_in(known.implode()))
            tally.update(
                {
                    "exact duplicate": len(frame) - len(once),
                    "already known": len(once) - len(fresh),
                    "kept": len(fresh),
                }
            )
            writer.write_table(fresh.select(*schema).cast(schema).to_arrow())
    return tally
