"""Folds on disk: trained once, kept, loaded again, and their predictions joined."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
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
from src.model_a.fit import fit, predict
from src.model_a.fitted import FittedModel, load_weights, restore, weights
from src.model_a.recipe import Recipe
from src.model_a.tower import make_tower
from src.model_a.training_set import TrainingSet


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
    label: str = "",
) -> dict:
    """Fit on `rows`, predict `scored` (indices into `data`) and the test set; keep all at `base`.

    A fold that was trained before from the same rows, targets, CLIP and recipe is not trained
    again; one that was stopped continues. Returns history, factor, factors, rows_trained, seconds
    and score. Predictions lie at `<base>_oof` and `<base>_test`, the trained weights at
    `<base>.safetensors`, what else `load_fold` needs in `<base>.json`.
    """
    record = _beside(base, ".json")
    row_ids = [data.ids[i] for i in rows]
    scored_ids = [data.ids[i] for i in scored]
    targets = data.targets[:, rows]
    key = fingerprint(
        asdict(recipe), seed, encoder.fingerprint, row_ids, scored_ids, targets, test.ids
    )
    if record.exists() and load_json(record)["key"] == key:
        return load_json(record)

    # until the new record is there, the old fold's files count for nothing
    record.unlink(missing_ok=True)
    checkpoint = _checkpoint_folder(base, key)
    start = time.perf_counter()
    fitted = fit(encoder, data, rows, recipe=recipe, seed=seed, checkpoint=checkpoint, label=label)
    oof = predict(fitted, encoder, data, scored)
    seconds = time.perf_counter() - start

    test_prediction = predict(fitted, encoder, test, np.arange(len(test.ids)))
    save_embeddings(_beside(base, "_oof"), scored_ids, oof)
    save_embeddings(_beside(base, "_test"), test.ids, test_prediction)
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
        "score": avg_cos(data.targets[0][scored], oof),
    }

    # the record comes last: a fold that has one is complete
    save_json(record, facts)
    shutil.rmtree(checkpoint)
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


def collect_fold_predictions(bases: Sequence[Path], what: str) -> tuple[list[str], np.ndarray]:
    """Join the folds' predictions: ids and (n, 384) unit rows.

    `oof` takes one fold after another, `test` the unit mean over folds.
    """
    if what == "oof":
        parts = [load_embeddings(_beside(base, "_oof")) for base in bases]
        all_ids = [name for part_ids, _ in parts for name in part_ids]
        return all_ids, np.concatenate([part for _, part in parts])

    # every fold predicts every test image: their mean is the ensemble of the folds
    ids, _ = load_embeddings(_beside(bases[0], "_test"))
    total = np.sum([load_embeddings(_beside(base, "_test"), ids)[1] for base in bases], axis=0)
    return ids, (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)
