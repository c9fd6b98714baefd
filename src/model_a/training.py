"""The training engine: one recipe, one loop, and a state that survives being killed.

A run is its weights, their moving average, the optimiser, the schedule, the random states and the position in the epoch. All of
it is written at intervals and read back, so that a run that was stopped anywhere ends as one that was not.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import cos, pi
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from src.artifacts import atomic, readable
from src.data.images import Rows
from src.encoder import Encoder, autocast
from src.model_a import augmentation
from src.model_a.recipe import Recipe
from src.model_a.tower import Tower
from src.paths import display_path

TEMPERATURE = 0.05  # of the contrastive loss


@dataclass(frozen=True)
class TrainingSet:
    """Aligned by row: ids, pixels (n, s, s, 3) uint8, frozen unit embeddings (n, D), targets (v, n, 384), groups.

    `targets[0]` are the prompts' own targets; further ones are those of changed prompts, one drawn in each epoch. `activations`
    (n, ...) are what the tower's frozen blocks give. `stands_for` (n,) names, for a row that a filter removed, the kept row
    whose place it may take in an epoch. `agreement` (n,) weighs rows. `may_flip` (n,) is false where the prompt tells sides.
    """

    ids: list[str]
    pixels: np.ndarray
    embeddings: np.ndarray
    targets: np.ndarray
    group: np.ndarray
    activations: np.ndarray | None = None
    stands_for: np.ndarray | None = None
    agreement: np.ndarray | None = None
    may_flip: np.ndarray | None = None

    def __post_init__(self):
        optional = (self.activations, self.stands_for, self.agreement, self.may_flip)
        lengths = {
            len(self.ids),
            len(self.pixels),
            len(self.embeddings),
            self.targets.shape[1],
            len(self.group),
            *(len(part) for part in optional if part is not None),
        }
        if len(lengths) > 1:
            raise ValueError(f"a training set's parts have different lengths: {sorted(lengths)}")

    def __getstate__(self) -> dict:
        """For another process: memory maps go as the files they are."""
        return {name: _packed(value) for name, value in vars(self).items()}

    def __setstate__(self, state: dict) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, _unpacked(value))


@dataclass(frozen=True)
class _Mapped:
    file: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int


def _packed(value: object) -> object:
    if isinstance(value, Rows):
        return replace(value, array=_packed(value.array))
    if not isinstance(value, np.memmap) or not value.flags.c_contiguous or value.filename is None:
        return value
    whole = value
    while isinstance(
        whole.base, np.memmap
    ):  # a slice says nothing of where it begins, its address does
        whole = whole.base
    offset = whole.offset + value.ctypes.data - whole.ctypes.data
    return _Mapped(str(value.filename), value.dtype, value.shape, offset)


def _unpacked(value: object) -> object:
    if isinstance(value, Rows):
        return replace(value, array=_unpacked(value.array))
    if not isinstance(value, _Mapped):
        return value
    return np.memmap(value.file, value.dtype, mode="r", offset=value.offset, shape=value.shape)


@dataclass
class FittedModel:
    """A tower and a head, and what happened to them: one dict an epoch, epoch 0 being the start.

    `factor` is how far the weights went from the start (0) to the best epoch (1); `factors` has the score of each one tried.
    """

    tower: Tower
    head: nn.Module
    history: list[dict] = field(default_factory=list)
    factor: float = 1.0
    factors: dict[float, float] = field(default_factory=dict)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """(n, ...) activations -> (n, 384) float32 predictions, not of unit length; the tower under autocast."""
        with autocast(activations.device):
            embedding = self.tower(activations)
        return self.head(embedding)


# --- weights ---


def load_weights(file: Path, device: str) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file by name. Raises ValueError naming a file that is broken or holds NaN or infinity."""
    with readable(file):
        found = load_file(file, device=device)
    bad = [name for name, tensor in found.items() if not tensor.isfinite().all()]
    if bad:
        raise ValueError(
            f"{display_path(file)}: {len(bad)} of {len(found)} tensors hold NaN or infinity, e.g. {bad[0]}"
        )
    return found


