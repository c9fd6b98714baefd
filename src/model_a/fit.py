"""One fit of Model A: a CLIP vision tower with the paper's head (equations 1-3), fine-tuned.

Every fit starts from a linear probe, a ridge regression on the frozen embeddings. An inner
validation split decides which epoch stays and how far to go from the probe to it; a fine-tune that
does not help ends as the probe.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median_low

import numpy as np
import torch
from sklearn.model_selection import GroupShuffleSplit
from torch.nn import functional as F

from src.batches import prepared, read_together
from src.encoder import Encoder, autocast
from src.metrics import avg_cos, l2_normalize
from src.model_a import head as heads
from src.model_a.fitted import FittedModel, interpolate, restore, snapshot
from src.model_a.recipe import Recipe
from src.model_a.tower import make_tower
from src.model_a.training import ReadInputs, Trainer, finish_inputs, read_inputs
from src.model_a.training_set import TrainingSet
from src.model_a.views import PLAIN, changes_of, unchanged

HELD_OUT = 0.1  # of a fold's training rows, whole groups: the inner validation split
FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the way from the probe to the best epoch
CHECKPOINT_STEPS = 200  # batches between checkpoints inside an epoch
BATCH_SIZE = 128  # images predicted at a time


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
    """Train on `rows` (indices into `data`): the start, AdamW, then the best point on the way.

    A tenth of the groups of `rows` is held out to choose the epoch and the factor. With a
    `checkpoint` folder, a training that was stopped continues. Raises FloatingPointError when the
    loss is not finite, torch.OutOfMemoryError with advice.
    """
    # the split that decides is never trained on: groups keep near-duplicates together
    inner, held_out = inner_split(data.group, rows, seed)
    fitted, penalty = init_model(encoder, data, inner, held_out, recipe, seed)
    truth = data.targets[0][held_out]

    def score() -> float:
        return avg_cos(truth, predict(fitted, encoder, data, held_out))

    start = snapshot(fitted)
    trainer = Trainer(fitted, encoder, data, inner, recipe=recipe, seed=seed, label=label)

    # a checkpoint brings its history along, which begins with epoch 0
    if checkpoint is None or not trainer.load(checkpoint):
        fitted.history.append({"epoch": 0, "loss": None, "score": score(), "penalty": penalty})
    _train(trainer, score, checkpoint)
    return select_interpolation(fitted, start, trainer.best, score, recipe)


@dataclass(frozen=True)
class FinalPlan:
    """What the folds found for a fit on all rows: epochs, factor and the probe's penalty."""

    epochs: int
    factor: float
    penalty: float | None

    @classmethod
    def from_records(cls, records: Sequence[Mapping]) -> "FinalPlan":
        """The mean best epoch and factor, and the median penalty, of `train_fold`'s records."""
        histories = [record["history"] for record in records]
        best = [max(history, key=lambda entry: entry["score"])["epoch"] for history in histories]
        penalties = [history[0]["penalty"] for history in histories]
        return cls(
            epochs=round(mean(best)),
            factor=mean(record["factor"] for record in records),
            penalty=None if None in penalties else median_low(penalties),
        )


