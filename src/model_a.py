"""Model A: a fine-tuned CLIP vision tower with the paper's two-layer head (equations 1-3), and the linear baseline rows.

Every fit starts from a linear probe, a ridge regression on the frozen embeddings, and an inner validation split decides
which epoch stays, the probe itself included: a fine-tune that only loses ends as the probe it came from.
"""

import time
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.model_selection import GroupShuffleSplit
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import v2
from tqdm.auto import tqdm

from src.artifacts import atomic, fingerprint, load_embeddings, load_json, save_embeddings, save_json
from src.encoder import Encoder, autocast
from src.metrics import avg_cos

N_OUT = 384
RIDGES = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # for unit rows: from next to none to almost the mean
ACTIVATION_BYTES = 4 << 30  # above this the frozen blocks run again in every epoch
TAIL = ("conv_head", "bn2", "norm", "fc_norm", "head", "ln_post", "proj", "attn_pool")  # what follows the blocks in a tower


class Head(nn.Module):
    """Equations 1-3: n1 = LN1(FC1 e), n2 = LN2(FC2 n1), a n1 + (1 - a) n2, from (n, width) to (n, n_out)."""

    def __init__(self, width: int, n_out: int = N_OUT):
        super().__init__()
        self.fc1, self.norm1 = nn.Linear(width, n_out), nn.LayerNorm(n_out)
        self.fc2, self.norm2 = nn.Linear(n_out, n_out), nn.LayerNorm(n_out)
        self.mix = nn.Parameter(torch.zeros(()))  # the logit of a, so a starts at 0.5 and stays in (0, 1)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        first = self.norm1(self.fc1(embedding))
        second = self.norm2(self.fc2(first))
        a = torch.sigmoid(self.mix)
        return a * first + (1 - a) * second


@dataclass(frozen=True)
class Recipe:
    """One row's architecture and budget: `head` linear or paper, learning rates of AdamW, how much of the tower trains."""

    head: str
    epochs: int
    batch_size: int
    lr_vision: float
    lr_fc: float
    weight_decay: float
    trainable_blocks: int
    augment_images: bool = False

    def __post_init__(self):
        if self.head not in ("linear", "paper"):
            raise ValueError(f"head must be linear or paper, got {self.head!r}")
        for name in ("epochs", "batch_size", "trainable_blocks"):
            if getattr(self, name) < (0 if name != "batch_size" else 1):
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


class Tower(nn.Module):
    """The vision tower in two parts: `frozen` runs without gradients, `forward` goes on to unit embeddings (n, D).

    The cut is made where timm's convolutional towers allow it (`trunk.blocks` behind a stem); other towers run whole in
    `forward`, their first blocks without gradients of their own.
    """

    def __init__(self, visual: nn.Module, trainable_blocks: int):
        super().__init__()
        self.visual = visual.requires_grad_(False).eval()
        body = getattr(visual, "trunk", visual)
        blocks = _blocks(body)
        if trainable_blocks > len(blocks):
            raise ValueError(f"trainable_blocks {trainable_blocks}, but the tower has {len(blocks)}")
        self.cut = len(blocks) - trainable_blocks
        self.splits = hasattr(body, "conv_stem") and self.cut > 0
        if trainable_blocks:
            tail = [getattr(part, name, None) for part in (body, visual) for name in TAIL]
            for part in [*blocks[self.cut:], *tail]:
                if isinstance(part, nn.Module | nn.Parameter):
                    part.requires_grad_(True)

    @torch.no_grad()
    def frozen(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, s, s) -> activations in front of the first trainable block; `x` itself where the tower is not cut."""
        if not self.splits:
            return x
        trunk = self.visual.trunk
        return trunk.blocks[:self.cut](trunk.bn1(trunk.conv_stem(x)))

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        if not self.splits:
            return F.normalize(self.visual(activations).float(), dim=-1)
        trunk = self.visual.trunk
        pooled = trunk.forward_head(trunk.bn2(trunk.conv_head(trunk.blocks[self.cut:](activations))))
        return F.normalize(self.visual.head(pooled).float(), dim=-1)


def _blocks(body: nn.Module) -> list[nn.Module]:
    """The tower's blocks or stages in order: timm's `blocks` or `stages`, open_clip's `transformer.resblocks`."""
    for name in ("blocks", "stages", "transformer.resblocks", "layer4"):
        part = body
        for step in name.split("."):
            part = getattr(part, step, None)
        if part is not None:
            return list(part)
    raise ValueError(f"no blocks found in a {type(body).__name__}; set trainable_blocks to 0")


