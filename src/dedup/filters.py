"""Data filters 1 and 2: the rules, and the cosine filter (equation 7)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from src.data.normalize import normalize_prompts

if TYPE_CHECKING:
    from src.dedup.similarity import PairScan

# the thresholds at which notebook 01 shows how many rows would stay
CURVE = np.arange(55, 99) / 100
KEEP = ("first", "longest", "most_images")
# the reasons of a rule begin like this, by the parameter that decides what it drops
DROPPED_BY = {
    "min_words": ("fewer than",),
    "max_tokens": ("more than",),
    "edge_characters": ("opening seen", "ending seen"),
}
NEXT_THRESHOLD = 0.05  # how far from the chosen threshold those lie that it is compared with

# --- data filter 1: rules ---


def rules(
    prompts: pl.Series,
    *,
    min_words: int,
    max_tokens: int,
    edge_characters: int,
    n_tokens: np.ndarray,
    scope: pl.Series | None = None,
) -> pl.Series:
    """Data filter 1: for each prompt the reason to drop it, or null.

    Of equal prompts, within a `scope`, the first stays. `n_tokens` (n,) counts the sentence
    encoder's tokens. `edge_characters` > 0 also drops a prompt whose first or last so many
    characters occurred before, as the competition's public recipe does (15 there).
    """
    if len(prompts) != len(n_tokens):
        raise ValueError(f"{len(prompts)} prompts, {len(n_tokens)} token counts")
    text = normalize_prompts(prompts)
    scope = pl.Series([""] * len(text)) if scope is None else scope
    frame = pl.DataFrame({"text": text, "tokens": n_tokens, "scope": scope})

    # of several reasons the first in this order is given
    reason = (
        pl.when(pl.col("text") == "")
        .then(pl.lit("empty"))
        .when(_occurred_before(pl.col("text")))
        .then(pl.lit("exact duplicate"))
        .when(pl.col("text").str.count_matches(r"\S+") < min_words)
        .then(pl.lit(f"fewer than {min_words} words"))
        .when(pl.col("tokens") > max_tokens)
        .then(pl.lit(f"more than {max_tokens} tokens"))
    )
    if edge_characters:
        opening = pl.col("text").str.head(edge_characters)
        ending = pl.col("text").str.tail(edge_characters)
        reason = reason.when(_occurred_before(opening)).then(pl.lit("opening seen before"))
        reason = reason.when(_occurred_before(ending)).then(pl.lit("ending seen before"))
    return frame.select(reason=reason)["reason"]


def harsh_rules(reason: pl.Series) -> list[str]:
    """A line for each parameter whose rule drops more than half of the rows; see `rules`.

    Equal prompts have no parameter: they teach nothing new however many they are.
    """
    lines = []
    for parameter, openings in DROPPED_BY.items():
        dropped = sum(reason.str.starts_with(opening).sum() or 0 for opening in openings)
        if dropped > len(reason) / 2:
            lines.append(
                f"WARNING: {parameter} drops {dropped:,} of {len(reason):,} rows. If these prompts "
                f"are as they should be, change {parameter} in the parameters file."
            )
    return lines


def _occurred_before(part: pl.Expr) -> pl.Expr:
    """Whether an earlier row of the same scope has the same `part`."""
    return ~pl.struct(part, "scope").is_first_distinct()


# --- data filter 2: the cosine filter ---


def walk_order(prompts: pl.Series, keep: str = "first") -> np.ndarray:
    """(n,) int64: the order in which rows are considered; the first row of a cluster stays.

    `keep` is "first", "longest" or "most_images", which counts the rows that have the same prompt.
    Raises ValueError for another rule.
    """
    if keep not in KEEP:
        raise ValueError(f"keep must be one of {', '.join(KEEP)}, got {keep!r}")
    if keep == "first":
        return np.arange(len(prompts))

    if keep == "longest":
        rank = prompts.str.len_chars()
    else:
        texts = pl.DataFrame({"text": normalize_prompts(prompts)})
        rank = texts.select(rows=pl.len().over("text"))["rows"]
    return np.argsort(-rank.to_numpy().astype(np.int64), kind="stable")


def keeps_one(cosine_keep: str) -> bool:
    """Whether one row of a cluster stays (`one`), or none (`none`, the public recipe's rule).

    Raises ValueError for another word.
    """
    if cosine_keep not in ("one", "none"):
        raise ValueError(f"cosine_keep must be one or none, got {cosine_keep!r}")
    return cosine_keep == "one"


def cosine_filter(
    embeddings: np.ndarray, threshold: float, *, block: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Data filter 2 over (n, d) float32 unit rows: in order, a row stays unless it is near a kept
    one.

    Returns `keeper` (n,) int64, the row's own index where it stays, else the most similar row kept
    before it, and `similarity` (n,) float32 to that keeper. No two kept rows are above the
    threshold. Exact, in blocks of `block` rows.
    """
    from src.dedup import similarity

    scan = similarity.scan_pairs(embeddings, threshold, block=block)
    return scan.keeper, scan.similarity


# --- what notebook 01 says of it ---


def near_any(
    embeddings: np.ndarray, others: np.ndarray, threshold: float, *, device: str = "cpu"
) -> np.ndarray:
    """(n,) bool: which unit rows are above `threshold` with one of `others`, which may be none."""
    from src.dedup import similarity

    if not len(others):
        return np.zeros(len(embeddings), bool)
    highest, _ = similarity.nearest_in(embeddings, others, device=device)
    return highest > np.float32(threshold)


def just_merged(
    scan: "PairScan", removed: np.ndarray, prompts: Sequence[str], *, count: int
) -> list[tuple[int, str]]:
    """Row and caption of the `count` rows nearest to the threshold, each followed by its keeper."""
    nearest_first = removed[np.argsort(scan.similarity[removed], kind="stable")]

    captioned = []
    for row in nearest_first[:count].tolist():
        keeper = int(scan.keeper[row])
        captioned.append((row, f"removed at {scan.similarity[row]:.3f}: {prompts[row]}"))
        captioned.append((keeper, f"replaced by: {prompts[keeper]}"))
    return captioned


def threshold_sentences(scan: "PairScan", threshold: float, n_eligible: int) -> str:
    """How many of the `n_eligible` rows the filter keeps, and how many at thresholds beside it."""
    stays = int(scan.stays.sum())
    beside = [
        f"{kept:,} at {other:.2f}"
        for other, kept in zip(scan.thresholds, scan.kept, strict=True)
        if np.isclose(abs(other - threshold), NEXT_THRESHOLD)
    ]
    sentence = f"The cosine filter keeps {stays:,} of {n_eligible:,} rows at {threshold}."
    if beside:
        sentence += f" It would keep {' and '.join(beside)}."
    return sentence
