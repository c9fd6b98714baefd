"""What notebook 03 searches: the images' embeddings, and the prompts with their keys and values."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from src import encoder
from src.data import images, prompts, sources
from src.encoder import Encoder
from src.model_b import datastore
from src.model_b.datastore import ColumnView, Datastore, Encode
from src.model_b.routes import Library


def image_embeddings(
    clips: Sequence[Encoder],
    table: pl.DataFrame,
    cache: Path,
    *,
    name: str,
    cluster: str | None = None,
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Ids of the readable images of `table` (id, image), and their (n, D) float32 embeddings by
    each CLIP's tag. Workers of a `cluster` decode the images that are not in the cache yet.
    """
    # whether an image can be read depends on the image alone, so every CLIP has the same ids
    embeddings = {}
    for clip in clips:
        pixels, _ = images.cache(
            table.select("id", "image"), cache, geometry=clip.geometry, name=name, cluster=cluster
        )
        embeddings[clip.tag] = encoder.image_embeddings(
            clip, pixels, cache, name=f"{name}.{clip.tag}"
        )
    return pixels.ids, embeddings


def column_encoders(
    clips: Sequence[Encoder],
    sentence_model: str,
    *,
    device: str = "auto",
    encoded: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Encode]:
    """What encodes the datastore's columns, values first; `encoded` holds values that are there
    already, by prompt.

    A CLIP whose text tower is the sentence encoder itself takes its keys from the values.
    """
    encode_value = LastCall(
        partial(prompts.encode, model=sentence_model, device=device, known=encoded)
    )
    sentences = prompts.sentence_model(sentence_model, device)
    encoders: dict[str, Encode] = {datastore.VALUES: encode_value}
    for clip in clips:
        if encoder.reads_sentences(clip, sentences):
            encoders[clip.tag] = partial(encoder.embed_sentences, clip, sentences=encode_value)
        else:
            encoders[clip.tag] = partial(encoder.embed_texts, clip)
    return encoders


class LastCall:
    """`encode`, which gives its last result again when it is asked for the same prompts."""

    def __init__(self, encode: Encode):
        self.encode = encode
        self.prompts: list[str] | None = None
        self.rows: np.ndarray | None = None

    def __call__(self, prompts: list[str]) -> np.ndarray:
        if self.rows is None or prompts != self.prompts:
            self.rows = self.encode(prompts)
            self.prompts = prompts
        return self.rows


def add_precomputed(
    stored: Datastore, folders: Sequence[str], *, clip: str
) -> tuple[Datastore, list[pl.DataFrame]]:
    """The datastore with the precomputed shards of `folders`, and for each folder its
    `datastore.precomputed_prompts`.
    """
    tables = []
    for folder in folders:
        pairs = sources.read_store(folder)
        stored = datastore.add_precomputed(stored, pairs, clip=clip)
        tables.append(datastore.precomputed_prompts(stored, pairs))
    return stored, tables


def open_libraries(
    stored: Datastore, rows: np.ndarray, images: Mapping[str, np.ndarray]
) -> dict[str, Library]:
    """By each CLIP of `images` (n_train, D), the datastore's `rows` (n,) in the run's order."""
    values = ColumnView(stored.column(datastore.VALUES), rows)
    return {
        clip: Library(ColumnView(stored.column(clip), rows), values, embeddings)
        for clip, embeddings in images.items()
    }