@dataclass(frozen=True)
class TrainingSet:
    """Aligned by row: ids, pixels (n, s, s, 3) uint8, frozen unit embeddings (n, D), targets (v, n, 384), groups, folds.

    `targets[0]` are the prompts' own targets; further ones, one drawn at random in each epoch, are those of changed prompts.
    """

    ids: list[str]
    pixels: np.ndarray
    embeddings: np.ndarray
    targets: np.ndarray
    group: np.ndarray
    fold: np.ndarray

    def __post_init__(self):
        lengths = {len(self.ids), len(self.pixels), len(self.embeddings), self.targets.shape[1], len(self.group), len(self.fold)}
        if len(lengths) > 1:
            raise ValueError(f"a training set's parts have different lengths: {sorted(lengths)}")


@dataclass(frozen=True)
class Fitted:
    """A trained tower and head, and what happened: one dict an epoch, epoch 0 being the probe."""

    tower: Tower
    head: nn.Module
    history: list[dict]


def parameter_groups(tower: nn.Module, head: nn.Module, *, lr_vision: float, lr_fc: float, weight_decay: float) -> list[dict]:
    """AdamW's groups: the tower at `lr_vision`, the head at `lr_fc`; norms, biases and scalars without weight decay."""
    groups = []
    for name, part, rate in (("tower", tower, lr_vision), ("head", head, lr_fc)):
        parameters = [p for p in part.parameters() if p.requires_grad]
        for decays in (True, False):
            chosen = [p for p in parameters if (p.ndim > 1) == decays]
            if chosen:
                groups.append({"name": name, "params": chosen, "lr": rate, "weight_decay": weight_decay if decays else 0.0})
    return groups


