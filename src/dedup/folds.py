"""Groups of near-duplicate prompts, and folds that never split a group."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from src.data.user_tables import read_user_table
from src.dedup import similarity
from src.dedup.similarity import PairScan
from src.paths import display_path, resolve

UNEVEN = 1.2  # how far above an even share of the kept rows a fold may be
ROUNDING = 1e-5  # by how much `nearest_across`, in float32, may be off

# --- groups ---


def groups(embeddings: np.ndarray, threshold: float) -> np.ndarray:
    """(n,) int64 labels: rows joined by a chain of pairs above `threshold` share a group."""
    scan = similarity.scan_pairs(embeddings, threshold, link=threshold)
    return scan.forest.components(threshold)


def same_value_pairs(*columns: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (i, j) that join each row to the first with an equal value in a column.

    For equal prompts and equal images. Two (m,) int64 arrays.
    """
    first: list[int] = []
    rows: list[int] = []
    for column in columns:
        first_with: dict = {}
        for row, value in enumerate(column):
            first.append(first_with.setdefault(value, row))
            rows.append(row)
    return np.array(first, np.int64), np.array(rows, np.int64)


@dataclass(frozen=True)
class Groups:
    """Which rows share a group, and how near the rows of two groups may be.

    `label` (n,) int64; `threshold` (n,) float32, the similarity at which a row's group was formed:
    no row outside the group is above it with the row.
    """

    label: np.ndarray
    threshold: np.ndarray

    def __len__(self) -> int:
        """The number of groups."""
        return len(np.unique(self.label))


def balanced_groups(
    scan: PairScan, *, max_share: float, links: tuple[np.ndarray, np.ndarray] | None = None
) -> Groups:
    """Components at the scan's lowest link; one with too many kept rows is split inside itself.

    A component may hold `max_share` of the rows that filter 2 keeps, and one kept row in any case.
    A larger one is divided at the lowest higher threshold that divides it, and its parts again
    while they are too large; all others stay as they are. A removed row shares the group of its
    keeper, and `links` (i, j) join, whatever the threshold: rows that only `links` hold together
    are not divided, however many.
    """
    i = np.arange(scan.forest.n)
    j = scan.keeper
    if links is not None:
        i = np.concatenate([i, links[0]])
        j = np.concatenate([j, links[1]])

    # everything starts in the largest groups, at the lowest similarity
    levels = scan.forest.levels
    label = scan.forest.components(levels[0], (i, j))
    threshold = np.full(len(label), levels[0], np.float32)
    allowed = max(1.0, max_share * scan.stays.sum())

    for level in levels[1:]:
        too_large = np.bincount(label, weights=scan.stays) > allowed
        inside = too_large[label]
        if not inside.any():
            break

        # components at a higher level lie within those at a lower one
        parts = scan.forest.components(level, (i, j))
        divided = _numbered(np.where(inside, label.max() + 1 + parts, label))
        smaller = np.bincount(divided)[divided] < np.bincount(label)[label]
        threshold[smaller] = level
        label = divided
    return Groups(label, threshold)


def _numbered(label: np.ndarray) -> np.ndarray:
    """The same labels as 0, 1, ... in the order in which they first occur."""
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def threshold_table(groups: Groups, kept: np.ndarray) -> pl.DataFrame:
    """For each similarity at which groups were formed, how many groups and rows were formed at it.

    Columns `similarity`, `groups`, `rows`, `share` of all rows, and `kept`, the rows that `kept`
    (n,) bool marks.
    """
    rows = pl.DataFrame(
        {
            "similarity": groups.threshold.astype(np.float64).round(6),
            "group": groups.label,
            "kept": kept,
        }
    )
    by_threshold = rows.group_by("similarity").agg(
        groups=pl.n_unique("group").cast(pl.Int64),
        rows=pl.len().cast(pl.Int64),
        share=pl.len() / len(rows),
        kept=pl.sum("kept").cast(pl.Int64),
    )
    return by_threshold.sort("similarity")


def grouping_warning(
    groups: Groups, kept: np.ndarray, *, cosine_threshold: float, max_share: float
) -> str:
    """A warning about groups that could not be formed at the requested similarity, or "".

    It names rows grouped above `cosine_threshold`, whose near-duplicates may stand in another fold,
    and groups that still hold more than `max_share` of the `kept` rows.
    """
    lines = []
    above = groups.threshold > np.float32(cosine_threshold)
    if above.any():
        highest = float(groups.threshold.max())
        lines.append(
            f"WARNING: {above.sum()} of {len(above)} rows ({(above & kept).sum()} of {kept.sum()} "
            f"kept) are grouped at up to {highest:.2f}, above cosine_threshold {cosine_threshold}: "
            "near-duplicates of theirs may stand in other folds, and flatter the out-of-fold score"
        )

    kept_rows = np.bincount(groups.label, weights=kept).astype(int)
    too_large = kept_rows > max(1.0, max_share * kept.sum())
    if too_large.any():
        lines.append(
            f"WARNING: {too_large.sum()} groups hold more than {max_share:.0%} of the {kept.sum()} "
            f"kept rows, the largest {kept_rows.max()}: equal prompts or images tie them together, "
            "and folds cannot be balanced"
        )
    return "\n".join(lines)


# --- folds ---


