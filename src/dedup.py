"""Which prompts stay, and which may never stand on two sides of a split.

Data filter 1 is rules, data filter 2 a cosine filter (equation 7); groups of near-duplicates become folds, so that an
out-of-fold score is not flattered by a prompt that the model has all but seen. The similarities are found in `similarity.py`.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import narwhals as nw
import numpy as np
import polars as pl
from sklearn.model_selection import GroupKFold

from src import similarity
from src.artifacts import atomic, load_table
from src.paths import resolve, shown
from src.similarity import Pass

CURVE = np.arange(55, 99) / 100  # the thresholds at which a notebook shows how many rows would stay
KEEP = ("first", "longest", "most_pictures")
BUCKETS = 64  # files that a text store is divided into while it is made distinct: one of them is in memory at a time

# --- data filter 1: rules ---


def normalised(prompts):
    """Prompts (a polars or cuDF series) under Unicode NFKC, lower case, single spaces: equal results are exact duplicates."""
    series = nw.from_native(prompts, series_only=True)
    foreign = series.str.contains(r"[^\x00-\x7F]").fill_null(False)
    folded = [
        " ".join(unicodedata.normalize("NFKC", prompt).lower().split())
        for prompt in series.filter(foreign).to_list()
    ]
    # white space is named, since cuDF and pandas take more control characters for it than polars
    plain = series.str.to_lowercase().str.replace_all("[ \t\n\v\f\r]+", " ").str.strip_chars(" ")
    return (plain.scatter(foreign.arg_true(), folded) if folded else plain).to_native()


def rules(
    prompts: pl.Series,
    *,
    min_words: int,
    max_tokens: int,
    edge_characters: int,
    n_tokens: np.ndarray,
    scope: pl.Series | None = None,
) -> pl.Series:
    """Data filter 1: for each prompt the reason to drop it, or null. Of equal prompts, within a `scope`, the first stays.

    `n_tokens` (n,) counts the sentence encoder's tokens; `edge_characters` > 0 also drops a prompt whose first or last so
    many characters occurred before, as the competition's public recipe does (15 there).
    """
    if len(prompts) != len(n_tokens):
        raise ValueError(f"{len(prompts)} prompts, {len(n_tokens)} token counts")
    text = normalised(prompts)
    within = pl.Series([""] * len(text)) if scope is None else scope
    frame = pl.DataFrame({"text": text, "tokens": n_tokens, "scope": within})

    def seen(part: pl.Expr) -> pl.Expr:
        return ~pl.struct(part, "scope").is_first_distinct()

    reason = (
        pl.when(pl.col("text") == "")
        .then(pl.lit("empty"))
        .when(seen(pl.col("text")))
        .then(pl.lit("exact duplicate"))
        .when(pl.col("text").str.count_matches(r"\S+") < min_words)
        .then(pl.lit(f"fewer than {min_words} words"))
        .when(pl.col("tokens") > max_tokens)
        .then(pl.lit(f"more than {max_tokens} tokens"))
    )
    if edge_characters:
        reason = reason.when(seen(pl.col("text").str.head(edge_characters))).then(
            pl.lit("opening seen before")
        )
        reason = reason.when(seen(pl.col("text").str.tail(edge_characters))).then(
            pl.lit("ending seen before")
        )
    return frame.select(reason=reason)["reason"]


# --- data filter 2: the cosine filter ---


def walk_order(prompts: pl.Series, keep: str = "first") -> np.ndarray:
    """(n,) int64: the order in which rows claim their place, so that of a cluster the `first`, `longest` or `most_pictures` stays.

    `most_pictures` counts the rows that have the same prompt. Raises ValueError for another rule.
    """
    if keep not in KEEP:
        raise ValueError(f"keep must be one of {', '.join(KEEP)}, got {keep!r}")
    if keep == "first":
        return np.arange(len(prompts))
    if keep == "longest":
        rank = prompts.str.len_chars()
    else:
        rank = pl.DataFrame({"text": normalised(prompts)}).select(n=pl.len().over("text"))["n"]
    return np.argsort(-rank.to_numpy().astype(np.int64), kind="stable")


def keeps_one(cosine_keep: str) -> bool:
    """Whether one row of a cluster stays (`one`) or none, the public recipe's rule (`none`). Raises ValueError otherwise."""
    if cosine_keep not in ("one", "none"):
        raise ValueError(f"cosine_keep must be one or none, got {cosine_keep!r}")
    return cosine_keep == "one"


