"""Model A: a fine-tuned CLIP vision tower with the paper's two-layer head (equations 1-3), and the linear baseline rows.

Every fit starts from a linear probe, a ridge regression on the frozen embeddings. An inner validation split decides which epoch
stays and how far to go from the probe to it, not at all included: a fine-tune that only loses ends as the probe it came from.
"""

import shutil
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file
from sklearn.model_selection import GroupShuffleSplit
from torch.nn import functional as F
from tqdm import tqdm

from src.artifacts import (
    atomic,
    fingerprint,
    indices_of_ids,
    load_embeddings,
    load_json,
    readable,
    reserved,
    save_embeddings,
    save_json,
)
from src.data import images, prompts
from src.encoder import Encoder, autocast, image_embeddings, text_embeddings
from src.metrics import avg_cos
from src.model_a import head as heads
from src.model_a.head import N_OUT
from src.model_a.recipe import Recipe
from src.model_a.tower import Tower, blocks_of, strided_depthwise_in_float32
from src.model_a.training import (
    FittedModel,
    Trainer,
    TrainingSet,
    interpolate,
    load_weights,
    restore,
    snapshot,
    tower_inputs,
    weights,
)
from src.paths import CACHE

ACTIVATION_BYTES = 4 << 30  # above this the frozen blocks run again in every epoch
HELD_OUT = 0.1  # of a fold's training rows, whole groups: the inner validation split
FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the way from the probe to the best epoch
ALIKE = 0.85  # a removed row stands in for its keeper from this similarity on; what filter 1 removed may be less alike
CHECKPOINT_STEPS = 200  # batches between checkpoints inside an epoch


def make_tower(encoder: Encoder, recipe: Recipe) -> Tower:
    """A copy of the encoder's vision tower, cut and unfrozen as the recipe says."""
    frozen = recipe.tower == "frozen"
    tower = Tower(
        deepcopy(encoder.model.visual),
        0 if frozen else recipe.trainable_blocks,
        train_depthwise=recipe.train_depthwise,
        lora_rank=0 if frozen else recipe.lora_rank,
        lora_blocks=recipe.lora_blocks,
        checkpointing=recipe.grad_checkpointing,
    )
    tower.to(encoder.device)
    strided_depthwise_in_float32(tower)
    if recipe.compile:
        tower.compile()
    return tower


def plain_tower(encoder: Encoder, cut: int) -> Tower:
    """A copy of the encoder's own vision tower, cut in front of block `cut`: its two parts give the CLIP's own embeddings."""
    return Tower(deepcopy(encoder.model.visual), len(blocks_of(encoder.model.visual)) - cut)


def frozen_activations(
    tower: Tower, encoder: Encoder, pixels: images.Pixels, file: Path
) -> np.ndarray | None:
    """What `tower.frozen` gives for every image, (n, ...) memory-mapped from `file`; half precision where the tower runs so.

    Computed once for these pixels and this cut. None where the tower is not cut or the file would be above 4 GiB.
    """
    if not tower.splits or not tower.trains:
        return None
    record, key = (
        file.with_suffix(".json"),
        fingerprint(encoder.fingerprint, tower.cut, pixels.key, str(encoder.device)),
    )
    if not record.exists() or load_json(record)["key"] != key:
        record.unlink(missing_ok=True)
        if not _write_activations(tower, encoder, pixels.array, file):
            return None
        save_json(record, {"key": key})
    return np.load(file, mmap_mode="r")


@torch.no_grad()
def _write_activations(tower: Tower, encoder: Encoder, pixels: np.ndarray, file: Path) -> bool:
    """Whether the file was written: not where it would be above ACTIVATION_BYTES, which the first batch's shape tells."""

    def part(start: int) -> np.ndarray:
        x = encoder.normalise(pixels[start : start + encoder.batch]).contiguous(
            memory_format=torch.channels_last
        )
        with autocast(encoder.device):
            return tower.frozen(x).cpu().numpy()

    first, dtype = part(0), np.float16 if encoder.device.type == "cuda" else np.float32
    shape = (len(pixels), *first.shape[1:])
    if np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize > ACTIVATION_BYTES:
        return False
    with atomic(file) as temporary:
        array = reserved(temporary, dtype, shape)
        for start in tqdm(range(0, len(pixels), encoder.batch), desc="frozen blocks", unit="batch"):
            array[start : start + encoder.batch] = part(start) if start else first
        array.flush()
    return True


