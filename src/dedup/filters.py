"""Data filters 1 and 2: the rules, and the cosine filter (equation 7)."""

import unicodedata

import narwhals as nw
import numpy as np
import polars as pl

from src.dedup import similarity

CURVE = np.arange(55, 99) / 100  # the thresholds at which a notebook shows how many rows would stay
KEEP = ("first", "longest", "most_images")

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
    """(n,) int64: the order in which rows claim their place, so that of a cluster the `first`, `longest` or `most_images` stays.

    `most_images` counts the rows that have the same prompt. Raises ValueError for another rule.
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
    found = similarity.scan_pairs(embeddings, threshold, block=block)
    return found.keeper, found.similarity
