"""The sentence encoder's loop, and a CLIP whose text tower is that encoder: it runs once."""

import numpy as np
import pytest
import torch

from src import encoder
from src.data import prompts
from src.model_b import datastore, inputs
from tests.helpers import tiny_clip

PLAIN = [
    "a red fox in the snow",
    "Two OWLS, on a branch",
    "a lantern",
    "a boat on a lake at sunset, oil painting, highly detailed, warm light, by the old pier",
]
LONG = "a very long prompt about a fox " * 20  # the CLIP reads 77 tokens, the encoder 256
ESCAPED = "salt &amp; pepper on a table"  # the CLIP's tokenizer cleans it first


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tiny_clip.write_clip(folder)
    return encoder.load(f"local-dir:{folder}", device="cpu")


@pytest.fixture(scope="module")
def sentences():
    return prompts.sentence_model(prompts.EMBEDDED, "cpu")


def test_targets_are_what_the_library_gives(sentences, monkeypatch):
    texts = [*PLAIN, LONG, *(f"a fox and {n} owls" for n in range(100))]
    by_library = sentences.encode(texts, normalize_embeddings=True)
    assert np.abs(prompts.encode(texts, device="cpu") - by_library).max() < 1e-6

    # a model that wants an opening before each text gets it
    monkeypatch.setitem(sentences.prompts, "opening", "query: ")
    monkeypatch.setattr(sentences, "default_prompt_name", "opening")
    opened = sentences.encode(texts, normalize_embeddings=True)
    assert np.abs(opened - by_library).max() > 0.01
    assert np.abs(prompts.encode(texts, device="cpu") - opened).max() < 1e-6


def test_keys_behind_the_sentence_embeddings_are_those_of_the_tower(clip, sentences):
    assert encoder.reads_sentences(clip, sentences)

    texts = [*PLAIN, LONG, ESCAPED]
    shared = encoder.embed_sentences(clip, texts, prompts.encode)
    tower = encoder.embed_texts(clip, texts)
    assert np.linalg.norm(shared, axis=1) == pytest.approx(np.ones(len(texts)), abs=1e-5)
    assert (shared * tower).sum(axis=1).min() > 0.9995

    # what the two read differently goes through the tower, and there only
    own = encoder.embed_texts(clip, [LONG, ESCAPED])
    np.testing.assert_array_equal(shared[len(PLAIN) :], own)
    projected = clip.model.text.proj(torch.from_numpy(prompts.encode([LONG]))).detach().numpy()[0]
    assert projected @ own[0] / np.linalg.norm(projected) < 0.999


def test_another_transformer_is_not_taken_for_the_sentence_encoder(clip, sentences):
    layer = clip.model.text.transformer.embeddings.LayerNorm
    with torch.no_grad():
        layer.bias[0] += 1e-3
    try:
        assert not encoder.reads_sentences(clip, sentences)
    finally:
        with torch.no_grad():
            layer.bias.copy_(sentences[0].model.embeddings.LayerNorm.bias)
    assert encoder.reads_sentences(clip, sentences)


def test_a_datastore_runs_the_shared_transformer_once(clip, tmp_path, monkeypatch):
    texts = [f"a fox and {n} owls" for n in range(20)]
    encoders = inputs.column_encoders([clip], prompts.EMBEDDED, device="cpu")
    asked = []

    def forward(*arguments, **options):
        raise AssertionError("the CLIP's own text tower has run")

    def encode(new, model):
        asked.extend(new)
        return model.encode(new, normalize_embeddings=True)

    monkeypatch.setattr(clip.model, "encode_text", forward)
    monkeypatch.setattr(prompts, "_encode_distinct", encode)
    empty = datastore.open_datastore(tmp_path, dtype="float32", sentence_model=prompts.EMBEDDED)
    stored = datastore.add(empty, texts, encoders, shard_rows=8)
    assert asked == texts
    assert stored.column(clip.tag)[0].shape == (8, 384)
