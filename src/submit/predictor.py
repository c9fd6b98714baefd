"""New images with a trained `output/`: their embeddings, confidence and nearest prompts.

    from src.submit import Predictor
    predictor = Predictor("output")
    result = predictor(["fox.jpg", "owl.png"])  # .embedding, .confidence, .prompts

`./run_all.sh predict --images FOLDER --out FILE` does it for any number of images (`batch.py`).
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from src import artifacts, encoder, paths
from src.data import images, sample_submission
from src.data.images import ImagePreprocess
from src.ensemble import confidence as confidences
from src.ensemble.blending import combine
from src.ensemble.confidence import load_confidence, load_weights
from src.ensemble.members import member_names
from src.errors import UserError
from src.model_a.averaging import recorded_averaging
from src.model_a.fold_ensemble import FoldEnsemble
from src.model_a.folds import load_fold
from src.model_b import datastore, model
from src.paths import display_path, resolve

PART_SIZE = 1024  # images that are blended, and written to disk, together

ImageBatch = dict[ImagePreprocess, np.ndarray]  # (n, s, s, 3) uint8 for each way to resize


@dataclass(frozen=True)
class Encoded:
    """What the image towers give for a batch: float32 unit rows, aligned by image."""

    by_member: dict[str, np.ndarray]  # member of Model A -> (n, 384)
    by_clip: dict[str, np.ndarray]  # CLIP -> (n, D)


@dataclass(frozen=True)
class Prediction:
    """Aligned by image: `embedding` (n, 384) float32 unit rows, `confidence` (n,) float32, the
    cosine to expect; `prompts`, the nearest of each, and their `similarity` (n, k) float32.
    """

    embedding: np.ndarray
    confidence: np.ndarray
    prompts: list[list[str]]
    similarity: np.ndarray


NO_IMAGES = Prediction(
    np.empty((0, sample_submission.WIDTH), np.float32),
    np.empty(0, np.float32),
    [],
    np.empty((0, 1), np.float32),
)


class Predictor:
    """The members that the blend uses, loaded once.

    FileNotFoundError names the stage whose artifacts are missing, ValueError the stage to run
    again, UserError a CLIP that cannot be loaded.
    """

    def __init__(
        self,
        output: str | Path = "output",
        *,
        device: str = "auto",
        engine: str = "auto",
        neighbors: int = 5,
    ):
        self.output = resolve(output)
        self.neighbors = neighbors
        self.weights = load_weights(self.output, new_images=True)
        self.confidence = load_confidence(self.output, new_images=True)
        self.sides = member_names(self.output)

        clips_a, self.clips_b = clip_names(self.output)
        self.ensembles = self._load_ensembles(clips_a, device)
        self.sentence_model = datastore.open_datastore(
            self.output / paths.STORE_SHARDS
        ).sentence_model
        self.model_b = replace(model.load(self.output, engine=engine), depth=neighbors)

        self.preprocesses = {ensemble.clip.geometry for ensemble in self.ensembles.values()}
        # one thread an image, so torch must not start threads of its own in each
        self.pool = ThreadPoolExecutor(os.cpu_count(), "decode", torch.set_num_threads, (1,))
        # a GPU computes while the next batches are decoded; a CPU would only share its cores
        on_gpu = any(ensemble.clip.device.type == "cuda" for ensemble in self.ensembles.values())
        self.batches_ahead = 2 if on_gpu else 0

    def _load_ensembles(self, clips_a: dict[str, str], device: str) -> dict[str, FoldEnsemble]:
        """Every CLIP that is needed, with the folds of Model A that were trained from it."""
        used = used_members(self.weights, self.sides[0])
        views = recorded_averaging(self.output).views

        ensembles = {}
        for name in {*self.clips_b.values(), *(clips_a[member] for member in used)}:
            try:
                clip = encoder.load(name, device=device)
            except RuntimeError as error:
                raise UserError(error) from error

            members = [member for member in used if clips_a[member] == name]
            folds = {
                member: [load_fold(base, clip) for base in fold_bases(self.output, member)]
                for member in members
            }
            ensembles[name] = FoldEnsemble(clip, folds, views)
        return ensembles

    def __call__(
        self, sources: Sequence[str | Path | Image.Image], *, batch_size: int = 64
    ) -> Prediction:
        """Predict images (paths or PIL) in order; raises what `images.decode` raises."""
        predictions = []
        for first in range(0, len(sources), PART_SIZE):
            part = sources[first : first + PART_SIZE]
            encoded = []
            for start in range(0, len(part), batch_size):
                decoded = self.pool.map(self.decode, part[start : start + batch_size])
                encoded.append(self.encode(stack(list(decoded))))
            predictions.append(self.blend(encoded))
        return join(predictions) if predictions else NO_IMAGES

    def decode(self, source: str | Path | Image.Image) -> ImageBatch:
        """One image as each CLIP in use wants it, as the stages decode theirs: (s, s, 3) uint8."""
        if isinstance(source, Image.Image):
            return {
                preprocess: images.from_image(source, preprocess)
                for preprocess in self.preprocesses
            }

        content = Path(source).read_bytes()
        return {
            preprocess: images.from_bytes(content, preprocess) for preprocess in self.preprocesses
        }

    def encode(self, pixels: ImageBatch) -> Encoded:
        """A batch of decoded images through every CLIP and every fold."""
        by_member: dict[str, np.ndarray] = {}
        by_clip: dict[str, np.ndarray] = {}
        for name, ensemble in self.ensembles.items():
            by_clip[name], predictions = ensemble(pixels[ensemble.clip.geometry])
            by_member |= predictions
        return Encoded(by_member, by_clip)

    def blend(self, batches: Sequence[Encoded]) -> Prediction:
        """Model B's search and the blend, for all batches at once.

        The search makes its store ready once a call: as long for one image as for a thousand.
        """
        members = _concatenated([batch.by_member for batch in batches])
        by_clip = _concatenated([batch.by_clip for batch in batches])

        # one search serves every member of Model B that the blend uses
        queries = {column: by_clip[clip] for column, clip in self.clips_b.items()}
        prediction, similarity, index = self.model_b.predict(queries)
        members |= dict.fromkeys(used_members(self.weights, self.sides[1]), prediction)

        # in the order of the stages, so that sums round as theirs do
        side_a, side_b = ([name for name in side if name in members] for side in self.sides)
        sides = (side_a, side_b)
        members = {name: members[name] for side in sides for name in side}
        weights = {name: self.weights[name] for name in members}

        embedding = combine(members, weights)
        agreement = confidences.agreement(members, weights, sides)
        return Prediction(
            embedding,
            self.confidence(embedding, agreement),
            self._prompts(index),
            similarity,
        )

    def _prompts(self, index: np.ndarray) -> list[list[str]]:
        """The prompts at `index` (n, k) of the store."""
        texts = self.model_b.prompts["prompt"].gather(index.ravel()).to_list()
        width = index.shape[1]
        return [texts[start : start + width] for start in range(0, len(texts), width)]


def used_members(weights: dict[str, float], side: Sequence[str]) -> list[str]:
    """The members of a side that the blend uses.

    All of them where none has a weight: they still take part in the agreement.
    """
    return [name for name in side if weights[name] > 0] or list(side)


def clip_names(output: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The CLIP of each member of Model A, and of each column of keys of Model B's routes."""
    default = artifacts.load_json(output / paths.BLEND)["clip"]
    named_a = _named_clips(output / paths.MEMBERS_A)
    named_b = _named_clips(output / paths.MEMBERS_B)

    # members.json names a CLIP only where it is not the run's own
    parts = artifacts.load_json(output / paths.CHOICE_B)["parts"]
    columns = dict.fromkeys(part["route"]["clip"] for part in parts)  # unique, in order
    clips_a = {name: named_a.get(name, default) for name in member_names(output)[0]}
    clips_b = {column: named_b.get(column, default) for column in columns}
    return clips_a, clips_b


