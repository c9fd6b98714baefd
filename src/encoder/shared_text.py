"""A CLIP whose text tower is the sentence encoder itself, like the demo's: it need not run twice.

Its text embedding is then one linear layer behind the sentence embedding of the same prompt.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from src.encoder.clip import Encoder
from src.encoder.embedding import embed_texts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SPECIAL_TOKENS = 2  # at a text's beginning and end
PROBES = ("A Red FOX, on a hill!", "two cafes beside the old, calm sea at night")
ALIKE = 0.999  # cosine of both ways on the probes; the CLIP's own tower may run in bf16


def reads_sentences(encoder: Encoder, sentence_model: "SentenceTransformer") -> bool:
    """Whether the CLIP's text embedding is a linear layer behind `sentence_model`'s embedding.

    That holds where both have the same transformer, weight by weight, both take the mean over a
    text's tokens, and both ways were shown to agree.
    """
    text: Any = getattr(encoder.model, "text", None)
    pooler = type(getattr(text, "pooler", None)).__name__
    layer = getattr(text, "proj", None)
    # open_clip's mean over tokens, then one linear layer without a constant
    if pooler != "MeanPooler" or not isinstance(layer, nn.Linear) or layer.bias is not None:
        return False

    modules: list[Any] = list(sentence_model)
    kinds = [type(module).__name__ for module in modules]
    # the sentence encoder: a mean over tokens too, and nothing else behind it
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        return False
    pooling = modules[1]
    if pooling.pooling_mode not in ("mean", ("mean",)) or sentence_model.default_prompt_name:
        return False
    # equal by type is not enough: the weights may have been fine-tuned
    if not _same_weights(text.transformer, modules[0].model):
        return False

    def sentences(prompts: list[str]) -> np.ndarray:
        return sentence_model.encode(prompts, normalize_embeddings=True)

    # capitals, commas and words of several tokens, where tokenizers differ first
    probes = list(PROBES)
    agreement = embed_sentences(encoder, probes, sentences) * embed_texts(encoder, probes)
    return bool((agreement.sum(axis=1) > ALIKE).all())


def _same_weights(transformer: nn.Module, other: nn.Module) -> bool:
    """Whether every tensor of `transformer` is in `other` too, and the same."""
    theirs = other.state_dict()
    for name, tensor in transformer.state_dict().items():
        twin = theirs.get(name)
        if twin is None or twin.shape != tensor.shape:
            return False
        if not torch.equal(twin.cpu(), tensor.cpu()):
            return False
    return True


@torch.inference_mode()
def embed_sentences(
    encoder: Encoder, prompts: Sequence[str], sentences: Callable[[list[str]], np.ndarray]
) -> np.ndarray:
    """As `embed_texts`, from the sentence embeddings that `sentences(prompts)` gives, (n, d).

    Only prompts that the CLIP cuts off or cleans before it reads them run through its own tower.
    """
    prompts = list(prompts)
    alike = _read_alike(encoder, prompts)
    # (n, d), which the CLIP's last layer takes as it takes its own mean
    rows = torch.from_numpy(np.asarray(sentences(prompts), np.float32))
    model: Any = encoder.model
    embeddings = F.normalize(model.text.proj(rows.to(encoder.device)), dim=-1).cpu().numpy()

    others = np.flatnonzero(~alike)
    if len(others):
        embeddings[others] = embed_texts(encoder, [prompts[i] for i in others])
    return embeddings


def _read_alike(encoder: Encoder, prompts: list[str]) -> np.ndarray:
    """(n,) bool: which prompts the CLIP's tokenizer takes whole and unchanged."""
    tokenizer: Any = encoder.tokenizer
    model: Any = encoder.model
    unchanged = [tokenizer.clean_fn(text) == " ".join(text.split()) for text in prompts]
    alike = np.array(unchanged, dtype=bool)

    # a token has at least one character, so short texts need not be counted
    shortest = tokenizer.context_length - SPECIAL_TOKENS
    long = [i for i, text in enumerate(prompts) if len(text) > shortest]
    if long:
        padding = model.text.config.pad_token_id
        # padding in the last place shows that the text ended before it
        tokens = tokenizer([prompts[i] for i in long])
        alike[long] &= (tokens[:, -1] == padding).numpy()
    return alike
