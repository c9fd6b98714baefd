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

# --- groups and folds ---


def groups(embeddings: np.ndarray, threshold: float) -> np.ndarray:
    """(n,) int64 component labels: rows joined by a chain of pairs above `threshold` share a group."""
    return similarity.scan_pairs(embeddings, threshold, link=threshold).forest.components(threshold)


def same_value_pairs(*columns: Iterable) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (i, j) that join each row to the first one with an equal value in a column: equal prompts, equal images."""
    first, rows = [], []
    for column in columns:
        seen: dict = {}
        first += [seen.setdefault(value, row) for row, value in enumerate(column)]
        rows += range(len(first) - len(rows))
    return np.array(first, np.int64), np.array(rows, np.int64)


def balanced_groups(
    found: PairScan, *, max_share: float, links: tuple[np.ndarray, np.ndarray] | None = None
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
        raise ValueError(f"{display_path(file)}: columns are {table.columns}, wanted id and fold")
    table = table.select(pl.col("id").cast(pl.String), pl.col("fold").cast(pl.Int64, strict=False))
    numbers = table["fold"].unique().sort().to_list()
    if numbers != list(range(len(numbers))) or table["id"].is_duplicated().any():
        raise ValueError(
            f"{display_path(file)}: folds must be 0, 1, ... and each id named once; folds are {numbers[:10]}"
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
            f"{display_path(file)}: none of its {len(table)} ids is among the {len(ids)} rows, e.g. {ids[:2]}"
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