def folds(group: np.ndarray, n_folds: int, kept: np.ndarray | None = None) -> np.ndarray:
    """(n,) int64 fold of each row: whole groups, folds of about as many rows.

    The rows that `kept` (n,) bool marks are the ones scored. Where a fold would hold more than
    `UNEVEN` times its even share of them, since a prompt with many copies fills a fold, groups are
    dealt by their kept rows instead. Raises ValueError with fewer groups than folds.
    """
    label = np.unique(group, return_inverse=True)[1]
    rows = np.bincount(label)
    if len(rows) < n_folds:
        raise ValueError(
            f"{len(rows)} groups cannot fill {n_folds} folds: "
            "add rows, lower n_folds or raise group_similarity"
        )
    fold = _deal(rows, n_folds)[label]
    if kept is None:
        return fold

    kept_share = np.bincount(fold[kept], minlength=n_folds) / max(kept.sum(), 1)
    if kept_share.max() <= UNEVEN / n_folds:
        return fold
    kept_rows = np.bincount(label, weights=kept)
    tie_break = rows / (rows.sum() + 1)  # rows decide between groups with equal kept rows
    return _deal(kept_rows + tie_break, n_folds)[label]


def _deal(sizes: np.ndarray, n_folds: int) -> np.ndarray:
    """(g,) int64 fold of each group: the largest group first, each to the fold that is smallest."""
    fold = np.empty(len(sizes), np.int64)
    filled = np.zeros(n_folds)
    for group in np.argsort(sizes, kind="stable")[::-1]:
        fold[group] = filled.argmin()
        filled[fold[group]] += sizes[group]
    return fold


def given_folds(file: str | Path, ids: list[str], group: np.ndarray) -> np.ndarray:
    """(n,) int64 folds from a table `id, fold`.

    A row that the table does not name joins its group's fold, or else the smallest. Raises
    ValueError when a column is missing, folds are not 0, 1, ..., or no id is that of a row.
    """
    table = _fold_table(resolve(file))
    rows = pl.DataFrame({"id": ids}).join(table, on="id", how="left", maintain_order="left")
    fold = rows["fold"].fill_null(-1).to_numpy().copy()
    named = fold >= 0
    if not named.any():
        raise ValueError(
            f"{display_path(resolve(file))}: none of its {len(table)} ids is among the "
            f"{len(ids)} rows, e.g. {ids[:2]}"
        )

    # the first named row of a group decides for the rows that the table does not name
    fold_of_group: dict[int, int] = {}
    for row in np.flatnonzero(named).tolist():
        fold_of_group.setdefault(int(group[row]), int(fold[row]))

    # the others in order: a group that is new to all joins the smallest fold, and stays together
    sizes = np.bincount(fold[named], minlength=table["fold"].n_unique())
    for row in np.flatnonzero(~named).tolist():
        smallest = int(sizes.argmin())
        fold[row] = fold_of_group.setdefault(int(group[row]), smallest)
        sizes[fold[row]] += 1
    return fold


def _fold_table(file: Path) -> pl.DataFrame:
    """The table `id, fold` of a fold file, checked."""
    table = read_user_table(file, ["id", "fold"])
    fold = pl.col("fold").cast(pl.Int64, strict=False)
    table = table.select(pl.col("id").cast(pl.String), fold)
    numbers = table["fold"].unique().sort().to_list()
    if numbers != list(range(len(numbers))) or table["id"].is_duplicated().any():
        raise ValueError(
            f"{display_path(file)}: folds must be 0, 1, ... and each id named once; "
            f"folds are {numbers[:10]}"
        )
    return table


# --- the leak table ---


def leaks(
    across: np.ndarray, fold: np.ndarray, kept: np.ndarray, *, threshold: float
) -> pl.DataFrame:
    """The leak table: how near each fold's rows come to the other folds.

    `across` (n,) is each row's highest similarity to a row of another fold, as
    `similarity.nearest_across` gives it. Columns `fold`, `rows`, `highest`, `mean_highest`, and
    `above` and `kept_above`, the rows and the `kept` rows that are above `threshold` with another
    fold.
    """
    above = across > np.float32(threshold) + ROUNDING
    rows = pl.DataFrame(
        {
            "fold": fold,
            "highest": across.astype(np.float64),
            "above": above,
            "kept_above": above & kept,
        }
    )
    by_fold = rows.group_by("fold").agg(
        rows=pl.len().cast(pl.Int64),
        highest=pl.max("highest"),
        mean_highest=pl.mean("highest"),
        above=pl.sum("above").cast(pl.Int64),
        kept_above=pl.sum("kept_above").cast(pl.Int64),
    )
    return by_fold.sort("fold")


def leak_sentence(leaks: pl.DataFrame, n_scored: int, threshold: float) -> str:
    """What the leak table says of the folds, about the `n_scored` rows that filter 2 keeps."""
    leaking = int(leaks["kept_above"].sum())
    if not leaking:
        return f"The folds do not leak: no scored row is above {threshold} with another fold."
    return (
        f"{leaking} of {n_scored} scored rows are above {threshold} with another fold, "
        "so their out-of-fold scores are too high."
    )


def fold_facts(
    groups: Groups,
    across: np.ndarray,
    kept: np.ndarray,
    *,
    group_similarity: float,
    cosine_threshold: float,
    given: bool,
) -> dict:
    """What notebook 01 records about its folds, for judging a score later; JSON-able.

    `leaking` counts the `kept` rows that are above `group_similarity` with another fold;
    `nearest_mean` and `nearest_sd` are over the kept rows' highest similarity to another fold.
    """
    above = groups.threshold > np.float32(cosine_threshold)
    leaking = across > np.float32(group_similarity) + ROUNDING
    return {
        "given": given,
        "group_similarity": group_similarity,
        "cosine_threshold": cosine_threshold,
        "thresholds": threshold_table(groups, kept).to_dicts(),
        "rows_above_cosine_threshold": int(above.sum()),
        "kept": int(kept.sum()),
        "leaking": int((leaking & kept).sum()),
        "nearest_mean": float(across[kept].mean()),
        "nearest_sd": float(across[kept].std()),
    }
