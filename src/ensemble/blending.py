"""The blend of Models A and B (equation 6) and its weights, chosen on out-of-fold rows."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import polars as pl
from scipy.optimize import minimize, minimize_scalar

from src.ensemble.members import Members
from src.metrics import cosines, l2_normalize
from src.statistics import Interval, standard_error, verdict

ZERO = 1e-6  # a weight that the optimizer leaves below this counts as 0
TINY = 1e-12  # below the square of a blend's length: keeps opposite vectors from dividing by 0


# --- two of them, one alpha ---


def blend(a: np.ndarray, b: np.ndarray, alpha: float) -> np.ndarray:
    """Equation 6 on unit rows, then unit length: alpha a + (1 - alpha) b, (n, d) float32."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha = {alpha} is not within 0..1")
    if a.shape != b.shape:
        raise ValueError(f"a has shape {a.shape}, b {b.shape}")
    return l2_normalize(alpha * l2_normalize(a) + (1 - alpha) * l2_normalize(b))


def search_alpha(truth: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The alpha in [0, 1] with the highest mean cosine of the blend: a grid of hundredths, then
    refined around its best.
    """
    score = _mean_score(truth, a, b)
    # the grid finds the right hill, the bounded search its top
    best = float(max(np.linspace(0, 1, 101), key=score))
    ends = (max(best - 0.01, 0), min(best + 0.01, 1))
    refined = minimize_scalar(lambda alpha: -score(alpha), bounds=ends, method="bounded")
    return max(best, float(refined.x), key=score)


def curve(truth: np.ndarray, a: np.ndarray, b: np.ndarray, alphas: Iterable[float]) -> np.ndarray:
    """(number of alphas,) float64: the mean cosine of the blend at each alpha."""
    score = _mean_score(truth, a, b)
    return np.array([score(alpha) for alpha in alphas])


def _mean_score(truth: np.ndarray, a: np.ndarray, b: np.ndarray) -> Callable[[float], float]:
    """The mean cosine of the blend as a function of alpha."""
    # the blend's cosine needs only three numbers a row: an alpha costs n operations, not n d
    truth_a = cosines(truth, a).astype(np.float64)
    truth_b = cosines(truth, b).astype(np.float64)
    a_b = cosines(a, b).astype(np.float64)

    def score(alpha: float) -> float:
        squared = alpha**2 + (1 - alpha) ** 2 + 2 * alpha * (1 - alpha) * a_b
        length = np.sqrt(np.maximum(squared, TINY))
        return float(np.mean((alpha * truth_a + (1 - alpha) * truth_b) / length))

    return score


def cross_fit(
    truth: np.ndarray, a: np.ndarray, b: np.ndarray, fold: np.ndarray
) -> tuple[np.ndarray, dict[int, float]]:
    """The blend (n, d) of each fold by the alpha found on the other folds, and that alpha for each
    fold.
    """
    folds = np.unique(fold)
    if len(folds) < 2:
        raise ValueError(f"alpha from the other folds needs at least 2 folds, got {folds.tolist()}")

    # no row's own truth takes part in the choice of its alpha
    prediction = np.empty_like(a)
    alphas = {}
    for f in folds:
        mine = fold == f
        alphas[int(f)] = search_alpha(truth[~mine], a[~mine], b[~mine])
        prediction[mine] = blend(a[mine], b[mine], alphas[int(f)])
    return prediction, alphas


def flat_range(
    truth: np.ndarray, a: np.ndarray, b: np.ndarray, *, groups: np.ndarray | None = None
) -> tuple[float, float]:
    """The lowest and highest alpha around the best whose score lies within one standard error of
    the best score.
    """
    best = search_alpha(truth, a, b)
    error = standard_error(cosines(truth, blend(a, b, best)), groups)
    lowest_score = _mean_score(truth, a, b)(best) - error

    # the stretch around the best that holds no alpha with a lower score
    grid = np.union1d(np.linspace(0, 1, 1001), best)
    outside = grid[curve(truth, a, b, grid) < lowest_score]
    below = outside[outside < best]
    above = outside[outside > best]
    inside = grid[(grid > below.max(initial=-1)) & (grid < above.min(initial=2))]
    return float(inside.min()), float(inside.max())


def verdict_sentence(difference: Interval, single: str) -> str:
    """What the paired difference of the ensemble and its better `single` model says."""
    sentences = {
        "helps": f"the ensemble is better than {single}: the interval lies above 0",
        "hurts": f"the ensemble is worse than {single}: the interval lies below 0",
        "unclear": f"the ensemble and {single} cannot be told apart here: the interval contains 0",
    }
    return sentences[verdict(difference)]


# --- any number of them, weights on the simplex ---


def combine(members: Members, weights: Mapping[str, float]) -> np.ndarray:
    """Equation 6 for any number: the sum of weight times unit member, at unit length, (n, d)
    float32.

    Raises ValueError unless `weights` names every member, none is negative and they sum to 1.
    """
    if set(weights) != set(members):
        raise ValueError(f"weights for {sorted(weights)}, members are {sorted(members)}")
    if min(weights.values()) < 0 or abs(sum(weights.values()) - 1) > 1e-6:
        raise ValueError(f"weights {dict(weights)} must not be negative and must sum to 1")

    # a member with weight 0 is not even read
    used = {name: weight for name, weight in weights.items() if weight > 0}
    terms = [np.float32(weight) * l2_normalize(members[name]) for name, weight in used.items()]
    return l2_normalize(np.sum(terms, axis=0))


def fit_weights(
    truth: np.ndarray, members: Members, *, groups: np.ndarray | None = None
) -> dict[str, float]:
    """The weights on the simplex with the highest mean cosine, in the members' order; a member that
    adds nothing gets 0.

    It adds nothing when leaving it out costs at most one standard error of that paired difference
    (by `groups`).
    """
    along, gram = _products(truth, members)
    kept = list(range(len(members)))
    weight = _optimum(along, gram)

    # leave out the member that costs least, one at a time, while its cost is within the error
    while len(kept) > 1:
        row_score = _row_scores(along, gram, kept, weight)
        trials = []
        for left_out in kept:
            rest = [i for i in kept if i != left_out]
            rest_weight = _optimum(along[:, rest], gram[:, rest][:, :, rest])
            lost = row_score - _row_scores(along, gram, rest, rest_weight)
            trials.append((lost, rest, rest_weight))

        lost, rest, rest_weight = min(trials, key=lambda trial: trial[0].mean())
        if lost.mean() > standard_error(lost, groups):
            break
        kept = rest
        weight = rest_weight

    by_index = dict(zip(kept, weight, strict=True))
    return {name: float(by_index.get(i, 0.0)) for i, name in enumerate(members)}


def _products(truth: np.ndarray, members: Members) -> tuple[np.ndarray, np.ndarray]:
    """What a blend's cosine needs of each row: (n, m) cosines with the truth and (n, m, m) cosines
    of the members.
    """
    stack = np.stack([l2_normalize(rows) for rows in members.values()], axis=1)
    along = np.einsum("nd,nmd->nm", l2_normalize(truth), stack)
    gram = np.einsum("nid,njd->nij", stack, stack, optimize=True)
    return along.astype(np.float64), gram.astype(np.float64)


def _row_scores(
    along: np.ndarray, gram: np.ndarray, kept: list[int], weight: np.ndarray
) -> np.ndarray:
    """(n,) float64: the cosine of each row's blend of the `kept` members with the truth."""
    mixed = gram[:, kept][:, :, kept] @ weight
    length = np.sqrt(np.maximum(mixed @ weight, TINY))
    return along[:, kept] @ weight / length


def _optimum(along: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """(m,) weights that maximize the mean cosine."""
    m = along.shape[1]
    if m == 1:
        return np.ones(1)

    # it is not concave, so SLSQP starts from the middle and from near every corner
    sums_to_one = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(m)}
    results = []
    for start in [np.full(m, 1 / m), *(0.9 * np.eye(m) + 0.1 / m)]:
        result = minimize(
            _loss,
            start,
            (along, gram),
            jac=True,
            method="SLSQP",
            bounds=[(0, 1)] * m,
            constraints=sums_to_one,
            options={"ftol": 1e-10, "maxiter": 200},
        )
        results.append(result)
    best = min(results, key=lambda result: result.fun).x

    # the optimizer ends near 0, not at it
    best = np.where(best < ZERO, 0, best)
    return best / best.sum()


def _loss(weight: np.ndarray, along: np.ndarray, gram: np.ndarray) -> tuple[float, np.ndarray]:
    """Minus the mean cosine of the blend, and its gradient (m,)."""
    mixed = gram @ weight
    length = np.sqrt(np.maximum(mixed @ weight, TINY))
    dot = along @ weight
    slope = along / length[:, None] - (dot / length**3)[:, None] * mixed
    return -float(np.mean(dot / length)), -slope.mean(axis=0)


def cross_fit_weights(
    truth: np.ndarray, members: Members, fold: np.ndarray, *, groups: np.ndarray | None = None
) -> tuple[np.ndarray, pl.DataFrame]:
    """The blend (n, d) of each fold by the weights fitted on the other folds, and those weights:
    fold, one column a member.
    """
    folds = np.unique(fold)
    if len(folds) < 2:
        raise ValueError(
            f"weights from the other folds need at least 2 folds, got {folds.tolist()}"
        )

    # no row's own truth takes part in the choice of its weights
    prediction = np.empty_like(truth)
    fitted = []
    for f in folds:
        mine = fold == f
        others = {name: rows[~mine] for name, rows in members.items()}
        other_groups = None if groups is None else groups[~mine]
        weights = fit_weights(truth[~mine], others, groups=other_groups)
        prediction[mine] = combine({name: rows[mine] for name, rows in members.items()}, weights)
        fitted.append({"fold": int(f), **weights})
    return prediction, pl.DataFrame(fitted)
