"""Where the truth of the test images is known: why their score differs from the out-of-fold one."""

import numpy as np

from src.dedup import similarity

SURE = 2.0  # standard errors by which two means must differ to be called different


def nearest_to_training(
    truth: np.ndarray, targets: np.ndarray, fold: np.ndarray, *, device: str = "cpu"
) -> np.ndarray:
    """(m,) float32: each true prompt's highest similarity to what a fold's model learns from.

    The mean over folds of the highest similarity to `targets` (n, d) outside that fold: what
    `similarity.nearest_across` is for a training row. Both inputs are float32 unit rows.
    """
    # by fold once, and of all but one fold the highest: no comparison is done twice
    numbers = np.unique(fold)
    by_fold = [
        similarity.nearest_in(truth, targets[fold == number], device=device)[0]
        for number in numbers
    ]
    outside = [np.delete(by_fold, index, axis=0).max(axis=0) for index in range(len(numbers))]
    return np.mean(outside, axis=0)


def explain_gap(gap: float, tolerance: float, folds: dict, nearest: np.ndarray) -> str:
    """One sentence on `gap`, test score less out-of-fold score: what it says, or its likely cause.

    `folds` are the facts that notebook 01 recorded (`folds.fold_facts`), `nearest` (m,) the test
    prompts' similarity to the training prompts (`nearest_to_training`).
    """
    if abs(gap) <= tolerance:
        return "the out-of-fold score predicted the test score"

    causes = []
    if gap < 0 and folds["leaking"]:
        causes.append(_leak(folds))

    # a score rises with the similarity of a prompt to those learned from
    difference = float(nearest.mean()) - folds["nearest_mean"]
    error = np.hypot(
        nearest.std() / np.sqrt(len(nearest)), folds["nearest_sd"] / np.sqrt(folds["kept"])
    )
    if abs(difference) > SURE * error and difference * gap > 0:
        where = "further from" if difference < 0 else "nearer to"
        causes.append(
            f"test prompts are {where} the training prompts (mean of the highest similarity "
            f"{nearest.mean():.3f}) than out-of-fold prompts are ({folds['nearest_mean']:.3f})"
        )

    if causes:
        return "likely cause: " + "; and ".join(causes)
    return (
        f"neither leaking folds ({folds['leaking']} of {folds['kept']} scored rows) nor the "
        "distance of the test prompts explains it: the test images may be of another kind"
    )


def _leak(folds: dict) -> str:
    highest = max(entry["similarity"] for entry in folds["thresholds"])
    count = f"{folds['leaking']} of {folds['kept']} scored rows"
    asked = folds["group_similarity"]
    why = f"groups were too large and were split, at up to {highest:.2f}"
    if folds["given"]:
        why = "fold_file deals near-duplicates to different folds"
    return f"the folds leak: {count} are above {asked} with another fold, since {why}"