def training_set(
    encoder: Encoder,
    frame: pl.DataFrame,
    out: Path,
    *,
    name: str,
    recipe: Recipe,
    targets: np.ndarray | None = None,
) -> TrainingSet:
    """The images of `frame` (id, image; for training also group, keeper, similarity, prompt) as `encoder` and `recipe` need them.

    Pixels, frozen embeddings and frozen activations are kept in the cache as `name`. Without `targets` (v, n, 384) these are zero:
    a test set.
    """
    folder = out / CACHE
    pixels, _ = images.cache(
        frame.select("id", "image"), folder, geometry=encoder.geometry, name=name.split(".")[0]
    )
    tower = make_tower(encoder, recipe)
    activations = frozen_activations(
        tower, encoder, pixels, folder / f"activations_{name}_{tower.cut}.npy"
    )
    whole = (
        activations is not None and activations.dtype == np.float32
    )  # half precision would not give the encoder's own rows
    compute = (lambda: _finish(plain_tower(encoder, tower.cut), activations)) if whole else None
    embeddings = image_embeddings(encoder, pixels, folder, name=name, compute=compute)
    if targets is None:
        none = np.zeros(len(frame), dtype=np.int64)
        return TrainingSet(
            pixels.ids,
            pixels.array,
            embeddings,
            np.zeros((1, len(frame), N_OUT), np.float32),
            none,
            activations,
        )
    keepers, alike = (
        indices_of_ids(pixels.ids, frame["keeper"].to_list(), "keepers"),
        frame["similarity"].to_numpy() >= ALIKE,
    )
    stands_for = np.where(alike, keepers, np.arange(len(frame)))
    may_flip = np.array([not prompts.tells_sides(prompt) for prompt in frame["prompt"]])
    weight = (
        agreement(encoder, embeddings, frame["prompt"].to_list(), folder, name)
        if recipe.weight_by_clip_score
        else None
    )
    return TrainingSet(
        pixels.ids,
        pixels.array,
        embeddings,
        targets,
        frame["group"].to_numpy(),
        activations,
        stands_for,
        agreement=weight,
        may_flip=may_flip,
    )


@torch.no_grad()
def _finish(tower: Tower, activations: np.ndarray, *, batch_size: int = 128) -> np.ndarray:
    """The frozen embeddings (n, D) by way of the kept activations: the blocks before the cut are not run twice."""
    device = next(tower.parameters()).device
    parts = (
        activations[start : start + batch_size] for start in range(0, len(activations), batch_size)
    )
    with autocast(device):
        return torch.cat(
            [tower(torch.from_numpy(np.array(part)).to(device)).cpu() for part in parts]
        ).numpy()


def agreement(
    encoder: Encoder, embeddings: np.ndarray, texts: Sequence[str], folder: Path, name: str
) -> np.ndarray:
    """(n,) float32 weights from 0.5 to 1.5 by the rank of CLIP's own cosine between image and prompt, whatever its scale."""
    cosine = np.einsum("nd,nd->n", embeddings, text_embeddings(encoder, texts, folder, name=name))
    return (0.5 + cosine.argsort().argsort() / max(1, len(cosine) - 1)).astype(np.float32)


@torch.no_grad()
def predict(
    fitted: FittedModel,
    encoder: Encoder,
    data: TrainingSet,
    rows: np.ndarray,
    *,
    batch_size: int = 128,
) -> np.ndarray:
    """(len(rows), 384) float32 unit rows: predictions in evaluation mode, without any random transform."""
    fitted.head.eval()
    parts = [
        F.normalize(
            fitted.forward(tower_inputs(fitted, encoder, data, rows[start : start + batch_size])),
            dim=-1,
        ).cpu()
        for start in range(0, len(rows), batch_size)
    ]
    return torch.cat(parts).numpy()


