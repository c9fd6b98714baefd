"""The blend of Models A and B (equation 6), its weights, and the intervals, slices and the table that judge it.

Two predictions are blended by one alpha, as in the paper; any number of them by weights on the simplex. Both are fitted on
out-of-fold rows and scored cross-fitted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from scipy.optimize import minimize, minimize_scalar

from src import artifacts, paths
from src.metrics import cosines, unit

ZERO = 1e-6  # an optimiser's weight below this is none
FEW = 10  # rows that are too few to tell whether they were shuffled
PENALTIES = np.logspace(
    0, 6, 13
)  # of the ridge behind the confidence; standardised columns, so some of the number of rows
PAIRED = 3.0  # standard errors by which rows must fit their own partner better than a stranger

PAPER = {
    "CLIP": 0.5642,
    "CLIP + data filter 1": 0.5684,
    "CLIP + data filter 2": 0.5721,
    "Model A": 0.5753,
    "Model B": 0.5531,
    "Ensemble": 0.5961,
}  # the paper's Table 1
OF_ALL = "Ensemble of all members"  # the row beyond it, where there are more than two

Members = Mapping[str, np.ndarray]  # name -> (n, d) float32, the same rows in the same order


# --- the members ---


def member_names(output: Path) -> tuple[list[str], list[str]]:
    """The predictions of Model A and those of Model B that stages 02 and 03 left, by name."""
    found = []
    for file, alone in ((paths.MEMBERS_A, "model_a"), (paths.MEMBERS_B, "model_b")):
        found.append(
            artifacts.load_json(output / file)["members"] if (output / file).exists() else [alone]
        )
    both = set(found[0]) & set(found[1])
    if both:
        raise ValueError(f"members of Model A and of Model B share the names {sorted(both)}")
    return found[0], found[1]


def load_members(output: Path, ids: Sequence[str], what: str) -> dict[str, np.ndarray]:
    """Every member's `what` ("oof" or "test") predictions of `ids`, in that order, those of Model A first."""
    templates = {"oof": (paths.OOF, paths.OOF_B), "test": (paths.TEST, paths.TEST_B)}[what]
    a, b = member_names(output)
    bases = {name: output / templates[0].format(row=name) for name in a}
    bases |= {name: output / templates[1].format(member=name) for name in b}
    return {name: artifacts.load_embeddings(base, ids)[1] for name, base in bases.items()}


def check_pairing(
    reference: np.ndarray, members: Members, blocks: np.ndarray | None = None
) -> pl.DataFrame:
    """Whether row i of each member belongs to row i of `reference`: the guard against ids that were shuffled between artifacts.

    A row's own cosine must exceed its mean cosine with all rows of its block by `PAIRED` standard errors of that difference; a
    block of fewer than `FEW` rows cannot tell.
    Returns member, block, contrast, errors. Raises ValueError naming the members and blocks that are not better than shuffled.
    """
    blocks = np.zeros(len(reference), dtype=np.int64) if blocks is None else blocks
    found = []
    for name, rows in members.items():
        for block in np.unique(blocks):
            mine = unit(reference[blocks == block])
            own = np.einsum(
                "nd,nd->n", mine - mine.mean(axis=0), unit(rows[blocks == block])
            ).astype(np.float64)
            spread = own.std() / np.sqrt(len(own))
            found.append((name, int(block), own.mean(), own.mean() / max(spread, 1e-12)))
    schema = {"member": pl.String, "block": pl.Int64, "contrast": pl.Float64, "errors": pl.Float64}
    table = pl.DataFrame(found, schema=schema, orient="row")
    few = [
        block
        for block, rows in zip(*np.unique(blocks, return_counts=True), strict=True)
        if rows < FEW
    ]
    wrong = table.filter((pl.col("errors") < PAIRED) & ~pl.col("block").is_in(few))
    if len(wrong):
        examples = [
            f"{name} in block {block}: {contrast:+.4f}, {errors:+.1f} standard errors"
            for name, block, contrast, errors in wrong.head(3).iter_rows()
        ]
        raise ValueError(
            f"{len(wrong)} of {len(table)} blocks of rows fit their own partner no better than a stranger, e.g. "
            f"{examples}: ids were shuffled between two artifacts, or the member knows nothing of the picture"
        )
    return table


# --- two of them, one alpha ---


