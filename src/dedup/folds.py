"""Groups of near-duplicate prompts, and folds that never split a group."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.model_selection import GroupKFold

from src.artifacts import load_table
from src.dedup import similarity
from src.dedup.similarity import PairScan
from src.paths import display_path, resolve

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


def balanced_groups(
    scan: PairScan, *, max_share: float, links: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, float]:
    """(n,) int64 groups whose largest holds at most `max_share` of the rows, and their threshold.

    The threshold is the lowest that the scan collected, raised in steps. A removed row shares the
    group of its keeper, and `links` (i, j) join, whatever the threshold.
    """
    itself = np.arange(scan.forest.n)
    i, j = (itself, scan.keeper)
    if links is not None:
        i = np.concatenate([i, links[0]])
        j = np.concatenate([j, links[1]])
    for level in scan.forest.levels:
        label = scan.forest.components(level, (i, j))
        if np.bincount(label).max() <= max_share * len(label):
            break
    return label, round(float(level), 6)


# --- folds ---


def folds(group: np.ndarray, n_folds: int) -> np.ndarray:
    """(n,) int64 fold of each row: whole groups, balanced.

    Raises ValueError with fewer groups than folds.
    """
    n_groups = len(np.unique(group))
    if n_groups < n_folds:
        raise ValueError(
            f"{n_groups} groups cannot fill {n_folds} folds: "
            "add rows, lower n_folds or raise group_similarity"
        )
    fold = np.empty(len(group), dtype=np.int64)
    splits = GroupKFold(n_folds).split(group, groups=group)
    for number, (_, held_out) in enumerate(splits):
        fold[held_out] = number
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

    sizes = np.bincount(fold[named], minlength=table["fold"].n_unique())
    for row in np.flatnonzero(~named).tolist():
        smallest = int(sizes.argmin())
        fold[row] = fold_of_group.setdefault(int(group[row]), smallest)
        sizes[fold[row]] += 1
    return fold


def _fold_table(file: Path) -> pl.DataFrame:
    """The table `id, fold` of a fold file, checked."""
    table = load_table(file)
    if not {"id", "fold"} <= set(table.columns):
        raise ValueError(f"{display_path(file)}: columns are {table.columns}, wanted id and fold")

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


def leaks(embeddings: np.ndarray, fold: np.ndarray, *, device: str = "cpu") -> pl.DataFrame:
    """For each fold its rows, and how near they come to the other folds.

    `highest` and `mean_highest` are over the rows' highest similarity to a row of another fold.
    """
    highest = similarity.nearest_across(embeddings, fold, device=device)
    rows = pl.DataFrame({"fold": fold, "highest": highest.astype(np.float64)})
    by_fold = rows.group_by("fold").agg(
        rows=pl.len().cast(pl.Int64),
        highest=pl.max("highest"),
        mean_highest=pl.mean("highest"),
    )
    return by_fold.sort("fold")
