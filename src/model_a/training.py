"""The training engine: one recipe, one loop, and a state that survives being killed.

The state of a training is its weights, their moving average, the optimizer, the schedule, the
random states and the position in the epoch. All of it is written at intervals and read back, so
that a training that was stopped anywhere ends like one that was not stopped.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, isfinite, pi
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from src.artifacts import atomic, readable
from src.batches import prepared, to_device
from src.encoder import Encoder, autocast
from src.model_a.augmentation import NONE, augment
from src.model_a.fitted import FittedModel, load_weights, restore, snapshot, weights
from src.model_a.recipe import ImageChanges, Recipe
from src.model_a.tower import Tower
from src.model_a.training_set import TrainingSet

TEMPERATURE = 0.05  # of the contrastive loss
# batches whose losses are read together on a GPU: reading one waits until it is computed
READ_EVERY = 16


# --- optimization ---


def parameter_groups(tower: Tower, head: nn.Module, recipe: Recipe) -> list[dict]:
    """AdamW's groups: the tower at `lr_vision`, the head at `lr_fc`, its second layer at `lr_fc2`.

    The tower's rate falls by `layer_decay` a block from the top. Norms, biases and scalars have no
    weight decay.
    """
    groups: dict[tuple[str, float, bool], list[nn.Parameter]] = {}
    for name, p in tower.named_parameters():
        rate = recipe.lr_vision * recipe.layer_decay ** tower.depth(name)
        groups.setdefault(("tower", rate, p.ndim > 1), []).append(p)
    for name, p in head.named_parameters():
        is_second = name.split(".")[0] in ("fc2", "norm2")
        rate = recipe.lr_fc2 if is_second and recipe.lr_fc2 is not None else recipe.lr_fc
        groups.setdefault(("head", rate, p.ndim > 1), []).append(p)

    # a group without a trained parameter would only slow the optimizer down
    trained = []
    for (name, rate, decays), parameters in groups.items():
        parameters = [p for p in parameters if p.requires_grad]
        if parameters:
            decay = recipe.weight_decay if decays else 0.0
            trained.append({"name": name, "params": parameters, "lr": rate, "weight_decay": decay})
    return trained


def warmup_cosine(step: int, *, n_steps: int, warmup: float) -> float:
    """The learning rate's factor: linear up over the share `warmup` of the steps, then half a
    cosine down to nearly 0."""
    rising = max(1, round(warmup * n_steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + cos(pi * min(1.0, (step - rising + 1) / (n_steps - rising + 1))))


def losses(prediction: torch.Tensor, target: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """(n,) loss of each row: 1 - cosine, and `loss_mix` of the contrastive or Huber loss."""
    cosine = 1 - F.cosine_similarity(prediction, target, dim=-1)
    if recipe.loss == "cosine":
        return cosine

    unit = F.normalize(prediction, dim=-1)
    if recipe.loss == "huber":
        # scaled so that an entry is near 1 and Huber's corner means something
        scale = target.shape[1] ** 0.5
        huber = F.huber_loss(unit * scale, target * scale, reduction="none").mean(dim=1)
        return cosine + recipe.loss_mix * huber

    # contrastive: each prediction must find its own target among the batch, and the other way
    logits = unit @ target.T / TEMPERATURE
    own = torch.arange(len(target), device=target.device)
    forward = F.cross_entropy(logits, own, reduction="none")
    backward = F.cross_entropy(logits.T, own, reduction="none")
    return cosine + recipe.loss_mix * (forward + backward) / 2


# --- batches ---


def tower_inputs(
    fitted: FittedModel,
    encoder: Encoder,
    data: TrainingSet,
    rows: np.ndarray,
    *,
    changes: ImageChanges = NONE,
) -> torch.Tensor:
    """What the tower's `forward` takes for `rows`.

    Kept activations, or pixels with random `changes` through the tower's frozen part.
    """
    read = read_inputs(fitted.tower, data, rows, augment=bool(changes))
    return finish_inputs(fitted.tower, encoder, read, changes=changes)


@dataclass(frozen=True)
class ReadInputs:
    """A batch as it lies on the disk, on the CPU: kept activations or embeddings, or pixels."""

    kept: torch.Tensor | None = None
    pixels: torch.Tensor | None = None
    may_flip: torch.Tensor | None = None


def read_inputs(tower: Tower, data: TrainingSet, rows: np.ndarray, *, augment: bool) -> ReadInputs:
    """The part of `tower_inputs` that reads; it draws nothing at random and may run in a thread."""
    kept = data.activations if tower.trains else data.embeddings
    if kept is not None and not augment:
        return ReadInputs(kept=torch.from_numpy(kept[rows]))

    may_flip = torch.ones(len(rows), dtype=torch.bool)
    if data.may_flip is not None:
        may_flip = torch.from_numpy(data.may_flip[rows])
    return ReadInputs(pixels=torch.from_numpy(data.pixels[rows]), may_flip=may_flip)


def finish_inputs(
    tower: Tower, encoder: Encoder, read: ReadInputs, *, changes: ImageChanges = NONE
) -> torch.Tensor:
    """The part of `tower_inputs` on the device."""
    if read.kept is not None:
        return to_device(read.kept, encoder.device).float()

    assert read.pixels is not None  # read_inputs: one or the other
    pixels = to_device(read.pixels, encoder.device)
    if changes:
        assert read.may_flip is not None  # read with the pixels
        may_flip = to_device(read.may_flip, encoder.device)
        changed = augment(pixels.permute(0, 3, 1, 2), may_flip, changes=changes)
        pixels = changed.permute(0, 2, 3, 1)
    with autocast(encoder.device):
        return tower.frozen(encoder.normalize(pixels))


@dataclass(frozen=True)
class EpochPlan:
    """One epoch, drawn from its own seed: the image and the target version of each step."""

    images: np.ndarray
    versions: np.ndarray
    bounds: np.ndarray  # of the batches, all of nearly one size

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and target versions of one batch."""
        part = slice(self.bounds[step], self.bounds[step + 1])
        return self.images[part], self.versions[part]