def predict_pixels(
    fitted: FittedModel, encoder: Encoder, pixels: np.ndarray, *, batch_size: int = 128
) -> np.ndarray:
    """(n, s, s, 3) uint8 of the encoder's geometry -> (n, 384) float32 unit rows, in order."""
    fitted.head.eval()
    parts = []
    with torch.inference_mode(), autocast(encoder.device):
        for start in range(0, len(pixels), batch_size):
            x = encoder.normalise(pixels[start : start + batch_size]).contiguous(
                memory_format=torch.channels_last
            )
            embedding = fitted.tower(fitted.tower.frozen(x))
            with torch.autocast(encoder.device.type, enabled=False):
                parts.append(F.normalize(fitted.head(embedding), dim=-1).cpu())
    return torch.cat(parts).numpy()


def inner_split(group: np.ndarray, rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`rows` in two: those to learn from, and a tenth in whole groups that decides."""
    fit_rows, held_out = next(
        GroupShuffleSplit(1, test_size=HELD_OUT, random_state=seed).split(rows, groups=group[rows])
    )
    return rows[fit_rows], rows[held_out]


def init_model(
    encoder: Encoder,
    data: TrainingSet,
    inner: np.ndarray,
    held_out: np.ndarray,
    recipe: Recipe,
    seed: int,
) -> tuple[FittedModel, float | None]:
    """The tower with its head at the start, from the probe or at random, and the probe's penalty."""
    torch.manual_seed(seed)
    options = {"activation": recipe.activation, "mix": recipe.mix, "learn_mix": recipe.learn_mix}
    tower = make_tower(encoder, recipe)
    if recipe.start == "random":
        return FittedModel(
            tower, heads.build(recipe.head, data.embeddings.shape[1], **options).to(encoder.device)
        ), None
    weight, bias, penalty = heads.probe(
        data.embeddings, data.targets[0], fit=inner, held_out=held_out
    )
    head = heads.start(recipe.head, data.embeddings[inner], weight, bias, **options)
    return FittedModel(tower, head.to(encoder.device)), penalty


def fit(
    encoder: Encoder,
    data: TrainingSet,
    rows: np.ndarray,
    *,
    recipe: Recipe,
    seed: int,
    checkpoint: Path | None = None,
    label: str = "",
) -> FittedModel:
    """Train on `rows` (indices into `data`): the start, then AdamW on the recipe's loss, then the best point on the way.

    A tenth of `rows` in whole groups is held out to choose the epoch and the factor. With a `checkpoint` folder, a run that was
    stopped goes on from there. Raises FloatingPointError when the loss is not finite, torch.OutOfMemoryError with advice.
    """
    inner, held_out = inner_split(data.group, rows, seed)
    fitted, penalty = init_model(encoder, data, inner, held_out, recipe, seed)
    truth = data.targets[0][held_out]

    def score() -> float:
        return avg_cos(truth, predict(fitted, encoder, data, held_out))

    start = snapshot(fitted)
    run = Trainer(fitted, encoder, data, inner, recipe=recipe, seed=seed, label=label)
    if checkpoint is None or not run.load(checkpoint):
        fitted.history.append({"epoch": 0, "loss": None, "score": score(), "penalty": penalty})
    _train(run, score, checkpoint)
    return select_interpolation(fitted, start, run.best, score, recipe)


def _train(run: Trainer, score, checkpoint: Path | None) -> None:
    """All epochs, or until `patience` of them have not helped; `run.best` keeps the best weights."""
    history, recipe = run.fitted.history, run.recipe
    while (
        run.epoch <= recipe.epochs
        and run.epoch - max(history, key=lambda e: e["score"])["epoch"] <= recipe.patience
    ):
        for _ in run.steps():
            inside = (
                run.batch < run.n_batches
                and run.batch % CHECKPOINT_STEPS == 0
                and run.batch % recipe.accumulate == 0
            )
            if checkpoint is not None and inside:
                run.save(checkpoint)
        _close_epoch(run, score)
        if checkpoint is not None:
            run.save(checkpoint)


def _close_epoch(run: Trainer, score) -> None:
    """Score the epoch, by the average where there is one, and remember it when it is the best so far."""
    history, now = run.fitted.history, None
    if run.average is not None:
        now = snapshot(run.fitted)
        restore(run.fitted, run.average)
    found = score()
    if found > max(entry["score"] for entry in history):
        run.best = snapshot(run.fitted)
    if now is not None:
        restore(run.fitted, now)
    history.append({"epoch": run.epoch, "loss": run.total / len(run.rows), "score": found})
    run.epoch, run.batch, run.total = run.epoch + 1, 0, 0.0


def select_interpolation(
    fitted: FittedModel, start: dict, best: dict, score, recipe: Recipe
) -> FittedModel:
    """Put the point between start and best epoch that scores best on the inner validation split into the model."""
    for factor in FACTORS if recipe.interpolate else FACTORS[:: len(FACTORS) - 1]:
        restore(fitted, interpolate(start, best, factor))
        fitted.factors[factor] = score()
    fitted.factor = max(fitted.factors, key=fitted.factors.get)
    restore(fitted, interpolate(start, best, fitted.factor))
    return fitted


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
    """Fit on `rows`, predict `scored` (indices into `data`) and the test set, and keep all of it under `base`.

    A fold that was trained before from the same rows, targets, CLIP and recipe is not trained again; one that was stopped goes on.
    Returns history, factor, factors, rows_trained, seconds, score; predictions lie at `<base>_oof` and `<base>_test`, the trained
    weights at `<base>.safetensors`, what else `load_fold` needs in `<base>.json`.
    """
    record, checkpoint = (
        base.with_name(base.name + ".json"),
        base.with_name(base.name + ".checkpoint"),
    )
    key = fingerprint(
        asdict(recipe),
        seed,
        encoder.fingerprint,
        [data.ids[i] for i in rows],
        [data.ids[i] for i in scored],
        data.targets[:, rows],
        test.ids,
    )
    if record.exists() and load_json(record)["key"] == key:
        return load_json(record)
    record.unlink(missing_ok=True)
    if not (checkpoint / key).exists():  # of another recipe or other rows
        shutil.rmtree(checkpoint, ignore_errors=True)
        checkpoint.mkdir(parents=True)
        (checkpoint / key).touch()
    start = time.perf_counter()
    fitted = fit(encoder, data, rows, recipe=recipe, seed=seed, checkpoint=checkpoint, label=label)
    oof = predict(fitted, encoder, data, scored)
    seconds = time.perf_counter() - start
    save_embeddings(base.with_name(base.name + "_oof"), [data.ids[i] for i in scored], oof)
    save_embeddings(
        base.with_name(base.name + "_test"),
        test.ids,
        predict(fitted, encoder, test, np.arange(len(test.ids))),
    )
    with atomic(base.with_name(base.name + ".safetensors")) as temporary:
        save_file(
            {name: p.detach().cpu().contiguous() for name, p in weights(fitted).items()}, temporary
        )
    save_json(
        record,
        {
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
        },
    )
    shutil.rmtree(checkpoint)
    return load_json(record)


def load_fold(base: Path, encoder: Encoder) -> FittedModel:
    """The trained tower and head that `train_fold` kept under `base`.

    Raises ValueError when they belong to another CLIP, or naming the file that is broken or does not fit.
    """
    file = base.with_name(base.name + ".json")
    record = load_json(file)
    if record.get("clip") != encoder.fingerprint:
        raise ValueError(
            f"{base.name} was trained from another CLIP than the one given; its folder or weights have changed"
        )
    with readable(file):
        recipe = replace(Recipe(**record["recipe"]), compile=False)
        head = heads.build(
            recipe.head,
            record["width"],
            activation=recipe.activation,
            mix=recipe.mix,
            learn_mix=recipe.learn_mix,
        )
        fitted = FittedModel(
            make_tower(encoder, recipe),
            head.to(encoder.device),
            record["history"],
            record["factor"],
        )
    restore(fitted, load_weights(base.with_name(base.name + ".safetensors"), str(encoder.device)))
    fitted.head.eval()
    return fitted


def collect_fold_predictions(bases: Sequence[Path], what: str) -> tuple[list[str], np.ndarray]:
    """Join the folds' predictions: `oof` one after another, `test` as the unit mean over folds. Ids and (n, 384) unit rows."""
    read = [load_embeddings(base.with_name(f"{base.name}_{what}")) for base in bases]
    if what == "oof":
        return [i for ids, _ in read for i in ids], np.concatenate([x for _, x in read])
    total = np.sum(
        [load_embeddings(base.with_name(f"{base.name}_test"), read[0][0])[1] for base in bases],
        axis=0,
    )
    return read[0][0], (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)
