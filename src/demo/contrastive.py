"""The contrastive training of the demo's CLIP: model, loss, scores, epochs."""

import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from src.demo.grammar import Scene, nouns
from src.demo.recipe import SIZE_SHARES, ClipRecipe
from src.demo.weights import EMBED_DIM, VISION_TOWER, VISION_WIDTH, imagenet_weights
from src.encoder import multiplies_bf16

STORE = 24_000  # prompts, about as many as Model B looks through in the demo
SHOWN = 3  # prompts, as many as the gallery shows for an image

# the model --------------------------------------------------------------------


class VisionTower(nn.Module):
    """(b, 3, s, s) float in -1 to 1 -> (b, 384): EfficientNet-lite0 and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk: Any = timm.create_model(VISION_TOWER, pretrained=False, num_classes=0)
        self.trunk.load_state_dict(imagenet_weights())
        projection = nn.Linear(VISION_WIDTH, EMBED_DIM, bias=False)
        nn.init.normal_(projection.weight, std=VISION_WIDTH**-0.5)
        self.head = nn.Sequential(OrderedDict(proj=projection))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(x))


class TextProjection(nn.Module):
    """(b, 384) sentence embeddings -> (b, 384); MiniLM itself is frozen and runs beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(EMBED_DIM, EMBED_DIM, bias=False)
        nn.init.eye_(self.proj.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


class TrainedClip(nn.Module):
    """The part of the CLIP that is trained; its tensors have open_clip's names."""

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.visual = VisionTower()
        self.text = TextProjection()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))


def bf16(device: torch.device) -> torch.autocast:
    """Autocast to bf16 where the device computes it natively, else fp32."""
    on_gpu = device.type == "cuda"
    native = torch.cuda.is_bf16_supported() if on_gpu else multiplies_bf16()
    return torch.autocast(device.type, torch.bfloat16, enabled=native)


def encode_images(model: TrainedClip, x: torch.Tensor) -> torch.Tensor:
    """(b, s, s, 3) uint8 -> (b, 384) unit rows, as open_clip's preprocessing and tower give."""
    x = x.permute(0, 3, 1, 2).float() / 127.5 - 1
    features = model.visual(x.contiguous(memory_format=torch.channels_last))
    return F.normalize(features.float(), dim=-1)


def encode_texts(model: TrainedClip, sentence_embeddings: torch.Tensor) -> torch.Tensor:
    """(b, 384) sentence embeddings -> (b, 384) unit rows.

    The text tower's mean-pooled output is the sentence embedding but for its length, which a linear
    layer without bias hands on and the normalization removes.
    """
    return F.normalize(model.text(sentence_embeddings).float(), dim=-1)


def contrastive_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor | float
) -> torch.Tensor:
    """CLIP's loss: each image finds its text among the batch's, and each text its image."""
    logits = scale * images @ texts.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


# what it finds ----------------------------------------------------------------


@dataclass(frozen=True)
class Scenes:
    """n scenes, their pixels (n, s, s, 3) uint8 and their prompts' sentence embeddings (n, 384)."""

    scenes: list[Scene]
    pixels: np.ndarray
    texts: np.ndarray

    def first(self, n: int) -> "Scenes":
        """The first n of them."""
        return Scenes(self.scenes[:n], self.pixels[:n], self.texts[:n])

    def after(self, n: int) -> "Scenes":
        """All but the first n of them."""
        return Scenes(self.scenes[n:], self.pixels[n:], self.texts[n:])


@dataclass(frozen=True)
class Strength:
    """What a CLIP finds for held-out images, as shares of the images.

    recall_at_1: their own prompt is first among all held-out prompts. names_subject: one of the
    SHOWN nearest of the store's prompts names a subject of the image.
    """

    recall_at_1: float
    names_subject: float

    def __str__(self) -> str:
        return f"R@1 {self.recall_at_1:.3f}, names a subject {self.names_subject:.3f}"


def strength(model: TrainedClip, held_out: Scenes, store: Scenes, device: torch.device) -> Strength:
    """How well `model` ranks the prompts of `held_out` and of `store` for the held-out images."""
    model.eval()
    images = embed_images(model, held_out.pixels, device)
    own = embed_prompts(model, held_out.texts, device)
    others = embed_prompts(model, store.texts, device)

    first = (images @ own.T).argmax(dim=1).cpu().numpy()
    nearest = (images @ others.T).topk(SHOWN, dim=1).indices.tolist()
    hits = [
        any(not nouns(scene).isdisjoint(nouns(store.scenes[i])) for i in rows)
        for scene, rows in zip(held_out.scenes, nearest, strict=True)
    ]
    return Strength(
        recall_at_1=float((first == np.arange(len(first))).mean()),
        names_subject=float(np.mean(hits)),
    )


@torch.inference_mode()
def embed_images(model: TrainedClip, pixels: np.ndarray, device: torch.device) -> torch.Tensor:
    """(n, s, s, 3) uint8 -> (n, 384) unit rows on the device."""
    parts = []
    for start in range(0, len(pixels), 250):
        batch = torch.from_numpy(np.array(pixels[start : start + 250])).to(device)
        with bf16(device):
            parts.append(encode_images(model, batch))
    return torch.cat(parts)