def blend(a: np.ndarray, b: np.ndarray, alpha: float) -> np.ndarray:
    """Equation 6 on unit rows, then unit length: alpha a + (1 - alpha) b, (n, d) float32."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha = {alpha} is not within 0..1")
    if a.shape != b.shape:
        raise ValueError(f"a has shape {a.shape}, b {b.shape}")
    return unit(alpha * unit(a) + (1 - alpha) * unit(b))


def search_alpha(truth: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """The alpha in [0, 1] with the highest mean cosine of the blend: a grid of hundredths, then refined around its best."""
    score = _mean_score(truth, a, b)
    grid = np.linspace(0, 1, 101)
    best = float(max(grid, key=score))
    ends = max(best - 0.01, 0), min(best + 0.01, 1)
    refined = float(minimize_scalar(lambda alpha: -score(alpha), bounds=ends, method="bounded").x)
    return max(best, refined, key=score)


def curve(truth: np.ndarray, a: np.ndarray, b: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """(len(alphas),) float64: the mean cosine of the blend at each alpha."""
    score = _mean_score(truth, a, b)
    return np.array([score(alpha) for alpha in alphas])


def _mean_score(truth: np.ndarray, a: np.ndarray, b: np.ndarray) -> Callable[[float], float]:
    # the blend's cosine needs only three numbers a row, so an alpha costs n operations instead of n d
    ta, tb, ab = (cosines(*pair).astype(np.float64) for pair in ((truth, a), (truth, b), (a, b)))

    def score(alpha: float) -> float:
        length = np.sqrt(
            np.maximum(alpha**2 + (1 - alpha) ** 2 + 2 * alpha * (1 - alpha) * ab, 1e-12)
        )
        return float(np.mean((alpha * ta + (1 - alpha) * tb) / length))

    return score


def cross_fit(
    truth: np.ndarray, a: np.ndarray, b: np.ndarray, fold: np.ndarray
) -> tuple[np.ndarray, dict[int, float]]:
    """The blend (n, d) of each fold by the alpha found on the other folds, and that alpha for each fold."""
    folds = np.unique(fold)
    if len(folds) < 2:
        raise ValueError(f"alpha from the other folds needs at least 2 folds, got {folds.tolist()}")
    prediction, alphas = np.empty_like(a), {}
    for f in folds:
        mine = fold == f
        alphas[int(f)] = search_alpha(truth[~mine], a[~mine], b[~mine])
        prediction[mine] = blend(a[mine], b[mine], alphas[int(f)])
    return prediction, alphas


def flat_range(
    truth: np.ndarray, a: np.ndarray, b: np.ndarray, *, groups: np.ndarray | None = None
) -> tuple[float, float]:
    """The lowest and highest alpha around the best whose score lies within one standard error of the best score."""
    best = search_alpha(truth, a, b)
    lowest_score = _mean_score(truth, a, b)(best) - standard_error(
        cosines(truth, blend(a, b, best)), groups
    )
    grid = np.union1d(np.linspace(0, 1, 1001), best)
    outside = grid[curve(truth, a, b, grid) < lowest_score]
    below, above = outside[outside < best], outside[outside > best]
    inside = grid[(grid > below.max(initial=-1)) & (grid < above.min(initial=2))]
    return float(inside.min()), float(inside.max())


# --- any number of them, weights on the simplex ---


def combine(members: Members, weights: Mapping[str, float]) -> np.ndarray:
    """Equation 6 for any number: the sum of weight times unit member, at unit length, (n, d) float32.

    Raises ValueError unless `weights` names every member, none is negative and they sum to 1.
    """
    if set(weights) != set(members):
        raise ValueError(f"weights for {sorted(weights)}, members are {sorted(members)}")
    if min(weights.values()) < 0 or abs(sum(weights.values()) - 1) > 1e-6:
        raise ValueError(f"weights {dict(weights)} must not be negative and must sum to 1")
    return unit(
        sum(
            np.float32(weight) * unit(members[name])
            for name, weight in weights.items()
            if weight > 0
        )
    )


def fit_weights(
    truth: np.ndarray, members: Members, *, groups: np.ndarray | None = None
) -> dict[str, float]:
    """The weights on the simplex with the highest mean cosine, in the members' order; a member that adds nothing gets 0.

    It adds nothing when leaving it out costs at most one standard error of that paired difference (by `groups`).
    """
    names = list(members)
    along, gram = _products(truth, members)
    kept = list(range(len(names)))
    weight = _optimum(along, gram)
    while len(kept) > 1:
        row_score = _row_scores(along, gram, kept, weight)
        trials = []
        for j in kept:
            rest = [i for i in kept if i != j]
            fewer = _optimum(along[:, rest], gram[:, rest][:, :, rest])
            trials.append((row_score - _row_scores(along, gram, rest, fewer), rest, fewer))
        lost, rest, fewer = min(trials, key=lambda trial: trial[0].mean())
        if lost.mean() > standard_error(lost, groups):
            break
        kept, weight = rest, fewer
    by_place = dict(zip(kept, weight, strict=True))
    return {name: float(by_place.get(i, 0.0)) for i, name in enumerate(names)}


def _products(truth: np.ndarray, members: Members) -> tuple[np.ndarray, np.ndarray]:
    """What a blend's cosine needs of each row: (n, m) cosines with the truth and (n, m, m) cosines of the members."""
    stack = np.stack([unit(rows) for rows in members.values()], axis=1)
    along = np.einsum("nd,nmd->nm", unit(truth), stack)
    return along.astype(np.float64), np.einsum("nid,njd->nij", stack, stack, optimize=True).astype(
        np.float64
    )