def epoch_plan(
    data: TrainingSet, rows: np.ndarray, recipe: Recipe, *, seed: int, epoch: int
) -> EpochPlan:
    """The order of `rows` in `epoch`.

    With `sample_duplicates` each row's place goes to one of the images that stand for it.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(rows)
    n_versions = len(data.targets) if recipe.augment_text else 1
    versions = random.integers(n_versions, size=len(order))
    if recipe.sample_duplicates and data.stands_for is not None:
        order = _sample_stand_ins(data.stands_for, order, random)

    # batches of nearly one size: a last one of a few rows would be a noisy step of its own
    n_batches = -(-len(order) // recipe.batch_size)
    bounds = np.linspace(0, len(order), n_batches + 1).round().astype(int)
    return EpochPlan(order, versions, bounds)


def _sample_stand_ins(
    stands_for: np.ndarray, rows: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """For each of `rows` one of the images that stand for it, itself included."""
    # sorted by keeper, the images that stand for a row are one run, found by bisection
    by_keeper = np.argsort(stands_for, kind="stable")
    first = np.searchsorted(stands_for[by_keeper], rows)
    count = np.searchsorted(stands_for[by_keeper], rows, side="right") - first
    return by_keeper[first + random.integers(np.maximum(count, 1))]


# --- the loop ---


@dataclass(frozen=True)
class Batch:
    """One batch as it was read: its rows, what the tower takes, targets, and weights if any."""

    rows: np.ndarray
    inputs: ReadInputs
    target: torch.Tensor
    weight: torch.Tensor | None


class Trainer:
    """Training in progress: `steps` continues where it stands; `save` and `load` keep all of it."""

    def __init__(
        self,
        fitted: FittedModel,
        encoder: Encoder,
        data: TrainingSet,
        rows: np.ndarray,
        *,
        recipe: Recipe,
        seed: int,
        label: str = "",
    ):
        self.fitted = fitted
        self.encoder = encoder
        self.data = data
        self.rows = rows
        self.recipe = recipe
        self.seed = seed
        self.label = label

        self.n_batches = -(-len(rows) // recipe.batch_size)
        n_steps = recipe.epochs * -(-self.n_batches // recipe.accumulate)
        self.groups = parameter_groups(fitted.tower, fitted.head, recipe)
        self.optimizer = torch.optim.AdamW(self.groups)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: warmup_cosine(step, n_steps=n_steps, warmup=recipe.warmup)
        )
        self.scaler = torch.amp.GradScaler(encoder.device.type, enabled=_uses_fp16(encoder.device))

        self.average = snapshot(fitted) if recipe.ema else None
        self.best = snapshot(fitted)
        self.epoch = 1
        self.batch = 0
        self.total = 0.0  # loss of the epoch so far, summed over rows
        self.updates = 0
        self.unread: list[tuple[int, np.ndarray, torch.Tensor]] = []  # batch, rows, loss
        self.read_every = READ_EVERY if encoder.device.type == "cuda" else 1

    def steps(self) -> Iterator[None]:
        """Train through the present epoch, yielding after each batch."""
        plan = epoch_plan(self.data, self.rows, self.recipe, seed=self.seed, epoch=self.epoch)
        self.fitted.head.train()
        label = f"{self.label} epoch {self.epoch}/{self.recipe.epochs}"
        progress = tqdm(
            total=self.n_batches, initial=self.batch, desc=label, unit="batch", leave=False
        )
        batches = (plan.batch(step) for step in range(self.batch, self.n_batches))
        with progress:
            for batch in prepared(self._read, batches, self.encoder.device):
                self._batch(batch)
                self.batch += 1
                if len(self.unread) >= self.read_every or self.batch == self.n_batches:
                    self.read_losses()
                progress.update()
                yield

    def _read(self, drawn: tuple[np.ndarray, np.ndarray]) -> Batch:
        """What a batch needs from memory or disk; draws nothing at random."""
        rows, versions = drawn
        augment = bool(self.recipe.image_changes)
        inputs = read_inputs(self.fitted.tower, self.data, rows, augment=augment)
        target = torch.from_numpy(self.data.targets[versions, rows])
        weight = None
        if self.recipe.weight_by_clip_score:
            assert self.data.weight is not None  # training_set gives it for such a recipe
            weight = torch.from_numpy(self.data.weight[rows])
        return Batch(rows, inputs, target, weight)

    def read_losses(self) -> None:
        """Add the losses of the batches since the last call to the epoch's.

        Raises FloatingPointError naming the first batch whose loss is not finite.
        """
        if not self.unread:
            return

        # one wait for the device, for all of them
        values = torch.stack([loss for _, _, loss in self.unread]).tolist()
        for (batch, rows, _), value in zip(self.unread, values, strict=True):
            if not isfinite(value):
                raise FloatingPointError(
                    f"{self.label}: the loss is {value} in epoch {self.epoch}, "
                    f"batch {batch}, at learning rates "
                    f"{sorted(set(self.schedule.get_last_lr()))}; lower them. "
                    f"Ids: {[self.data.ids[i] for i in rows]}"
                )
            self.total += value * len(rows)
        self.unread = []

    def _batch(self, batch: Batch) -> None:
        """Forward, backward, and an update where one is due."""
        rows = batch.rows
        try:
            loss = self._loss(batch)
            self.unread.append((self.batch, rows, loss.detach()))
            # on a CPU a loss costs nothing to look at, and no bad one reaches the weights
            if self.read_every == 1:
                self.read_losses()
            self.scaler.scale(loss * len(rows) / self._rows_in_update()).backward()

            is_last = self.batch + 1 == self.n_batches
            if is_last or (self.batch + 1) % self.recipe.accumulate == 0:
                self._update()
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(
                f"{self.label}: out of GPU memory with batch_size {self.recipe.batch_size}. "
                "Halve it and double accumulate, turn on grad_checkpointing, or lower "
                f"trainable_blocks. ({error})"
            ) from error

    def _loss(self, batch: Batch) -> torch.Tensor:
        target = to_device(batch.target, self.encoder.device)
        changes = self.recipe.image_changes
        x = finish_inputs(self.fitted.tower, self.encoder, batch.inputs, changes=changes)
        loss = losses(self.fitted.forward(x), target, self.recipe)
        if batch.weight is None:
            return loss.mean()

        weight = to_device(batch.weight, self.encoder.device)
        return (weight * loss).sum() / weight.sum()

    def _rows_in_update(self) -> float:
        """Rows of all the batches that this update adds up: its size must not depend on them."""
        first = self.batch // self.recipe.accumulate * self.recipe.accumulate
        last = min(first + self.recipe.accumulate, self.n_batches)
        return len(self.rows) * (last - first) / self.n_batches

    def _update(self) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.recipe.clip_norm:
            parameters = [p for group in self.groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()

        self.updates += 1
        if self.average is not None:
            self._add_to(self.average)

    @torch.no_grad()
    def _add_to(self, average: dict[str, torch.Tensor]) -> None:
        # early on the average must not be the start
        decay = min(self.recipe.ema, (1 + self.updates) / (10 + self.updates))
        current = weights(self.fitted)
        floats = [name for name in current if current[name].is_floating_point()]
        torch._foreach_lerp_(
            [average[name] for name in floats],
            [current[name].detach() for name in floats],
            1 - decay,
        )

        # counters, as BatchNorm has them, are not averaged
        for name in current.keys() - set(floats):
            average[name].copy_(current[name])

    # --- checkpoints ---

    def save(self, folder: Path) -> None:
        """Write a checkpoint.

        The weights go into a safetensors file, and what else there is into state.pt, which
        torch.load(weights_only=True) reads and which names the weights' file.
        """
        self.read_losses()  # a state with a loss that is not finite is not kept
        name = f"weights-{self.epoch}-{self.batch}.safetensors"
        parts = {"now": snapshot(self.fitted), "best": self.best, "average": self.average or {}}
        tensors = {
            f"{part}.{tensor}": p.cpu().contiguous()
            for part, state in parts.items()
            for tensor, p in state.items()
        }
        with atomic(folder / name) as temporary:
            save_file(tensors, temporary)

        on_gpu = torch.cuda.is_available()
        state = {
            "weights": name,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state_all() if on_gpu else [],
            "history": self.fitted.history,
            "position": {
                "epoch": self.epoch,
                "batch": self.batch,
                "total": self.total,
                "updates": self.updates,
            },
        }
        with atomic(folder / "state.pt") as temporary:
            torch.save(state, temporary)

        # the state names the new weights from here on; stopped before, it names the old ones
        for old in folder.glob("weights-*.safetensors"):
            if old.name != name:
                old.unlink()

    def load(self, folder: Path) -> bool:
        """Continue from a checkpoint; False when there is none.

        Raises ValueError naming a file that is broken or holds more than data.
        """
        if not (folder / "state.pt").exists():
            return False
        with readable(folder / "state.pt"):
            state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
            file = folder / state["weights"]

        parts: dict[str, dict] = {"now": {}, "best": {}, "average": {}}
        for name, tensor in load_weights(file, str(self.encoder.device)).items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        restore(self.fitted, parts["now"])
        self.best = parts["best"]
        self.average = parts["average"] or None

        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        if state["cuda_random"]:
            torch.cuda.set_rng_state_all(state["cuda_random"])

        self.fitted.history[:] = state["history"]
        for name, value in state["position"].items():
            setattr(self, name, value)
        return True


def _uses_fp16(device: torch.device) -> bool:
    return device.type == "cuda" and not torch.cuda.is_bf16_supported()