def _named_clips(file: Path) -> dict[str, str]:
    return artifacts.load_json(file).get("clip", {}) if file.exists() else {}


def fold_bases(output: Path, member: str) -> list[Path]:
    """Where the fits of a member of Model A lie: folds in order, each with its seeds, then the
    final ones. FileNotFoundError if there is none.
    """
    averaging = recorded_averaging(output)
    bases: list[Path] = []
    for fold in count():
        fits = averaging.fold_bases(output, member, fold)
        if not _has_weights(fits[0]):
            break
        bases += fits

    bases += averaging.final_bases(output, member) if bases else []
    if not bases or not all(map(_has_weights, bases)):
        raise FileNotFoundError(
            f"{display_path(output)} holds no trained fold of {member}: "
            "run ./run_all.sh --only 02 first"
        )
    return bases


def _has_weights(base: Path) -> bool:
    return base.with_name(base.name + ".safetensors").exists()


def stack(decoded: Sequence[ImageBatch]) -> ImageBatch:
    """Decoded images as one batch."""
    return {
        preprocess: np.stack([pixels[preprocess] for pixels in decoded])
        for preprocess in decoded[0]
    }


def join(parts: Sequence[Prediction]) -> Prediction:
    """Parts, one after another."""
    return Prediction(
        np.concatenate([part.embedding for part in parts]),
        np.concatenate([part.confidence for part in parts]),
        [prompts for part in parts for prompts in part.prompts],
        np.concatenate([part.similarity for part in parts]),
    )


def _concatenated(batches: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
