"""New images with a trained `output/`: embeddings, a confidence for each, and the nearest prompts.

    from src.submit import Predictor
    predictor = Predictor("output")
    found = predictor(["fox.jpg", "owl.png"])  # found.embedding, found.confidence, found.prompts

`python -m src.submit.batch --images FOLDER --out FILE` does it for any number of images: they are decoded while the models work, and
each part of the result lies on disk before the next begins, so a run that was stopped goes on where it was.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from src import artifacts, encoder, paths
from src.data import images, sample_submission
from src.data.images import ImagePreprocess
from src.ensemble import confidence as confidences
from src.ensemble.blending import combine
from src.ensemble.confidence import load_confidence
from src.ensemble.members import member_names
from src.errors import UserError
from src.model_a import fit
from src.model_a.fold_ensemble import FoldEnsemble
from src.model_b import routes
from src.paths import display_path, resolve

PART = 1024  # images in a part: what a stopped run may lose
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

ImageBatch = dict[ImagePreprocess, np.ndarray]  # how a CLIP wants its images -> (n, s, s, 3) uint8
Encoded = tuple[
    dict[str, np.ndarray], dict[str, np.ndarray]
]  # by member of Model A (n, 384), by CLIP (n, D): float32 unit rows


@dataclass(frozen=True)
class Prediction:
    """Aligned by image: embedding (n, 384) float32 unit rows, confidence (n,) float32 expected cosine, nearest prompts."""

    embedding: np.ndarray
    confidence: np.ndarray
    prompts: list[list[str]]
    similarity: np.ndarray


NOTHING = Prediction(
    np.empty((0, sample_submission.WIDTH), np.float32),
    np.empty(0, np.float32),
    [],
    np.empty((0, 1), np.float32),
)


class Predictor:
    """The members that the blend uses, loaded once.

    FileNotFoundError names the stage whose artifacts are missing, ValueError the one to run again, Problem a CLIP that cannot
    be loaded.
    """

    def __init__(
        self,
        output: str | Path = "output",
        *,
        device: str = "auto",
        engine: str = "auto",
        neighbours: int = 5,
    ):
        self.output, self.neighbours = resolve(output), neighbours
        self.weights = artifacts.load_json(self.output / paths.BLEND)["weights"]
        self.confidence = load_confidence(self.output)
        self.sides = member_names(self.output)
        clips, self.clips_b = clip_names(self.output)
        used = used_members(self.weights, self.sides[0])
        self.trunks = {}
        for clip in {*self.clips_b.values(), *(clips[name] for name in used)}:
            try:
                loaded = encoder.load(clip, device=device)
            except RuntimeError as error:
                raise UserError(error) from error
            self.trunks[clip] = FoldEnsemble(
                loaded,
                {
                    name: [fit.load_fold(base, loaded) for base in fold_bases(self.output, name)]
                    for name in used
                    if clips[name] == clip
                },
            )
        self.b = replace(routes.load(self.output, engine=engine), depth=neighbours)
        self.geometries = {trunk.clip.geometry for trunk in self.trunks.values()}
        self.pool = ThreadPoolExecutor(
            os.cpu_count(), "decode", torch.set_num_threads, (1,)
        )  # one image a thread
        # on a GPU the next batches are decoded while it works; on a CPU both would only fight for the same cores
        self.ahead = (
            2 if any(trunk.clip.device.type == "cuda" for trunk in self.trunks.values()) else 0
        )

    def __call__(
        self, pictures: Sequence[str | Path | Image.Image], *, batch_size: int = 64
    ) -> Prediction:
        """Predict images (paths or PIL) in order; raises what `images.decode` raises on a broken one."""
        parts = []
        for first in range(0, len(pictures), PART):
            part = pictures[first : first + PART]
            batches = (
                part[start : start + batch_size] for start in range(0, len(part), batch_size)
            )
            parts.append(
                self.find(
                    [self.see(stack(list(self.pool.map(self.decode, batch)))) for batch in batches]
                )
            )
        return join(parts) if parts else NOTHING

    def decode(self, image: str | Path | Image.Image) -> ImageBatch:
        """One image as each CLIP in use wants it, decoded as the stages decode theirs: (s, s, 3) uint8 each."""
        if isinstance(image, Image.Image):
            return {
                geometry: images.resized(image.convert("RGB"), geometry)
                for geometry in self.geometries
            }
        content = Path(image).read_bytes()
        return {geometry: images.from_bytes(content, geometry) for geometry in self.geometries}

    def see(self, pixels: ImageBatch) -> Encoded:
        """What the towers make of a batch of decoded images."""
        members, embeddings = {}, {}
        for name, trunk in self.trunks.items():
            embeddings[name], predictions = trunk(pixels[trunk.clip.geometry])
            members |= predictions
        return members, embeddings

    def find(self, seen: Sequence[Encoded]) -> Prediction:
        """The search and the blend, for all batches at once: the store is made ready as long for one image as for a thousand."""
        members, embeddings = (
            {name: np.concatenate([batch[kind][name] for batch in seen]) for name in seen[0][kind]}
            for kind in (0, 1)
        )
        prediction, similarity, index = self.b.predict(
            {column: embeddings[clip] for column, clip in self.clips_b.items()}
        )
        members |= dict.fromkeys(used_members(self.weights, self.sides[1]), prediction)
        sides = tuple([name for name in side if name in members] for side in self.sides)
        members = {name: members[name] for side in sides for name in side}
        weights = {name: self.weights[name] for name in members}
        blend, agreement = (
            combine(members, weights),
            confidences.agreement(members, weights, sides),
        )
        prompts = self.b.store["prompt"].gather(index.ravel()).to_list()
        return Prediction(
            blend,
            self.confidence(blend, agreement),
            [prompts[i : i + index.shape[1]] for i in range(0, len(prompts), index.shape[1])],
            similarity,
        )


def used_members(weights: dict[str, float], side: Sequence[str]) -> list[str]:
    """The members of a side that the blend uses; all of them where none has a weight: they still take part in the agreement."""
    return [name for name in side if weights[name] > 0] or list(side)


def clip_names(output: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The CLIP behind each member of Model A, and behind each column of keys that Model B's routes look up, in their order."""
    first = artifacts.load_json(output / paths.BLEND)["clip"]
    a, b = (
        (artifacts.load_json(output / file) if (output / file).exists() else {}).get("clip", {})
        for file in (paths.MEMBERS_A, paths.MEMBERS_B)
    )
    columns = [
        part["route"]["clip"] for part in artifacts.load_json(output / paths.CHOICE_B)["parts"]
    ]
    return (
        {name: a.get(name, first) for name in member_names(output)[0]},
        {column: b.get(column, first) for column in dict.fromkeys(columns)},
    )


def fold_bases(output: Path, member: str) -> list[Path]:
    """Where the folds of a member of Model A lie, in order. FileNotFoundError when there is none."""
    bases, fold = [], 0
    while (output / (paths.FOLD.format(row=member, fold=fold) + ".safetensors")).exists():
        bases.append(output / paths.FOLD.format(row=member, fold=fold))
        fold += 1
    if not bases:
        raise FileNotFoundError(
            f"{display_path(output)} holds no trained fold of {member}: run ./run_all.sh --only 02 first"
        )
    return bases


def stack(decoded: Sequence[ImageBatch]) -> ImageBatch:
    """Decoded images as one batch."""
    return {geometry: np.stack([pixels[geometry] for pixels in decoded]) for geometry in decoded[0]}


def join(parts: Sequence[Prediction]) -> Prediction:
    """Parts, one after another."""
    arrays = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("embedding", "confidence", "similarity")
    )
    embedding, confidence, similarity = arrays
    return Prediction(
        embedding, confidence, [prompts for part in parts for prompts in part.prompts], similarity
    )