def weights(fitted: FittedModel) -> dict[str, torch.Tensor]:
    """The tensors that training changes, by name: trained parameters and the head's running statistics. Not copies."""
    tower = {f"tower.{name}": p for name, p in fitted.tower.named_parameters() if p.requires_grad}
    return tower | {f"head.{name}": p for name, p in fitted.head.state_dict(keep_vars=True).items()}


def snapshot(fitted: FittedModel) -> dict[str, torch.Tensor]:
    """A copy of `weights`."""
    return {name: p.detach().clone() for name, p in weights(fitted).items()}


@torch.no_grad()
def restore(fitted: FittedModel, state: dict[str, torch.Tensor]) -> None:
    """Put a snapshot back. Raises ValueError naming the tensors that are missing, too many or of another shape."""
    here = weights(fitted)
    if here.keys() != state.keys():
        raise ValueError(
            f"weights do not fit this tower and head, e.g. {sorted(here.keys() ^ state.keys())[:3]}"
        )
    wrong = [name for name, p in here.items() if p.shape != state[name].shape]
    if wrong:  # copy_ would repeat a smaller one
        shape, wanted = tuple(state[wrong[0]].shape), tuple(here[wrong[0]].shape)
        raise ValueError(
            f"weights do not fit this tower and head, e.g. {wrong[0]} {shape}, wanted {wanted}"
        )
    for name, p in here.items():
        p.copy_(state[name])


def interpolate(
    start: dict[str, torch.Tensor], end: dict[str, torch.Tensor], factor: float
) -> dict[str, torch.Tensor]:
    """WiSE-FT: (1 - factor) start + factor end, tensor by tensor; counters are those of the end."""
    return {
        name: torch.lerp(start[name], end[name], factor)
        if end[name].is_floating_point()
        else end[name]
        for name in end
    }


def parameter_groups(tower: Tower, head: nn.Module, recipe: Recipe) -> list[dict]:
    """AdamW's groups: the tower at `lr_vision` times `layer_decay` a block from the top, the head at `lr_fc` (its second layer at
    `lr_fc2`); norms, biases and scalars without weight decay."""
    groups: dict[tuple, list] = {}
    for name, p in tower.named_parameters():
        groups.setdefault(
            ("tower", recipe.lr_vision * recipe.layer_decay ** tower.depth(name), p.ndim > 1), []
        ).append(p)
    for name, p in head.named_parameters():
        second = recipe.lr_fc2 is not None and name.split(".")[0] in ("fc2", "norm2")
        groups.setdefault(
            ("head", recipe.lr_fc2 if second else recipe.lr_fc, p.ndim > 1), []
        ).append(p)
    return [
        {
            "name": name,
            "params": chosen,
            "lr": rate,
            "weight_decay": recipe.weight_decay if decays else 0.0,
        }
        for (name, rate, decays), parameters in groups.items()
        if (chosen := [p for p in parameters if p.requires_grad])
    ]