@torch.inference_mode()
def embed_prompts(model: TrainedClip, texts: np.ndarray, device: torch.device) -> torch.Tensor:
    """(n, 384) sentence embeddings -> (n, 384) unit rows on the device."""
    return encode_texts(model, torch.from_numpy(texts).to(device))


# training ---------------------------------------------------------------------


def kind(scene: Scene) -> str:
    """What a scene shows but for the things: setting, style, light, how many of each thing."""
    counts = [subject.count for subject in scene.subjects]
    return f"{scene.setting} {scene.style} {scene.light} {len(counts)} {counts}"


def alike_order(groups: np.ndarray, alike: int, rng: np.random.Generator) -> np.ndarray:
    """A random order of the rows (n,) in which sets of `alike` neighbors are of the same group.

    A set that a group does not fill goes on with the next group. Rows that fill no set are left
    out; they are others each time.
    """
    shuffled = rng.permutation(len(groups))
    by_group = shuffled[np.argsort(groups[shuffled], kind="stable")]
    by_group = np.roll(by_group, rng.integers(len(groups)))
    sets = by_group[: len(groups) // alike * alike].reshape(-1, alike)
    return rng.permutation(sets).ravel()


class ClipTrainer:
    """Epoch after epoch at one rate; the weights that count are their moving average.

    So no number of epochs has to be chosen beforehand: after each of them the average is as good
    as a schedule that ends there. A checkpoint after each epoch, from which it is resumed.
    """

    def __init__(
        self, recipe: ClipRecipe, training: Scenes, held_out: Scenes, *, work: Path, device: str
    ) -> None:

        self.recipe = recipe
        self.training = training
        self.held_out = held_out
        self.store = training.first(STORE)
        self.device = torch.device(device)
        self.checkpoint = work / "training.pt"
        self.scores: list[Strength] = []
        self.seconds = 0.0

        # labels in an order in which neighbors are alike too
        kinds = [kind(scene) for scene in training.scenes]
        self.groups = np.unique(kinds, return_inverse=True)[1]

        torch.manual_seed(recipe.seed)
        self.model = TrainedClip(recipe.temperature).to(self.device)
        self.model = self.model.to(memory_format=torch.channels_last)
        self.averaged = AveragedModel(
            self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average), use_buffers=True
        )

        # biases, norms and the temperature have no weight decay
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
        if self.checkpoint.exists():
            self._resume()

    def _resume(self) -> None:

        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scores = [Strength(*score) for score in state["scores"]]
        self.seconds = state["seconds"]

    def _save(self) -> None:

        temporary = self.checkpoint.with_suffix(".tmp")
        state = {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scores": [astuple(score) for score in self.scores],
            "seconds": self.seconds,
        }
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def run(self, enough: Callable[[Strength], bool], max_epochs: int) -> TrainedClip:
        """Train until an epoch's score is `enough`; return the averaged model."""
        while len(self.scores) < max_epochs and not (self.scores and enough(self.scores[-1])):
            clock = time.perf_counter()
            self._epoch(len(self.scores))
            score = strength(self.average(), self.held_out, self.store, self.device)
            self.scores.append(score)
            self.seconds += time.perf_counter() - clock
            self._save()
            print(f"after epoch {len(self.scores)}: {score}", flush=True)
        return self.average()

    def average(self) -> TrainedClip:
        """The model with the moving average of the weights."""
        return cast(TrainedClip, self.averaged.module)

    def _epoch(self, epoch: int) -> None:

        recipe = self.recipe
        # an epoch that is run again after a stop draws what it drew before
        rng = np.random.default_rng([recipe.seed, epoch])
        order = alike_order(self.groups, recipe.alike, rng)
        steps = len(order) // recipe.batch
        scales = rng.choice(list(SIZE_SHARES), steps, p=list(SIZE_SHARES.values()))

        self.model.train()
        bar = tqdm(range(steps), desc=f"epoch {epoch + 1}", unit="step")
        for step in bar:
            # sorted, since rows of a memory map are read faster in order; a batch has none
            rows = np.sort(order[step * recipe.batch : (step + 1) * recipe.batch])
            images = self._batch(rows, float(scales[step]), flip=rng.random(len(rows)) < 0.5)
            sentences = torch.from_numpy(self.training.texts[rows]).to(self.device)
            with bf16(self.device):
                encoded = encode_images(self.model, images)
            texts = encode_texts(self.model, sentences)

            # clamped as in CLIP, so that the temperature cannot run away
            scale = self.model.logit_scale.exp().clamp(max=100)
            loss = contrastive_loss(encoded, texts, scale)

            warm = min(1, (epoch * steps + step + 1) / recipe.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.lr * warm
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.averaged.update_parameters(self.model)
            bar.set_postfix(loss=f"{loss.item():.3f}")

    def _batch(self, rows: np.ndarray, scale: float, *, flip: np.ndarray) -> torch.Tensor:
        """(b, s, s, 3) uint8 on the device, some of it mirrored, resized where `scale` is not 1."""
        x = torch.from_numpy(self.training.pixels[rows]).to(self.device)
        mirrored = torch.from_numpy(flip).to(self.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(2), x)
        if scale == 1:
            return x

        size = round(self.recipe.clip_size * scale)
        x = x.permute(0, 3, 1, 2).float()
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False)
        return x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
