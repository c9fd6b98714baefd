"""Confidence: the cosine with the truth to expect, a ridge on out-of-fold rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src import artifacts, paths
from src.ensemble.blending import combine, cross_fit_weights, fit_weights
from src.ensemble.members import Members
from src.metrics import cosines

# of the ridge, whose columns are standardized: from nothing to far above the number of rows
PENALTIES = np.logspace(0, 6, 13)


def agreement(
    members: Members, weights: Mapping[str, float], sides: tuple[Sequence[str], Sequence[str]]
) -> np.ndarray:
    """(n,) float32: the cosine of the blend of Model A's members with that of Model B's, the two
    `sides`.

    Each side is blended by its weights; equally where all of them are 0.
    """
    # weights within a side, which sum to 1 there
    blends = []
    for side in sides:
        total = sum(weights[name] for name in side)
        share = {name: weights[name] / total if total > 0 else 1 / len(side) for name in side}
        blends.append(combine({name: members[name] for name in side}, share))
    return cosines(*blends)


@dataclass(frozen=True)
class Confidence:
    """The cosine with the truth to expect of a prediction: linear in the prediction, since image
    content predicts difficulty, and in the agreement of A and B; never outside its range on the
    rows that it was fitted on.
    """

    weight: list[float]  # (d,), of the prediction
    agreement: float
    intercept: float
    low: float  # of the fitted rows
    high: float

    def __call__(self, prediction: np.ndarray, agreement: np.ndarray) -> np.ndarray:
        """(n, d) unit rows and their (n,) agreement -> (n,) float32."""
        of_prediction = prediction @ np.array(self.weight)
        expected = of_prediction + self.agreement * agreement + self.intercept
        return np.clip(expected, self.low, self.high).astype(np.float32)


def load_weights(output: Path, *, new_images: bool = False) -> dict[str, float]:
    """The weight of each member, as stage 04 fitted them.

    For `new_images` those without the members from outside, which cannot predict them.
    """
    return _of_blend(output, "weights", new_images=new_images)


def load_confidence(output: Path, *, new_images: bool = False) -> Confidence:
    """What stage 04 fitted. Raises ValueError naming the stage to run when `blend.json` holds none:
    an earlier version wrote it.
    """
    return Confidence(**_of_blend(output, "confidence", new_images=new_images))


def _of_blend(output: Path, key: str, *, new_images: bool) -> dict:
    blend = artifacts.load_json(output / paths.BLEND)
    if new_images:
        blend = blend.get("new_images", blend)
    if key not in blend:
        raise ValueError(
            f"{paths.display_path(output / paths.BLEND)} was written by an earlier version: "
            "run ./run_all.sh --from 04 first"
        )
    return blend[key]


def fit_confidence(prediction: np.ndarray, agreement: np.ndarray, cosine: np.ndarray) -> Confidence:
    """Ridge regression of the true cosine (n,) on out-of-fold predictions (n, d) and their
    agreement (n,).

    The penalty is chosen by leaving one row out.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    # standardized, so that one penalty is fair to 384 small columns and one large one
    x = np.column_stack([prediction, agreement]).astype(np.float64)
    scaler = StandardScaler().fit(x)
    ridge = RidgeCV(PENALTIES).fit(scaler.transform(x), cosine)
    fitted = np.clip(ridge.predict(scaler.transform(x)), -1, 1)

    # back from standardized columns to the columns themselves
    slope = ridge.coef_ / scaler.scale_
    return Confidence(
        weight=slope[:-1].tolist(),
        agreement=float(slope[-1]),
        intercept=float(ridge.intercept_ - slope @ scaler.mean_),
        low=float(fitted.min()),
        high=float(fitted.max()),
    )


def cross_fit_confidence(
    prediction: np.ndarray, agreement: np.ndarray, cosine: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """(n,) float32 confidence of each fold's rows as fitted on the other folds: what judges the
    confidence.
    """
    # no row's own cosine takes part in its confidence
    confidence = np.empty(len(cosine), dtype=np.float32)
    for f in np.unique(fold):
        mine = fold == f
        fitted = fit_confidence(prediction[~mine], agreement[~mine], cosine[~mine])
        confidence[mine] = fitted(prediction[mine], agreement[mine])
    return confidence


def fit_blend(
    truth: np.ndarray,
    members: Members,
    fold: np.ndarray,
    sides: tuple[Sequence[str], Sequence[str]],
    *,
    groups: np.ndarray | None = None,
) -> dict[str, dict]:
    """The `weights` and the `confidence` of a blend of these members, as blend.json keeps them."""
    weights = fit_weights(truth, members, groups=groups)
    prediction, _ = cross_fit_weights(truth, members, fold, groups=groups)

    agree = agreement(members, weights, sides)
    fitted = fit_confidence(prediction, agree, cosines(truth, prediction))
    return {"weights": weights, "confidence": vars(fitted)}
