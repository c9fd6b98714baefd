"""Prompts changed at random with their targets encoded anew, and what augmentation is worth."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from src import paths
from src.artifacts import load_embeddings
from src.data import prompts
from src.metrics import avg_cos, cosines
from src.model_a.folds import train_fold
from src.model_a.recipe import Recipe
from src.model_a.variants import Variant
from src.statistics import paired_bootstrap, verdict_line


@dataclass(frozen=True)
class TargetVersion:
    """Targets (n, 384) of which `rows` are those of changed prompts, `texts`."""

    targets: np.ndarray
    rows: np.ndarray
    texts: list[str]
    drift: float  # mean cosine of the changed targets to the original ones


def target_versions(
    pairs: pl.DataFrame,
    targets: np.ndarray,
    out: Path,
    *,
    recipe: Recipe,
    ablation: bool,
    seed: int,
    model: str,
    device: str,
) -> dict[str, TargetVersion]:
    """A version of `targets` (n, 384) by kind of change, for each that is trained on or ablated.

    Where a kind is ablated alone, only the rows that the first fold learns from are changed.
    """
    used = {"synonyms": recipe.augment_synonyms, "shuffle": recipe.augment_shuffle}
    texts = pairs["prompt"].to_list()
    first_fold = pairs["fold"] == pairs["fold"].min()
    ablated = np.flatnonzero(pairs["filter2"] & ~first_fold)

    versions = {}
    for kind, is_used in used.items():
        if not is_used and not ablation:
            continue
        rows = np.arange(len(texts)) if is_used else ablated
        changed, encoded = prompts.changed_targets(
            [texts[i] for i in rows],
            out / paths.CACHE,
            kind=kind,
            seed=seed,
            model=model,
            device=device,
        )
        version = np.array(targets)
        version[rows] = encoded
        drift = avg_cos(targets[rows], encoded)
        versions[kind] = TargetVersion(version, rows, changed, drift)
    return versions


def stacked_targets(
    targets: np.ndarray, versions: Mapping[str, TargetVersion], recipe: Recipe
) -> np.ndarray:
    """(v, n, 384): the prompts' own targets, then the versions that the recipe trains on."""
    used = {"synonyms": recipe.augment_synonyms, "shuffle": recipe.augment_shuffle}
    return np.stack([targets, *(versions[kind].targets for kind, on in used.items() if on)])


# --- what each augmentation is worth ---


def ablate_augmentations(
    variant: Variant,
    fold: np.ndarray,
    out: Path,
    versions: Mapping[str, TargetVersion],
    *,
    epochs: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Out-of-fold cosines on the first fold's rows, without and with each augmentation alone.

    By name: `none`, `rotation`, `flip`, `crop`, and the kinds of `versions`. Empty where `epochs`
    is 0.
    """
    if not epochs:
        return {}

    plain = replace(variant.recipe.without_augmentation(), epochs=epochs)
    own = variant.data.targets[0]
    trials = {
        "none": (plain, own[None]),
        "rotation": (replace(plain, augment_rotation=True), own[None]),
        "flip": (replace(plain, augment_flip=True), own[None]),
        "crop": (replace(plain, augment_crop=True), own[None]),
    }
    for kind, version in versions.items():
        recipe = replace(
            plain, augment_synonyms=kind == "synonyms", augment_shuffle=kind == "shuffle"
        )
        trials[kind] = (recipe, np.stack([own, version.targets]))

    # the first fold stands for all: what is compared are trainings of one and the same rows
    number = int(fold.min())
    cosine_of = {}
    for name, (recipe, targets) in trials.items():
        trial = replace(variant, recipe=recipe, data=replace(variant.data, targets=targets))
        task = trial.task(fold, number, scored=variant.visible, seed=seed) | {"label": name}
        base = out / paths.FOLD.format(variant=f"ablation_{name}", fold=number)
        train_fold(trial.encoder, trial.data, trial.test, base=base, **task)
        _, oof = load_embeddings(base.with_name(base.name + "_oof"))
        cosine_of[name] = cosines(own[task["scored"]], oof)
    return cosine_of


def trial_verdict(
    name: str, cosine: np.ndarray, plain: np.ndarray, *, groups: np.ndarray, seed: int
) -> str:
    """One line on a trial of `ablate_augmentations` against the one without augmentation."""
    if np.array_equal(cosine, plain):
        return f"{name}: inconclusive, neither trial improved on its start"
    gain = paired_bootstrap(cosine, plain, groups=groups, seed=seed)
    return verdict_line(name, gain)