def _row_scores(
    along: np.ndarray, gram: np.ndarray, kept: list[int], weight: np.ndarray
) -> np.ndarray:
    mixed = gram[:, kept][:, :, kept] @ weight
    return along[:, kept] @ weight / np.sqrt(np.maximum(mixed @ weight, 1e-12))


def _optimum(along: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """(m,) weights that maximise the mean cosine: SLSQP from the middle and from near every corner, since it is not concave."""
    m = along.shape[1]
    sums_to_one = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(m)}
    starts = [np.full(m, 1 / m), *(0.9 * np.eye(m) + 0.1 / m)] if m > 1 else [np.ones(1)]
    found = [
        minimize(
            _loss,
            start,
            (along, gram),
            jac=True,
            method="SLSQP",
            bounds=[(0, 1)] * m,
            constraints=sums_to_one,
            options={"ftol": 1e-10, "maxiter": 200},
        )
        for start in starts
    ]
    best = min(found, key=lambda result: result.fun).x
    best = np.where(best < ZERO, 0, best)
    return best / best.sum()


def _loss(weight: np.ndarray, along: np.ndarray, gram: np.ndarray) -> tuple[float, np.ndarray]:
    """Minus the mean cosine of the blend, and its gradient (m,)."""
    mixed = gram @ weight
    length = np.sqrt(np.maximum(mixed @ weight, 1e-12))
    dot = along @ weight
    slope = along / length[:, None] - (dot / length**3)[:, None] * mixed
    return -float(np.mean(dot / length)), -slope.mean(axis=0)


def cross_fit_weights(
    truth: np.ndarray, members: Members, fold: np.ndarray, *, groups: np.ndarray | None = None
) -> tuple[np.ndarray, pl.DataFrame]:
    """The blend (n, d) of each fold by the weights fitted on the other folds, and those weights: fold, one column a member."""
    folds = np.unique(fold)
    if len(folds) < 2:
        raise ValueError(
            f"weights from the other folds need at least 2 folds, got {folds.tolist()}"
        )
    prediction, fitted = np.empty_like(truth), []
    for f in folds:
        mine = fold == f
        others = {name: rows[~mine] for name, rows in members.items()}
        weights = fit_weights(
            truth[~mine], others, groups=None if groups is None else groups[~mine]
        )
        prediction[mine] = combine({name: rows[mine] for name, rows in members.items()}, weights)
        fitted.append({"fold": int(f), **weights})
    return prediction, pl.DataFrame(fitted)


# --- confidence: how far to trust one prediction ---


def agreement(
    members: Members, weights: Mapping[str, float], sides: tuple[Sequence[str], Sequence[str]]
) -> np.ndarray:
    """(n,) float32: the cosine of the blend of Model A's members with that of Model B's, each by its weights (equal if all 0)."""
    blends = []
    for side in sides:
        total = sum(weights[name] for name in side)
        share = {name: weights[name] / total if total > 0 else 1 / len(side) for name in side}
        blends.append(combine({name: members[name] for name in side}, share))
    return cosines(*blends)


@dataclass(frozen=True)
class Confidence:
    """The cosine with the truth that a prediction is expected to have: linear in the prediction itself, since what is depicted
    tells how well it can be told, and in the agreement of A and B; within what it was for the rows that it was fitted on.
    """

    weight: list[float]  # (d,), of the prediction
    agreement: float
    intercept: float
    low: float
    high: float

    def __call__(self, prediction: np.ndarray, agreement: np.ndarray) -> np.ndarray:
        """(n, d) unit rows and their (n,) agreement -> (n,) float32."""
        expected = prediction @ np.array(self.weight) + self.agreement * agreement + self.intercept
        return np.clip(expected, self.low, self.high).astype(np.float32)


def load_confidence(output: Path) -> Confidence:
    """What stage 04 fitted. Raises ValueError naming the stage to run when `blend.json` holds none: an earlier version wrote it."""
    blend = artifacts.load_json(output / paths.BLEND)
    if "confidence" not in blend:
        raise ValueError(
            f"{paths.shown(output / paths.BLEND)} was written by an earlier version: run ./run_all.sh --from 04 first"
        )
    return Confidence(**blend["confidence"])


