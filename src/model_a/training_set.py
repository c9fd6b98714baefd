"""What Model A learns from: images, their frozen embeddings, targets and groups, row by row."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from tqdm import tqdm

from src.artifacts import atomic, fingerprint, indices_of_ids, load_json, reserved, save_json
from src.data import images, prompts
from src.encoder import Encoder, autocast, image_embeddings, text_embeddings
from src.model_a.head import N_OUT
from src.model_a.recipe import ACTIVATION_BYTES, Recipe
from src.model_a.tower import Tower, make_tower, plain_tower
from src.paths import CACHE

# a removed row stands in for its keeper from this similarity on; rows that filter 1 removed
# may be less alike
STAND_IN_SIMILARITY = 0.85


@dataclass(frozen=True)
class TrainingSet:
    """Aligned by row: ids, pixels (n, s, s, 3) uint8, frozen embeddings (n, D), targets, groups.

    `targets` are (v, n, 384): `targets[0]` are those of the prompts themselves, further ones those
    of changed prompts, one drawn in each epoch. `activations` (n, ...) are what the tower's frozen
    blocks give. `stands_for` (n,) names, for a row that a filter removed, the kept row whose place
    it may take in an epoch. `weight` (n,) weighs the rows' losses. `may_flip` (n,) is false where
    the prompt tells left from right. `pixels_key` changes with the content of the images.
    """

    ids: list[str]
    pixels: np.ndarray | images.Rows
    embeddings: np.ndarray
    targets: np.ndarray
    group: np.ndarray
    activations: np.ndarray | None = None
    stands_for: np.ndarray | None = None
    weight: np.ndarray | None = None
    may_flip: np.ndarray | None = None
    pixels_key: str = ""

    def __post_init__(self):
        lengths = {
            len(self.ids),
            len(self.pixels),
            len(self.embeddings),
            self.targets.shape[1],
            len(self.group),
        }
        optional = (self.activations, self.stands_for, self.weight, self.may_flip)
        lengths |= {len(part) for part in optional if part is not None}
        if len(lengths) > 1:
            raise ValueError(f"a training set's parts have different lengths: {sorted(lengths)}")

    def __getstate__(self) -> dict:
        """For another process: memory maps go as the files they are."""
        return {name: _packed(value) for name, value in vars(self).items()}

    def __setstate__(self, state: dict) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, _unpacked(value))


# --- on the way to another process ---


@dataclass(frozen=True)
class _MappedFile:
    """A memory map as the file that it shows."""

    file: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int


def _packed(value: object) -> object:
    if isinstance(value, images.Rows):
        packed = _packed(value.array)
        return replace(value, array=packed)  # type: ignore[arg-type]  # a file, on the way only
    if not isinstance(value, np.memmap) or not value.flags.c_contiguous or value.filename is None:
        return value

    # a slice does not say where in the file it begins, but its address does
    whole = value
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    offset = whole.offset + value.ctypes.data - whole.ctypes.data
    return _MappedFile(str(value.filename), value.dtype, value.shape, offset)


def _unpacked(value: object) -> object:
    if isinstance(value, images.Rows):
        array = _unpacked(value.array)
        return replace(value, array=array)  # type: ignore[arg-type]  # the array again
    if not isinstance(value, _MappedFile):
        return value
    return np.memmap(value.file, value.dtype, mode="r", offset=value.offset, shape=value.shape)


# --- from 01's tables ---


def training_set(
    encoder: Encoder,
    frame: pl.DataFrame,
    out: Path,
    *,
    name: str,
    recipe: Recipe,
    targets: np.ndarray,
    cluster: str | None = None,
) -> TrainingSet:
    """The pairs of `frame` with their `targets` (v, n, 384), as `encoder` and `recipe` need them.

    `frame` has id, image, prompt, group, keeper and similarity. Pixels, frozen embeddings and
    frozen activations are kept in the cache as `name`. Workers of a `cluster` decode the images
    that are not in the cache yet.
    """
    pixels, embeddings, activations = _images(
        encoder, frame, out, name=name, recipe=recipe, cluster=cluster
    )

    # a row that a filter removed may take its keeper's place where the two are alike
    keepers = indices_of_ids(pixels.ids, frame["keeper"].to_list(), "keepers")
    alike = frame["similarity"].to_numpy() >= STAND_IN_SIMILARITY
    stands_for = np.where(alike, keepers, np.arange(len(frame)))

    texts = frame["prompt"].to_list()
    weight = None
    if recipe.weight_by_clip_score:
        weight = clip_score_weights(encoder, embeddings, texts, out / CACHE, name)

    return TrainingSet(
        ids=pixels.ids,
        pixels=pixels.array,
        embeddings=embeddings,
        targets=targets,
        group=frame["group"].to_numpy(),
        activations=activations,
        stands_for=stands_for,
        weight=weight,
        may_flip=np.array([not prompts.tells_sides(text) for text in texts]),
        pixels_key=pixels.key,
    )


def prediction_set(
    encoder: Encoder,
    frame: pl.DataFrame,
    out: Path,
    *,
    name: str,
    recipe: Recipe,
    cluster: str | None = None,
) -> TrainingSet:
    """The images of `frame` (id, image) for prediction alone: their targets are zero."""
    pixels, embeddings, activations = _images(
        encoder, frame, out, name=name, recipe=recipe, cluster=cluster
    )
    return TrainingSet(
        ids=pixels.ids,
        pixels=pixels.array,
        embeddings=embeddings,
        targets=np.zeros((1, len(frame), N_OUT), np.float32),
        group=np.zeros(len(frame), dtype=np.int64),
        activations=activations,
        pixels_key=pixels.key,
    )


def _images(
    encoder: Encoder,
    frame: pl.DataFrame,
    out: Path,
    *,
    name: str,
    recipe: Recipe,
    cluster: str | None,
) -> tuple[images.Pixels, np.ndarray, np.ndarray | None]:
    """Pixels, frozen embeddings (n, D), and frozen activations (n, ...) where these are kept."""
    folder = out / CACHE
    pixels, _ = images.cache(
        frame.select("id", "image"),
        folder,
        geometry=encoder.geometry,
        name=name.split(".", maxsplit=1)[0],
        cluster=cluster,
    )
    tower = make_tower(encoder, recipe)
    file = folder / f"activations_{name}_{tower.cut}.npy"
    activations = frozen_activations(tower, encoder, pixels, file)

    # from activations in half precision the embeddings would not be the encoder's own
    compute = None
    if activations is not None and activations.dtype == np.float32:
        rest = plain_tower(encoder, tower.cut)
        compute = partial(embeddings_from_activations, rest, activations)
    embeddings = image_embeddings(encoder, pixels, folder, name=name, compute=compute)
    return pixels, embeddings, activations


def clip_score_weights(
    encoder: Encoder, embeddings: np.ndarray, texts: Sequence[str], folder: Path, name: str
) -> np.ndarray:
    """(n,) float32 from 0.5 to 1.5 by the rank of the CLIP score: the cosine of image and prompt.

    A rank does not depend on the scale of the scores.
    """
    # both are unit rows: the product is the cosine
    text = text_embeddings(encoder, texts, folder, name=name)
    score = np.einsum("nd,nd->n", embeddings, text)
    rank = score.argsort().argsort()
    return (0.5 + rank / max(1, len(score) - 1)).astype(np.float32)


# --- frozen activations ---


def frozen_activations(
    tower: Tower, encoder: Encoder, pixels: images.Pixels, file: Path
) -> np.ndarray | None:
    """What `tower.frozen` gives for every image, (n, ...) memory-mapped from `file`.

    float16 on a GPU, else float32; computed once for these pixels and this cut. None where the
    tower is not cut or the file would be above 4 GiB.
    """
    if not tower.splits or not tower.trains:
        return None

    # the record is written last: without it the activations count as not written
    record = file.with_suffix(".json")
    key = fingerprint(encoder.fingerprint, tower.cut, pixels.key, str(encoder.device))
    if not record.exists() or load_json(record)["key"] != key:
        record.unlink(missing_ok=True)
        if not _write_activations(tower, encoder, pixels.array, file):
            return None
        save_json(record, {"key": key})
    return np.load(file, mmap_mode="r")


@torch.no_grad()
def _write_activations(
    tower: Tower, encoder: Encoder, pixels: np.ndarray | images.Rows, file: Path
) -> bool:
    """Whether the file was written: not where it would be above ACTIVATION_BYTES."""

    def compute(start: int) -> np.ndarray:
        x = encoder.normalize(pixels[start : start + encoder.batch])
        with autocast(encoder.device):
            return tower.frozen(x).cpu().numpy()

    # the first batch tells the shape of one image's activations
    first = compute(0)
    dtype = np.float16 if encoder.device.type == "cuda" else np.float32
    shape = (len(pixels), *first.shape[1:])
    if np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize > ACTIVATION_BYTES:
        return False

    with atomic(file) as temporary:
        array = reserved(temporary, dtype, shape)
        array[: len(first)] = first
        starts = range(encoder.batch, len(pixels), encoder.batch)
        for start in tqdm(starts, desc="frozen blocks", unit="batch"):
            array[start : start + encoder.batch] = compute(start)
        array.flush()
    return True


@torch.no_grad()
def embeddings_from_activations(
    tower: Tower, activations: np.ndarray, *, batch_size: int = 128
) -> np.ndarray:
    """(n, D) frozen embeddings from kept activations: blocks before the cut do not run again."""
    device = next(tower.parameters()).device
    parts = []
    with autocast(device):
        for start in range(0, len(activations), batch_size):
            batch = np.array(activations[start : start + batch_size])
            parts.append(tower(torch.from_numpy(batch).to(device)).cpu())
    return torch.cat(parts).numpy()