def ridge(embeddings: np.ndarray, targets: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Weight (d, 384) and bias (384,) float32 of a ridge regression with an unpenalised intercept, solved in float64."""
    x, y = embeddings.astype(np.float64), targets.astype(np.float64)
    x_mean, y_mean = x.mean(axis=0), y.mean(axis=0)
    x, y = x - x_mean, y - y_mean
    weight = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
    return weight.astype(np.float32), (y_mean - x_mean @ weight).astype(np.float32)


def probe(embeddings: np.ndarray, targets: np.ndarray, *, fit: np.ndarray, held_out: np.ndarray
          ) -> tuple[np.ndarray, np.ndarray, float]:
    """The linear probe: the ridge over rows `fit` whose penalty scores best on `held_out`; weight, bias and that penalty."""
    tried = [(*ridge(embeddings[fit], targets[fit], penalty), penalty) for penalty in RIDGES]
    return max(tried, key=lambda found: avg_cos(targets[held_out], embeddings[held_out] @ found[0] + found[1]))


def start_head(kind: str, weight: np.ndarray, bias: np.ndarray, scale: float) -> nn.Module:
    """A linear or paper head that predicts what the probe predicts: FC1 is the probe over `scale`, FC2 the identity."""
    width, n_out = weight.shape
    head = nn.Linear(width, n_out) if kind == "linear" else Head(width, n_out)
    first = head if kind == "linear" else head.fc1
    with torch.no_grad():
        first.weight.copy_(torch.from_numpy(weight.T / scale))
        first.bias.copy_(torch.from_numpy(bias / scale))
        if kind == "paper":
            nn.init.eye_(head.fc2.weight)
            nn.init.zeros_(head.fc2.bias)
    return head


def frozen_activations(tower: Tower, encoder: Encoder, pixels: np.ndarray, *, batch_size: int = 128) -> torch.Tensor | None:
    """What `tower.frozen` gives for every picture, (n, ...) half precision on the CPU; None where the tower is not cut."""
    if not tower.splits or not len(pixels):
        return None
    parts, total = [], 0
    for start in tqdm(range(0, len(pixels), batch_size), desc="frozen blocks", unit="batch"):
        with autocast(encoder.device):
            parts.append(tower.frozen(encoder.normalise(pixels[start:start + batch_size])).cpu())
        total += parts[-1].nbytes
        if total / (start + len(parts[-1])) * len(pixels) > ACTIVATION_BYTES:
            return None
    return torch.cat(parts)


def augmentation() -> v2.Transform:
    """The paper's: a random rotation, flip and crop of one (3, s, s) picture."""
    return v2.Compose([v2.RandomRotation(10, fill=128), v2.RandomHorizontalFlip(), v2.RandomApply([Crop()], p=0.8)])


class Crop(nn.Module):
    """A random crop of 70 to 100 % of the picture's area, resized to its own size."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return v2.RandomResizedCrop(picture.shape[-2:], scale=(0.7, 1.0), ratio=(0.9, 1.1), antialias=True)(picture)


def _batch(tower: Tower, encoder: Encoder, data: TrainingSet, rows: np.ndarray, activations: torch.Tensor | None,
           augment: v2.Transform | None = None) -> torch.Tensor:
    """Input of `tower.forward` for `rows`: cached activations, or pixels through the frozen blocks (changed by `augment`)."""
    if augment is None and activations is not None:
        return activations[torch.from_numpy(rows)].to(encoder.device)
    pixels = torch.from_numpy(np.ascontiguousarray(data.pixels[rows]))
    if augment is not None:
        pixels = torch.stack([augment(p) for p in pixels.permute(0, 3, 1, 2)]).permute(0, 2, 3, 1)
    return tower.frozen(encoder.normalise(pixels).contiguous(memory_format=torch.channels_last))


@torch.no_grad()
def predict(fitted: Fitted, encoder: Encoder, data: TrainingSet, rows: np.ndarray, *, activations: torch.Tensor | None = None,
            batch_size: int = 128) -> np.ndarray:
    """(len(rows), 384) float32 unit rows: predictions in evaluation mode, without any random transform."""
    fitted.head.eval()
    parts = []
    for start in range(0, len(rows), batch_size):
        with autocast(encoder.device):
            embedding = fitted.tower(_batch(fitted.tower, encoder, data, rows[start:start + batch_size], activations))
        parts.append(F.normalize(fitted.head(embedding), dim=-1).cpu())
    return torch.cat(parts).numpy()


def fit(encoder: Encoder, data: TrainingSet, rows: np.ndarray, *, recipe: Recipe, seed: int,
        activations: torch.Tensor | None = None, label: str = "") -> Fitted:
    """Train on `rows` (indices into `data`): probe, then AdamW on 1 - cosine, keeping the best epoch on a held-out tenth.

    The tenth is whole groups. Raises FloatingPointError with the epoch, step and learning rates when the loss is not finite.
    """
    inner, held_out = next(GroupShuffleSplit(1, test_size=0.1, random_state=seed).split(rows, groups=data.group[rows]))
    inner, held_out = rows[inner], rows[held_out]
    weight, bias, penalty = probe(data.embeddings, data.targets[0], fit=inner, held_out=held_out)
    scale = float((data.embeddings[inner] @ weight + bias).std())
    torch.manual_seed(seed)
    head = start_head(recipe.head, weight, bias, scale).to(encoder.device)
    fitted = Fitted(Tower(deepcopy(encoder.model.visual), recipe.trainable_blocks).to(encoder.device), head, [])
    truth = data.targets[0][held_out]

    def score() -> float:
        return avg_cos(truth, predict(fitted, encoder, data, held_out, activations=activations))

    fitted.history.append({"epoch": 0, "loss": None, "score": score(), "penalty": penalty})
    best, state = fitted.history[0]["score"], _state(fitted)
    for entry in _epochs(fitted, encoder, data, inner, recipe, seed, activations, label):
        fitted.history.append({**entry, "score": score()})
        if fitted.history[-1]["score"] > best:
            best, state = fitted.history[-1]["score"], _state(fitted)
    _restore(fitted, state)
    return fitted


def _epochs(fitted: Fitted, encoder: Encoder, data: TrainingSet, rows: np.ndarray, recipe: Recipe, seed: int,
            activations: torch.Tensor | None, label: str):
    """Train epoch by epoch, yielding each epoch's number and mean loss."""
    groups = parameter_groups(fitted.tower, fitted.head, lr_vision=recipe.lr_vision, lr_fc=recipe.lr_fc,
                              weight_decay=recipe.weight_decay)
    optimiser = torch.optim.AdamW(groups)
    per_epoch = -(-len(rows) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [g["lr"] for g in groups], pct_start=0.1, cycle_momentum=False,
                                                   total_steps=max(2, recipe.epochs * per_epoch))
    augment = augmentation() if recipe.augment_images else None
    random = np.random.default_rng(seed)
    for epoch in range(1, recipe.epochs + 1):
        losses, order = [], random.permutation(rows)
        for step in tqdm(range(per_epoch), desc=f"{label} epoch {epoch}/{recipe.epochs}", unit="batch", leave=False):
            batch = order[step * recipe.batch_size:(step + 1) * recipe.batch_size]
            target = torch.from_numpy(data.targets[random.integers(len(data.targets), size=len(batch)), batch]).to(encoder.device)
            x = _batch(fitted.tower, encoder, data, batch, activations, augment)
            fitted.head.train()
            with autocast(encoder.device):
                embedding = fitted.tower(x)
            loss = 1 - F.cosine_similarity(fitted.head(embedding), target, dim=-1).mean()
            if not torch.isfinite(loss):
                raise FloatingPointError(f"{label}: loss is {loss.item()} in epoch {epoch}, step {step}, at learning rates "
                                         f"{schedule.get_last_lr()}; first ids {[data.ids[i] for i in batch[:3]]}")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        yield {"epoch": epoch, "loss": float(np.mean(losses))}


def _trained(fitted: Fitted) -> dict[str, torch.Tensor]:
    tower = {f"tower.{name}": p for name, p in fitted.tower.named_parameters() if p.requires_grad}
    return tower | {f"head.{name}": p for name, p in fitted.head.named_parameters()}


def _state(fitted: Fitted) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in _trained(fitted).items()}