def fit_confidence(prediction: np.ndarray, agreement: np.ndarray, cosine: np.ndarray) -> Confidence:
    """Ridge regression of the true cosine (n,) on out-of-fold predictions (n, d) and their agreement (n,).

    The penalty is chosen by leaving one row out.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    x = np.column_stack([prediction, agreement]).astype(np.float64)
    scaler = StandardScaler().fit(x)
    ridge = RidgeCV(PENALTIES).fit(scaler.transform(x), cosine)
    slope, fitted = ridge.coef_ / scaler.scale_, np.clip(ridge.predict(scaler.transform(x)), -1, 1)
    return Confidence(
        slope[:-1].tolist(),
        float(slope[-1]),
        float(ridge.intercept_ - slope @ scaler.mean_),
        float(fitted.min()),
        float(fitted.max()),
    )


def cross_fit_confidence(
    prediction: np.ndarray, agreement: np.ndarray, cosine: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """(n,) float32 confidence of each fold's rows as fitted on the other folds: what judges the confidence."""
    confidence = np.empty(len(cosine), dtype=np.float32)
    for f in np.unique(fold):
        mine = fold == f
        confidence[mine] = fit_confidence(prediction[~mine], agreement[~mine], cosine[~mine])(
            prediction[mine], agreement[mine]
        )
    return confidence


# --- intervals and tables ---


def standard_error(values: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Standard error of the mean of `values` (n,); rows of one group count as one draw."""
    label = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    apart = np.bincount(label, weights=values - np.mean(values, dtype=np.float64))
    return float(np.sqrt(np.square(apart).sum()) / len(values))


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def bootstrap(
    values: np.ndarray, *, groups: np.ndarray | None = None, samples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of `values` (n,) with the 2.5 and 97.5 percentiles over resamples; whole groups are drawn when given.

    Rows of one group are not independent, so drawing rows would make the interval too narrow.
    """
    if len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(
            f"{len(values)} values, {(~np.isfinite(values)).sum()} of them NaN or infinite"
        )
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"{len(groups)} groups for {len(values)} values")
    label = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    total, count = np.bincount(label, weights=values), np.bincount(label)
    rng, means, rows = (
        np.random.default_rng(seed),
        np.empty(samples),
        max(1, 4_000_000 // len(total)),
    )
    for start in range(0, samples, rows):
        drawn = rng.integers(len(total), size=(min(rows, samples - start), len(total)))
        means[start : start + rows] = total[drawn].sum(axis=1) / count[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(np.mean(values, dtype=np.float64)), float(low), float(high))


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The mean of `first` - `second` (n,), row by row on the same rows, with its interval as in `bootstrap`."""
    if first.shape != second.shape:
        raise ValueError(f"{first.shape} and {second.shape} values do not pair")
    return bootstrap(first.astype(np.float64) - second, groups=groups, samples=samples, seed=seed)


@dataclass(frozen=True)
class Scored:
    """One model on the out-of-fold rows."""

    model: str
    rows_trained: int
    cosines: np.ndarray  # (n,)
    seconds: float | None


def table1(
    rows: Sequence[Scored], *, groups: np.ndarray | None = None, samples: int = 2000, seed: int = 0
) -> pl.DataFrame:
    """Table 1: model, rows_trained, avg_cos, low, high (95 %), seconds, paper; in order. All scored on the same pictures."""
    sizes = {row.model: len(row.cosines) for row in rows}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"models are scored on different numbers of rows: {sizes}")
    table = []
    for row in rows:
        found = bootstrap(row.cosines, groups=groups, samples=samples, seed=seed)
        table.append(
            (
                row.model,
                row.rows_trained,
                found.mean,
                found.low,
                found.high,
                row.seconds,
                PAPER.get(row.model),
            )
        )
    numbers = dict.fromkeys(("avg_cos", "low", "high", "seconds", "paper"), pl.Float64)
    return pl.DataFrame(
        table, schema={"model": pl.String, "rows_trained": pl.Int64, **numbers}, orient="row"
    )


def by_label(
    values: np.ndarray,
    labels: Sequence[str],
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
    samples: int = 1000,
) -> pl.DataFrame:
    """The mean of `values` (n,) for each label with its 95 % interval: label, rows, avg_cos, low, high; lowest first."""
    if len(labels) != len(values):
        raise ValueError(f"{len(labels)} labels for {len(values)} values")
    labels, table = np.asarray(labels), []
    for label in np.unique(labels):
        mine = labels == label
        found = bootstrap(
            values[mine],
            groups=None if groups is None else groups[mine],
            samples=samples,
            seed=seed,
        )
        table.append((str(label), int(mine.sum()), found.mean, found.low, found.high))
    schema = {
        "label": pl.String,
        "rows": pl.Int64,
        "avg_cos": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
    }
    return pl.DataFrame(table, schema=schema, orient="row").sort("avg_cos", "label")