def cosine_filter(
    embeddings: np.ndarray, threshold: float, *, block: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Data filter 2 over (n, d) float32 unit rows, keeping one: in order, a row stays unless above `threshold` with a kept one.

    Returns `keeper` (n,) int64, the row's own index where it stays, else the most similar row kept before it, and
    `similarity` (n,) float32 to that keeper. No two kept rows are above the threshold. Exact, in blocks of `block` rows.
    """
    found = similarity.one_pass(embeddings, threshold, block=block)
    return found.keeper, found.similarity


# --- groups and folds ---


def groups(embeddings: np.ndarray, threshold: float) -> np.ndarray:
    """(n,) int64 component labels: rows joined by a chain of pairs above `threshold` share a group."""
    return similarity.one_pass(embeddings, threshold, link=threshold).forest.components(threshold)


def same(*columns: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (i, j) that join each row to the first one with an equal value in a column: equal prompts, equal pictures."""
    first, rows = [], []
    for column in columns:
        seen: dict = {}
        first += [seen.setdefault(value, row) for row, value in enumerate(column)]
        rows += range(len(first) - len(rows))
    return np.array(first, np.int64), np.array(rows, np.int64)


def balanced_groups(
    found: Pass, *, max_share: float, links: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, float]:
    """Groups at the lowest similarity that `found` collected, raised in steps until the largest holds at most `max_share` of
    the rows; and the value used. A removed row shares the group of its keeper, and `links` (i, j) join, whatever the value.
    """
    i, j = links or (np.empty(0, np.int64), np.empty(0, np.int64))
    links = np.concatenate([i, np.arange(found.forest.n)]), np.concatenate([j, found.keeper])
    for level in found.forest.levels:
        label = found.forest.components(level, links)
        if np.bincount(label).max() <= max_share * len(label):
            break
    return label, round(float(level), 6)


def folds(group: np.ndarray, n_folds: int) -> np.ndarray:
    """(n,) int64 fold of each row: whole groups, balanced. Raises ValueError with fewer groups than folds."""
    n_groups = len(np.unique(group))
    if n_groups < n_folds:
        raise ValueError(
            f"{n_groups} groups cannot fill {n_folds} folds: add rows, lower n_folds or raise group_similarity"
        )
    fold = np.empty(len(group), dtype=np.int64)
    for f, (_, held_out) in enumerate(GroupKFold(n_folds).split(group, groups=group)):
        fold[held_out] = f
    return fold


def given_folds(file: str | Path, ids: list[str], group: np.ndarray) -> np.ndarray:
    """(n,) int64 folds from a table `id, fold`. A row that it does not name joins its group's fold, or else the smallest.

    Raises ValueError when the columns are not there, folds are not 0, 1, ..., or no id is known.
    """
    file = resolve(file)
    table = load_table(file)
    if not {"id", "fold"} <= set(table.columns):
        raise ValueError(f"{shown(file)}: columns are {table.columns}, wanted id and fold")
    table = table.select(pl.col("id").cast(pl.String), pl.col("fold").cast(pl.Int64, strict=False))
    numbers = table["fold"].unique().sort().to_list()
    if numbers != list(range(len(numbers))) or table["id"].is_duplicated().any():
        raise ValueError(
            f"{shown(file)}: folds must be 0, 1, ... and each id named once; folds are {numbers[:10]}"
        )
    fold = (
        pl.DataFrame({"id": ids})
        .join(table, on="id", how="left", maintain_order="left")["fold"]
        .fill_null(-1)
        .to_numpy()
        .copy()
    )
    if (fold < 0).all():
        raise ValueError(
            f"{shown(file)}: none of its {len(table)} ids is among the {len(ids)} rows, e.g. {ids[:2]}"
        )
    of_group = dict(
        zip(group[fold >= 0][::-1].tolist(), fold[fold >= 0][::-1].tolist(), strict=True)
    )
    sizes = np.bincount(fold[fold >= 0], minlength=len(numbers))
    for row in np.flatnonzero(fold < 0):
        fold[row] = of_group.setdefault(int(group[row]), int(sizes.argmin()))
        sizes[fold[row]] += 1
    return fold


def leaks(embeddings: np.ndarray, fold: np.ndarray, *, device: str = "cpu") -> pl.DataFrame:
    """The leak table: for each fold its rows, and the highest and the mean of its rows' highest similarity to other folds."""
    highest = similarity.nearest_across(embeddings, fold, device=device)
    return (
        pl.DataFrame({"fold": fold, "highest": highest.astype(np.float64)})
        .group_by("fold")
        .agg(
            rows=pl.len().cast(pl.Int64), highest=pl.max("highest"), mean_highest=pl.mean("highest")
        )
        .sort("fold")
    )


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


def judged(batch, *, min_words: int, max_characters: int):
    """A table `prompt, ...` (polars or cuDF) with its normalised `text` and the `reason` to drop a row, by the row alone."""
    frame = nw.from_native(batch, eager_only=True)
    frame = frame.with_columns(
        nw.from_native(normalised(frame["prompt"].to_native()), series_only=True).alias("text")
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


def text_store(
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
    known = normalised(known).unique() if known is not None else pl.Series(dtype=pl.String)
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
                judged(cudf.DataFrame.from_arrow(numbered.to_arrow()), **limits).to_arrow()
            )
        else:
            seen = judged(numbered, **limits)
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