def warmup_cosine(step: int, *, n_steps: int, warmup: float) -> float:
    """The learning rate's factor: linear up over the share `warmup` of the steps, then half a cosine down to nearly 0."""
    rising = max(1, round(warmup * n_steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + cos(pi * min(1.0, (step - rising + 1) / (n_steps - rising + 1))))


def losses(prediction: torch.Tensor, target: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """(n,) loss of each row: 1 - cosine, and with `contrastive` or `huber` that much of the other one (`loss_mix`) beside it."""
    cosine = 1 - F.cosine_similarity(prediction, target, dim=-1)
    if recipe.loss == "cosine":
        return cosine
    unit = F.normalize(prediction, dim=-1)
    if recipe.loss == "huber":
        scale = (
            target.shape[1] ** 0.5
        )  # so that an entry is near 1 and Huber's corner means something
        return cosine + recipe.loss_mix * F.huber_loss(
            unit * scale, target * scale, reduction="none"
        ).mean(dim=1)
    logits, own = unit @ target.T / TEMPERATURE, torch.arange(len(target), device=target.device)
    both = F.cross_entropy(logits, own, reduction="none") + F.cross_entropy(
        logits.T, own, reduction="none"
    )
    return cosine + recipe.loss_mix * both / 2


# --- batches ---


def tower_inputs(
    fitted: FittedModel,
    encoder: Encoder,
    data: TrainingSet,
    rows: np.ndarray,
    *,
    augment: bool = False,
) -> torch.Tensor:
    """What the tower's `forward` takes for `rows`: kept activations, or pixels through its frozen part (changed if `augment`)."""
    kept = data.activations if fitted.tower.trains else data.embeddings
    if kept is not None and not augment:
        return torch.from_numpy(kept[rows]).to(encoder.device, torch.float32)
    pixels = torch.from_numpy(data.pixels[rows]).to(encoder.device)
    if augment:
        may_flip = (
            torch.ones(len(rows), dtype=torch.bool)
            if data.may_flip is None
            else torch.from_numpy(data.may_flip[rows])
        )
        pixels = augmentation.augment(
            pixels.permute(0, 3, 1, 2), may_flip.to(encoder.device)
        ).permute(0, 2, 3, 1)
    with autocast(encoder.device):
        return fitted.tower.frozen(
            encoder.normalise(pixels).contiguous(memory_format=torch.channels_last)
        )


@dataclass(frozen=True)
class EpochPlan:
    """One epoch, drawn from its own seed: which image and which version of the target each step takes."""

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
    """The order of `rows` in `epoch`; with `sample_duplicates` each row's place goes to one of the images that stand for it."""
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(rows)
    versions = random.integers(len(data.targets) if recipe.augment_text else 1, size=len(order))
    if recipe.sample_duplicates and data.stands_for is not None:
        order = _drawn(data.stands_for, order, random)
    n_batches = -(-len(order) // recipe.batch_size)
    return EpochPlan(order, versions, np.linspace(0, len(order), n_batches + 1).round().astype(int))


def _drawn(stands_for: np.ndarray, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    by_keeper = np.argsort(stands_for, kind="stable")
    first = np.searchsorted(stands_for[by_keeper], rows)
    count = np.searchsorted(stands_for[by_keeper], rows, side="right") - first
    return by_keeper[first + random.integers(np.maximum(count, 1))]


# --- the run ---


class Trainer:
    """Training in progress: `steps` goes on from where it stands; `save` and `load` keep all of it."""

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
        self.fitted, self.encoder, self.data, self.rows = fitted, encoder, data, rows
        self.recipe, self.seed, self.label = recipe, seed, label
        self.groups = parameter_groups(fitted.tower, fitted.head, recipe)
        self.optimiser = torch.optim.AdamW(self.groups)
        self.n_batches = -(-len(rows) // recipe.batch_size)
        n_steps = recipe.epochs * -(-self.n_batches // recipe.accumulate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: warmup_cosine(step, n_steps=n_steps, warmup=recipe.warmup)
        )
        self.scaler = torch.amp.GradScaler(encoder.device.type, enabled=_is_fp16(encoder.device))
        self.average = snapshot(fitted) if recipe.ema else None
        self.best, self.epoch, self.batch, self.total, self.updates = snapshot(fitted), 1, 0, 0.0, 0

    def steps(self) -> Iterator[None]:
        """Train through the present epoch, yielding after each batch."""
        drawn = epoch_plan(self.data, self.rows, self.recipe, seed=self.seed, epoch=self.epoch)
        self.fitted.head.train()
        with tqdm(
            total=self.n_batches,
            initial=self.batch,
            desc=f"{self.label} epoch {self.epoch}/{self.recipe.epochs}",
            unit="batch",
            leave=False,
        ) as bar:
            while self.batch < self.n_batches:
                self.total += self._batch(*drawn.batch(self.batch))
                self.batch += 1
                bar.update()
                yield

    def _batch(self, rows: np.ndarray, versions: np.ndarray) -> float:
        try:
            loss = self._loss(rows, versions)
            if not torch.isfinite(loss):
                raise FloatingPointError(
                    f"{self.label}: the loss is {loss.item()} in epoch {self.epoch}, batch {self.batch}, at learning rates "
                    f"{sorted(set(self.schedule.get_last_lr()))}; lower them. Ids: {[self.data.ids[i] for i in rows]}"
                )
            self.scaler.scale(loss * len(rows) / self._rows_in_update()).backward()
            if (self.batch + 1) % self.recipe.accumulate == 0 or self.batch + 1 == self.n_batches:
                self._update()
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError(
                f"{self.label}: out of GPU memory with batch_size {self.recipe.batch_size}. Halve it and double accumulate, turn "
                f"on grad_checkpointing, or lower trainable_blocks. ({error})"
            ) from error
        return loss.item() * len(rows)

    def _loss(self, rows: np.ndarray, versions: np.ndarray) -> torch.Tensor:
        target = torch.from_numpy(self.data.targets[versions, rows]).to(self.encoder.device)
        x = tower_inputs(
            self.fitted, self.encoder, self.data, rows, augment=self.recipe.augment_images
        )
        each = losses(self.fitted.forward(x), target, self.recipe)
        if not self.recipe.weight_by_clip_score:
            return each.mean()
        weight = torch.from_numpy(self.data.agreement[rows]).to(each)
        return (weight * each).sum() / weight.sum()

    def _rows_in_update(self) -> float:
        """Rows of all the batches that this update adds up, so that its size does not depend on their number."""
        first = self.batch // self.recipe.accumulate * self.recipe.accumulate
        last = min(first + self.recipe.accumulate, self.n_batches)
        return len(self.rows) * (last - first) / self.n_batches

    def _update(self) -> None:
        self.scaler.unscale_(self.optimiser)
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(
                [p for g in self.groups for p in g["params"]], self.recipe.clip_norm
            )
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.schedule.step()
        self.updates += 1
        if self.average is not None:
            self._add_to_average()

    @torch.no_grad()
    def _add_to_average(self) -> None:
        decay = min(
            self.recipe.ema, (1 + self.updates) / (10 + self.updates)
        )  # early on the average must not be the start
        now = weights(self.fitted)
        floats = [name for name in now if now[name].is_floating_point()]
        torch._foreach_lerp_(
            [self.average[name] for name in floats],
            [now[name].detach() for name in floats],
            1 - decay,
        )
        for name in now.keys() - set(floats):
            self.average[name].copy_(now[name])

    def save(self, folder: Path) -> None:
        """Write a checkpoint: weights as safetensors, the rest for torch.load(weights_only=True), which names the weights' file."""
        name = f"weights-{self.epoch}-{self.batch}.safetensors"
        parts = {"now": snapshot(self.fitted), "best": self.best, "average": self.average or {}}
        with atomic(folder / name) as temporary:
            save_file(
                {
                    f"{part}.{n}": p.cpu().contiguous()
                    for part, state in parts.items()
                    for n, p in state.items()
                },
                temporary,
            )
        state = {
            "weights": name,
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "history": self.fitted.history,
            "cuda_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "position": {
                "epoch": self.epoch,
                "batch": self.batch,
                "total": self.total,
                "updates": self.updates,
            },
        }
        with atomic(folder / "state.pt") as temporary:
            torch.save(state, temporary)
        for old in folder.glob("weights-*.safetensors"):
            if old.name != name:
                old.unlink()

    def load(self, folder: Path) -> bool:
        """Go on from a checkpoint; False when there is none. Raises ValueError naming a file that is broken or no data."""
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
        self.best, self.average = parts["best"], parts["average"] or None
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        if state["cuda_random"]:
            torch.cuda.set_rng_state_all(state["cuda_random"])
        self.fitted.history[:] = state["history"]
        for name, value in state["position"].items():
            setattr(self, name, value)
        return True


def _is_fp16(device: torch.device) -> bool:
    return device.type == "cuda" and not torch.cuda.is_bf16_supported()
