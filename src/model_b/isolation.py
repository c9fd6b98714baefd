"""What a query may find: no row of its own fold, nor a text-only prompt that repeats one."""

import numpy as np

from src.model_b.datastore import ColumnView

TEXT_ONLY = -1  # the fold of a prompt that has no image


def visible_rows(run_fold: np.ndarray, conflicts: np.ndarray, fold: int) -> np.ndarray:
    """(n,) bool: the run's rows that a query of `fold` may find; the one place that isolates folds.

    `run_fold` (n,) is TEXT_ONLY for a prompt without an image; `conflicts` is (n, n_folds) bool.
    Hidden are the rows of the fold itself, and so the query, its group and its duplicates (a group
    lies in one fold), and what conflicts with the fold.
    """
    if conflicts.shape[0] != len(run_fold) or not 0 <= fold < conflicts.shape[1]:
        raise ValueError(
            f"fold {fold}, {len(run_fold)} rows of the run, conflicts of shape {conflicts.shape}"
        )
    return (run_fold != fold) & ~conflicts[:, fold]


def folds_of_run(fold: np.ndarray, n_rows: int) -> np.ndarray:
    """(n_rows,) int64: the training rows' `fold`, which come first, then TEXT_ONLY."""
    return np.concatenate([fold, np.full(n_rows - len(fold), TEXT_ONLY)])


def text_conflicts(
    text: np.ndarray, train: np.ndarray, fold: np.ndarray, threshold: float
) -> np.ndarray:
    """(n_text, n_folds) bool: some training row of the fold is above `threshold` in cosine.

    `text` and `train` are unit sentence embeddings; `train` holds every readable row, kept by the
    filters or not.
    """
    if len(fold) != len(train):
        raise ValueError(f"{len(fold)} folds for {len(train)} training rows")

    # fold by fold: a prompt may repeat a row of one fold and stay useful to the others
    conflicts = np.zeros((len(text), int(fold.max()) + 1), bool)
    for f in np.unique(fold):
        highest_cosine = (text @ train[fold == f].T).max(axis=1)
        conflicts[:, f] = highest_cosine > threshold
    return conflicts


def run_conflicts(
    values: ColumnView,
    n_free: int,
    train: np.ndarray,
    fold: np.ndarray,
    threshold: float,
    *,
    rows: int = 2048,
) -> np.ndarray:
    """`text_conflicts` of all rows of a run (n, n_folds), read `rows` at a time.

    The first `n_free` rows have no conflicts: training prompts, since their fold says who may see
    them, and captions of the images, which were given without knowing the prompts.
    """
    n = len(values.rows)
    conflicts = np.zeros((n, int(fold.max()) + 1), bool)
    for start in range(n_free, n, rows):
        block = np.arange(start, min(start + rows, n))
        conflicts[block] = text_conflicts(values.take(block), train, fold, threshold)
    return conflicts