def inner_split(group: np.ndarray, rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`rows` in two: those to learn from, and a tenth of their groups that decides."""
    splitter = GroupShuffleSplit(1, test_size=HELD_OUT, random_state=seed)
    fit_rows, held_out = next(splitter.split(rows, groups=group[rows]))
    return rows[fit_rows], rows[held_out]


def init_model(
    encoder: Encoder,
    data: TrainingSet,
    inner: np.ndarray,
    held_out: np.ndarray,
    recipe: Recipe,
    seed: int,
) -> tuple[FittedModel, float | None]:
    """The tower with its head at the start, and the probe's penalty.

    The head starts as the probe, or at random: then there is no penalty.
    """
    penalty: float | None = None
    if recipe.head_init == "probe":
        _, _, penalty = heads.probe(data.embeddings, data.targets[0], fit=inner, held_out=held_out)
    return _start(encoder, data, inner, recipe, seed, penalty), penalty


def _start(
    encoder: Encoder,
    data: TrainingSet,
    rows: np.ndarray,
    recipe: Recipe,
    seed: int,
    penalty: float | None,
) -> FittedModel:
    """The tower with its head as the probe on `rows` with this penalty; at random without one."""
    torch.manual_seed(seed)
    tower = make_tower(encoder, recipe)
    if penalty is None:
        head = heads.build(recipe.head, data.embeddings.shape[1], **recipe.head_options)
    else:
        embeddings = data.embeddings[rows]
        weight, bias = heads.ridge(embeddings, data.targets[0][rows], penalty)
        head = heads.start(recipe.head, embeddings, weight, bias, **recipe.head_options)
    return FittedModel(tower, head.to(encoder.device))


def _train(trainer: Trainer, score: Callable[[], float], checkpoint: Path | None) -> None:
    """All epochs, or until `patience` of them have not helped; `trainer.best` keeps the best."""
    history = trainer.fitted.history
    recipe = trainer.recipe
    while trainer.epoch <= recipe.epochs:
        best_epoch = max(history, key=lambda entry: entry["score"])["epoch"]
        if trainer.epoch - best_epoch > recipe.patience:
            break

        for _ in trainer.steps():
            if checkpoint is not None and _is_checkpoint_due(trainer):
                trainer.save(checkpoint)
        _close_epoch(trainer, score)
        if checkpoint is not None:
            trainer.save(checkpoint)


def _is_checkpoint_due(trainer: Trainer) -> bool:
    """Inside an epoch, every CHECKPOINT_STEPS batches, with no gradient half added up."""
    inside = trainer.batch < trainer.n_batches
    complete = trainer.batch % trainer.recipe.accumulate == 0
    return inside and complete and trainer.batch % CHECKPOINT_STEPS == 0


def _close_epoch(trainer: Trainer, score: Callable[[], float]) -> None:
    """Score the epoch, by the average where there is one; remember it when it is the best."""
    history = trainer.fitted.history
    current = None
    if trainer.average is not None:
        current = snapshot(trainer.fitted)
        restore(trainer.fitted, trainer.average)

    epoch_score = score()
    if epoch_score > max(entry["score"] for entry in history):
        trainer.best = snapshot(trainer.fitted)
    if current is not None:
        restore(trainer.fitted, current)
    _end_epoch(trainer, epoch_score)


def _end_epoch(trainer: Trainer, score: float | None) -> None:
    """Note the epoch's loss and score, and go on to the next."""
    loss = trainer.total / len(trainer.rows)
    history = trainer.fitted.history
    history.append({"epoch": trainer.epoch, "loss": loss, "score": score})
    trainer.epoch += 1
    trainer.batch = 0
    trainer.total = 0.0


def select_interpolation(
    fitted: FittedModel, start: dict, best: dict, score: Callable[[], float], recipe: Recipe
) -> FittedModel:
    """Put the point between start and best epoch that scores best on the inner split in place."""
    factors = FACTORS if recipe.interpolate else (FACTORS[0], FACTORS[-1])
    for factor in factors:
        restore(fitted, interpolate(start, best, factor))
        fitted.factors[factor] = score()

    # of equal scores the first, which is nearest to the start
    fitted.factor = max(fitted.factors, key=lambda factor: fitted.factors[factor])
    restore(fitted, interpolate(start, best, fitted.factor))
    return fitted


def fit_final(
    encoder: Encoder,
    data: TrainingSet,
    rows: np.ndarray,
    *,
    recipe: Recipe,
    plan: FinalPlan,
    seed: int,
    checkpoint: Path | None = None,
    label: str = "",
) -> FittedModel:
    """Train on all of `rows`, with what the folds found in place of an inner validation split.

    Raises what `fit` raises.
    """
    fitted = _start(encoder, data, rows, recipe, seed, plan.penalty)
    start = snapshot(fitted)
    trainer = Trainer(fitted, encoder, data, rows, recipe=recipe, seed=seed, label=label)
    if checkpoint is not None:
        trainer.load(checkpoint)

    while trainer.epoch <= plan.epochs:
        for _ in trainer.steps():
            if checkpoint is not None and _is_checkpoint_due(trainer):
                trainer.save(checkpoint)
        _end_epoch(trainer, score=None)
        if checkpoint is not None:
            trainer.save(checkpoint)

    end = trainer.average if trainer.average is not None else snapshot(fitted)
    fitted.factor = plan.factor
    restore(fitted, interpolate(start, end, plan.factor))
    return fitted


# --- prediction ---


def predict(
    fitted: FittedModel,
    encoder: Encoder,
    data: TrainingSet,
    rows: np.ndarray,
    *,
    views: Sequence[str] = PLAIN,
    batch_size: int = BATCH_SIZE,
) -> np.ndarray:
    """(len(rows), 384) float32 unit rows, in order: the mean over `views` of each image."""
    parts = []
    for change in changes_of(views):
        if change is unchanged:
            parts.append(_predict_kept(fitted, encoder, data, rows, batch_size))
            continue
        batches = np.split(rows, range(batch_size, len(rows), batch_size))
        pixels = (change(np.asarray(data.pixels[batch])) for batch in batches)
        parts.append(np.concatenate([predict_pixels(fitted, encoder, x) for x in pixels]))
    return unit_mean(parts)


@torch.no_grad()
def _predict_kept(
    fitted: FittedModel, encoder: Encoder, data: TrainingSet, rows: np.ndarray, batch_size: int
) -> np.ndarray:
    """The predictions of images as they are, from what the frozen blocks gave before."""
    fitted.head.eval()

    def read(start: int) -> ReadInputs:
        return read_inputs(fitted.tower, data, rows[start : start + batch_size], augment=False)

    def predict_batch(inputs: ReadInputs) -> torch.Tensor:
        x = finish_inputs(fitted.tower, encoder, inputs)
        return F.normalize(fitted.forward(x), dim=-1)

    batches = prepared(read, range(0, len(rows), batch_size), encoder.device)
    return read_together(predict_batch(inputs) for inputs in batches).numpy()


def unit_mean(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of predictions (n, 384) at unit length; of one alone the prediction itself."""
    return parts[0] if len(parts) == 1 else l2_normalize(np.sum(parts, axis=0))


@torch.inference_mode()
def predict_pixels(
    fitted: FittedModel,
    encoder: Encoder,
    pixels: np.ndarray,
    *,
    views: Sequence[str] = PLAIN,
) -> np.ndarray:
    """(n, s, s, 3) uint8 of the encoder's geometry -> (n, 384) float32 unit rows, in order.

    The mean over `views` of each image.
    """
    if tuple(views) != PLAIN:
        changed = [change(np.asarray(pixels)) for change in changes_of(views)]
        return unit_mean([predict_pixels(fitted, encoder, x) for x in changed])

    fitted.head.eval()
    parts = []
    for start in range(0, len(pixels), BATCH_SIZE):
        x = encoder.normalize(pixels[start : start + BATCH_SIZE])
        with autocast(encoder.device):
            activations = fitted.tower.frozen(x)
        parts.append(F.normalize(fitted.forward(activations), dim=-1))
    return read_together(parts).numpy()
