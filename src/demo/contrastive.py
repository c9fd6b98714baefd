"""The contrastive training of the demo's CLIP: model, loss, retrieval score, one schedule."""

import math
import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from src.demo.recipe import SIZE_SHARES, ClipRecipe
from src.demo.weights import EMBED_DIM, VISION_TOWER, VISION_WIDTH, imagenet_weights
from src.encoder import multiplies_bf16

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


def retrieval(
    model: TrainedClip, pixels: np.ndarray, texts: np.ndarray, device: torch.device
) -> float:
    """R@1: the share of images whose own prompt is ranked first among all of `texts`."""
    model.eval()
    with torch.inference_mode():
        parts = []
        for start in range(0, len(pixels), 250):
            batch = torch.from_numpy(np.array(pixels[start : start + 250])).to(device)
            with bf16(device):
                parts.append(encode_images(model, batch))
        prompts = encode_texts(model, torch.from_numpy(texts).to(device))
        first = (torch.cat(parts) @ prompts.T).argmax(dim=1).cpu().numpy()
    return float((first == np.arange(len(pixels))).mean())


# training ---------------------------------------------------------------------


class ClipTrainer:
    """One schedule of `epochs` epochs; a checkpoint after each, from which it is resumed."""

    def __init__(
        self,
        recipe: ClipRecipe,
        epochs: int,
        pixels: np.ndarray,
        texts: np.ndarray,
        *,
        work: Path,
        device: str,
    ) -> None:

        self.recipe = recipe
        self.epochs = epochs
        self.pixels = pixels
        self.texts = texts
        self.device = torch.device(device)
        self.checkpoint = work / f"schedule_{epochs}.pt"
        self.scores: list[float] = []
        self.seconds = 0.0

        torch.manual_seed(recipe.seed)
        self.model = TrainedClip(recipe.temperature).to(self.device)
        self.model = self.model.to(memory_format=torch.channels_last)
        if self.device.type == "cpu":
            # a batch of 1,024 keeps some 15 GB of activations otherwise
            self.model.visual.trunk.set_grad_checkpointing()

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
        self.optimizer.load_state_dict(state["optimizer"])
        self.scores = state["scores"]
        self.seconds = state["seconds"]

    def _save(self) -> None:

        temporary = self.checkpoint.with_suffix(".tmp")
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scores": self.scores,
            "seconds": self.seconds,
        }
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)

    def run(self) -> float:
        """Train the rest of the schedule; return R@1 after its last epoch."""
        held_out = slice(self.recipe.scenes, None)
        while len(self.scores) < self.epochs:
            clock = time.perf_counter()
            self._epoch(len(self.scores))
            score = retrieval(self.model, self.pixels[held_out], self.texts[held_out], self.device)
            self.scores.append(score)
            self.seconds += time.perf_counter() - clock
            self._save()
            print(f"{self.epochs} epochs, after {len(self.scores)}: R@1 {score:.3f}", flush=True)
        return self.scores[-1]

    def _epoch(self, epoch: int) -> None:

        recipe = self.recipe
        # an epoch that is run again after a stop draws what it drew before
        rng = np.random.default_rng([recipe.seed, self.epochs, epoch])
        steps = recipe.scenes // recipe.batch
        order = rng.permutation(recipe.scenes)
        scales = rng.choice(list(SIZE_SHARES), steps, p=list(SIZE_SHARES.values()))

        self.model.train()
        bar = tqdm(range(steps), desc=f"epoch {epoch + 1} of {self.epochs}", unit="step")
        for step in bar:
            # sorted, since rows of a memory map are read faster in order; a batch has none
            rows = np.sort(order[step * recipe.batch : (step + 1) * recipe.batch])
            images = self._batch(rows, float(scales[step]), flip=rng.random(len(rows)) < 0.5)
            sentences = torch.from_numpy(self.texts[rows]).to(self.device)
            with bf16(self.device):
                encoded = encode_images(self.model, images)
            texts = encode_texts(self.model, sentences)

            # clamped as in CLIP, so that the temperature cannot run away
            scale = self.model.logit_scale.exp().clamp(max=100)
            loss = contrastive_loss(encoded, texts, scale)

            for group in self.optimizer.param_groups:
                group["lr"] = recipe.lr * self._rate(epoch * steps + step, self.epochs * steps)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")

    def _batch(self, rows: np.ndarray, scale: float, *, flip: np.ndarray) -> torch.Tensor:
        """(b, s, s, 3) uint8 on the device, some of it mirrored, resized where `scale` is not 1."""
        x = torch.from_numpy(self.pixels[rows]).to(self.device)
        mirrored = torch.from_numpy(flip).to(self.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(2), x)
        if scale == 1:
            return x

        size = round(self.recipe.clip_size * scale)
        x = x.permute(0, 3, 1, 2).float()
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False)
        return x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    def _rate(self, step: int, steps: int) -> float:
        """Linear warm-up, then a cosine to zero."""
        warmup = max(1, round(self.recipe.warmup * steps))
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
