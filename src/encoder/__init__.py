"""The CLIP of a run: loaded by any name, embedding images and texts in batches."""

from src.encoder.clip import Encoder, autocast, choose_device, describe, multiplies_bf16
from src.encoder.embedding import (
    embed_images,
    embed_texts,
    image_embeddings,
    require_text,
    text_embeddings,
)
from src.encoder.folders import LOCAL, TIMM, is_local, local_folder
from src.encoder.loading import load, sized
from src.encoder.padding import encode_tokens, trimmed
from src.encoder.shared_text import embed_sentences, reads_sentences

__all__ = [
    "LOCAL",
    "TIMM",
    "Encoder",
    "autocast",
    "choose_device",
    "describe",
    "embed_images",
    "embed_sentences",
    "embed_texts",
    "encode_tokens",
    "image_embeddings",
    "is_local",
    "load",
    "local_folder",
    "multiplies_bf16",
    "reads_sentences",
    "require_text",
    "sized",
    "text_embeddings",
    "trimmed",
]
