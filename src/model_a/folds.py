"""Folds on disk: trained once, kept, loaded again, and their predictions joined."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from src.artifacts import (
    atomic,
    fingerprint,
    load_embeddings,
    load_json,
    readable,
    save_embeddings,
    save_json,
)
from src.encoder import Encoder
from src.metrics import avg_cos
from src.model_a import head as heads
from src.model_a.fit import FinalPlan, fit, fit_final, predict
from src.model_a.fitted import FittedModel, load_weights, restore, weights
from src.model_a.recipe import Recipe
from src.model_a.tower import make_tower
from src.model_a.training_set import TrainingSet
from src.model_a.views import PLAIN


def train_fold(
    encoder: Encoder,
    data: TrainingSet,
    test: TrainingSet,
    *,
    rows: np.ndarray,
    scored: np.ndarray,
    recipe: Recipe,
    seed: int,
    base: Path,
    plan: FinalPlan | None = None,
    views: Sequence[str] = PLAIN,
    label: str = "",
) -> dict:
    """Fit on `rows`, predict `scored` (indices into `data`) and the test set; keep all at `base`.

    A fold that was trained before from the same rows, images, targets, CLIP and recipe is not
    trained again; one that was stopped continues. Other `views` or other images to predict cost
    the prediction alone. With a `plan`, what the folds found, it is a final fit: no row is held out
    of `rows`. Returns history, factor, factors, rows_trained, seconds and score.
    Predictions lie at `<base>_oof` and `<base>_test`, the trained weights at `<base>.safetensors`,
    what else `load_fold` needs in `<base>.json`.
    """

    def train(checkpoint: Path) -> FittedModel:
        function: Callable[..., FittedModel] = fit
        if plan is not None:
            function = partial(fit_final, plan=plan)
        return function(
            encoder, data, rows, recipe=recipe, seed=seed, checkpoint=checkpoint, label=label
        )

    # the fit and the predictions are kept apart: either may be there already
    key = _fit_key(encoder, data, rows, recipe, seed, plan)
    record, fitted = _trained(train, encoder, data, rows, recipe, base=base, key=key)
    predicted = _predicted(fitted, encoder, data, test, scored, views, base=base, key=key)
    seconds = record["seconds"] + predicted["seconds"]
    return {**record, "seconds": seconds, "score": predicted["score"]}


def _fit_key(
    encoder: Encoder,
    data: TrainingSet,
    rows: np.ndarray,
    recipe: Recipe,
    seed: int,
    plan: FinalPlan | None,
) -> str:
    """Changes with everything that the trained weights depend on."""
    further = [] if plan is None else [asdict(plan)]
    return fingerprint(
        asdict(recipe),
        seed,
        encoder.fingerprint,
        data.pixels_key,
        [data.ids[i] for i in rows],
        data.targets[:, rows],
        *further,
    )


def _trained(
    train: Callable[[Path], FittedModel],
    encoder: Encoder,
    data: TrainingSet,
    rows: np.ndarray,
    recipe: Recipe,
    *,
    base: Path,
    key: str,
) -> tuple[dict, FittedModel | None]:
    """The record of the fit `key` at `base`, and the model where it was trained just now."""
    record = _beside(base, ".json")
    if record.exists() and load_json(record)["key"] == key:
        return load_json(record), None

    # until the new record is there, the old fold's files count for nothing
    record.unlink(missing_ok=True)
    checkpoint = _checkpoint_folder(base, key)
    start = time.perf_counter()
    fitted = train(checkpoint)
    seconds = time.perf_counter() - start
    _save_weights(fitted, _beside(base, ".safetensors"))
    facts = {
        "key": key,
        "recipe": asdict(recipe),
        "width": data.embeddings.shape[1],
        "clip": encoder.fingerprint,
        "rows_trained": len(rows),
        "seconds": seconds,
        "history": fitted.history,
        "factor": fitted.factor,
        "factors": fitted.factors,
    }

    # the record comes last: a fit that has one is complete
    save_json(record, facts)
    shutil.rmtree(checkpoint)
    return load_json(record), fitted


def _predicted(
    fitted: FittedModel | None,
    encoder: Encoder,
    data: TrainingSet,
    test: TrainingSet,
    scored: np.ndarray,
    views: Sequence[str],
    *,
    base: Path,
    key: str,
) -> dict:
    """Predict with the fit `key` at `base`, unless that was done; seconds and score.

    Only the `scored` rows are timed, as they are what Table 1 is about.
    """
    record = _beside(base, "_predicted.json")
    scored_ids = [data.ids[i] for i in scored]
    truth = data.targets[0][scored]
    wanted = fingerprint(
        key, list(views), scored_ids, truth, data.pixels_key, test.ids, test.pixels_key
    )
    if record.exists() and load_json(record)["key"] == wanted:
        return load_json(record)

    record.unlink(missing_ok=True)
    fitted = fitted or load_fold(base, encoder)
    start = time.perf_counter()
    score: float | None = None
    if len(scored):
        oof = predict(fitted, encoder, data, scored, views=views)
        save_embeddings(_beside(base, "_oof"), scored_ids, oof)
        score = avg_cos(truth, oof)
    seconds = time.perf_counter() - start

    prediction = predict(fitted, encoder, test, np.arange(len(test.ids)), views=views)
    save_embeddings(_beside(base, "_test"), test.ids, prediction)
    save_json(record, {"key": wanted, "views": list(views), "seconds": seconds, "score": score})
    return load_json(record)


def _beside(base: Path, ending: str) -> Path:
    return base.with_name(base.name + ending)


def _checkpoint_folder(base: Path, key: str) -> Path:
    """The folder for checkpoints of the fit `key`; those of another fit are removed."""
    folder = _beside(base, ".checkpoint")
    if not (folder / key).exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / key).touch()
    return folder


def _save_weights(fitted: FittedModel, file: Path) -> None:
    tensors = {name: p.detach().cpu().contiguous() for name, p in weights(fitted).items()}
    with atomic(file) as temporary:
        save_file(tensors, temporary)


def load_fold(base: Path, encoder: Encoder) -> FittedModel:
    """The trained tower and head that `train_fold` kept under `base`.

    Raises ValueError when they belong to another CLIP, or naming the file that is broken or does
    not fit.
    """
    file = _beside(base, ".json")
    record = load_json(file)
    if record.get("clip") != encoder.fingerprint:
        raise ValueError(
            f"{base.name} was trained from another CLIP than the one given; "
            "its folder or weights have changed"
        )

    with readable(file):
        recipe = replace(Recipe(**record["recipe"]), compile_tower=False)
        head = heads.build(recipe.head, record["width"], **recipe.head_options).to(encoder.device)
        tower = make_tower(encoder, recipe)
        fitted = FittedModel(tower, head, record["history"], record["factor"])

    restore(fitted, load_weights(_beside(base, ".safetensors"), str(encoder.device)))
    fitted.head.eval()
    return fitted


def collect_oof(bases: Sequence[Sequence[Path]]) -> tuple[list[str], np.ndarray]:
    """Ids and (n, 384) unit rows out-of-fold, one fold after another.

    `bases` has the fits of each fold, whose predictions are averaged.
    """
    all_ids: list[str] = []
    parts = []
    for fits in bases:
        ids, rows = _mean_prediction([_beside(base, "_oof") for base in fits])
        all_ids += ids
        parts.append(rows)
    return all_ids, np.concatenate(parts)


def collect_test(bases: Sequence[Path]) -> tuple[list[str], np.ndarray]:
    """Ids and (n, 384) unit rows of the test set: the mean over all fits, which all predict it."""
    return _mean_prediction([_beside(base, "_test") for base in bases])


def _mean_prediction(files: Sequence[Path]) -> tuple[list[str], np.ndarray]:
    """Ids and the unit mean of predictions of the same images; of one alone the prediction."""
    ids, first = load_embeddings(files[0])
    if len(files) == 1:
        return ids, first
    total = np.sum([first, *(load_embeddings(file, ids)[1] for file in files[1:])], axis=0)
    return ids, (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)