@torch.no_grad()
def _restore(fitted: Fitted, state: dict[str, torch.Tensor]) -> None:
    for name, p in _trained(fitted).items():
        p.copy_(state[name])


def train_fold(encoder: Encoder, data: TrainingSet, test: TrainingSet, *, rows: np.ndarray, scored: np.ndarray, recipe: Recipe,
               seed: int, base: Path, activations: tuple = (None, None), label: str = "") -> dict:
    """Fit on `rows`, predict `scored` (indices into `data`) and the test set, and keep all of it under `base`.

    A fold that was trained before from the same rows, targets, CLIP and recipe is not trained again. Returns history,
    rows_trained, seconds, score; predictions lie at `<base>_oof` and `<base>_test`, trained weights at `<base>.safetensors`.
    """
    record = base.with_name(base.name + ".json")
    key = fingerprint(asdict(recipe), seed, encoder.fingerprint, [data.ids[i] for i in rows], [data.ids[i] for i in scored],
                      data.targets[:, rows], test.ids)
    if record.exists() and load_json(record)["key"] == key:
        return load_json(record)
    record.unlink(missing_ok=True)
    start = time.perf_counter()
    fitted = fit(encoder, data, rows, recipe=recipe, seed=seed, activations=activations[0], label=label)
    oof = predict(fitted, encoder, data, scored, activations=activations[0])
    seconds = time.perf_counter() - start
    save_embeddings(base.with_name(base.name + "_oof"), [data.ids[i] for i in scored], oof)
    save_embeddings(base.with_name(base.name + "_test"), test.ids,
                    predict(fitted, encoder, test, np.arange(len(test.ids)), activations=activations[1]))
    with atomic(base.with_name(base.name + ".safetensors")) as temporary:
        save_file({name: p.cpu().contiguous() for name, p in _state(fitted).items()}, temporary)
    save_json(record, {"key": key, "rows_trained": len(rows), "seconds": seconds, "history": fitted.history,
                       "score": avg_cos(data.targets[0][scored], oof)})
    return load_json(record)


def gather(bases: list[Path], what: str) -> tuple[list[str], np.ndarray]:
    """Join the folds' predictions: `oof` one after another, `test` as the unit mean over folds. Ids and (n, 384) unit rows."""
    read = [load_embeddings(base.with_name(f"{base.name}_{what}")) for base in bases]
    if what == "oof":
        return [i for ids, _ in read for i in ids], np.concatenate([x for _, x in read])
    total = np.sum([load_embeddings(base.with_name(f"{base.name}_test"), read[0][0])[1] for base in bases], axis=0)
    return read[0][0], (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)
