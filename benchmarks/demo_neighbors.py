"""What the demo's CLIP finds: how often the nearest prompts name what a test image shows.

    python benchmarks/demo_neighbors.py --runs output output/s43

For each run: R@1, the share of test images whose own prompt is first among the test prompts, and
the share of test images of whose first, three and ten prompts by weight in Model B at least one
names the setting, the style or a subject of the image; beside it, for how many the store has one.
"""

import argparse
import sys
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src import artifacts, encoder, paths
from src.data import sources
from src.demo import grammar
from src.model_b import inputs
from src.paths import Stage, display_path

DEPTHS = (1, 3, 10)


class Named(NamedTuple):
    """What a prompt of the demo's grammar names."""

    setting: frozenset[str]
    style: frozenset[str]
    subject: frozenset[str]


@lru_cache(maxsize=1)
def noun_forms() -> dict[str, str]:
    """Each noun by its singular and its plural."""
    nouns = {noun for _, noun in grammar.drawings()}
    return {form: noun for noun in nouns for form in (noun, grammar.plural(noun))}


@lru_cache(maxsize=1)
def surroundings() -> list[str]:
    """The phrases for settings, styles and lights, the longest first."""
    tables = (grammar.SETTINGS, grammar.STYLES, grammar.LIGHTS)
    phrases = {phrase for table in tables for names in table.values() for phrase in names}
    return sorted(phrases - {""}, key=len, reverse=True)


def named(prompt: str) -> Named:
    """The setting, the style and the subjects in `prompt`; subjects by whole words."""
    # a pencil sketch shows no pencil, and outer space no star
    things = prompt
    for phrase in surroundings():
        things = things.replace(phrase, "")
    words = f" {things.replace(',', ' ,')} "
    return Named(
        setting=phrases_in(prompt, grammar.SETTINGS),
        style=phrases_in(prompt, grammar.STYLES),
        subject=frozenset(noun for form, noun in noun_forms().items() if f" {form} " in words),
    )


def phrases_in(prompt: str, phrases: dict[str, tuple[str, ...]]) -> frozenset[str]:
    """The keys of `phrases` that `prompt` names."""
    return frozenset(key for key, names in phrases.items() if any(n in prompt for n in names))


def recall_at_1(output: Path, prompts_by_id: dict[str, str]) -> float:
    """The share of test images whose own prompt is nearest of all test prompts."""
    (name,) = set(artifacts.load_json(output / paths.MEMBERS_B)["clip"].values())
    clip = encoder.load(name)
    table = artifacts.load_table(output / paths.TEST_IMAGES)
    ids, images = inputs.image_embeddings([clip], table, output / paths.CACHE, name="test")
    texts = encoder.embed_texts(clip, [prompts_by_id[i] for i in ids])
    nearest = (images[clip.tag] @ texts.T).argmax(axis=1)
    return float((nearest == np.arange(len(ids))).mean())


def show(output: Path) -> None:
    """Print the figures of one run."""
    stage = artifacts.load_json(output / Stage.SUBMIT / paths.META)["state"]["parameter"]
    known = sources.read_truth(stage["test_truth"])
    truth = dict(known.select("imgId", "prompt").iter_rows())
    print(f"\n{display_path(output)}: R@1 {recall_at_1(output, truth):.3f} of {len(truth)} prompts")

    shown = {image: named(prompt) for image, prompt in truth.items()}
    neighbors = artifacts.load_table(output / paths.NEIGHBORS)
    for depth in DEPTHS:
        nearest = neighbors.filter(pl.col("rank") < depth).group_by("query").agg("prompt")
        lists = dict(nearest.iter_rows())
        entries = {image: [named(prompt) for prompt in lists[image]] for image in shown}
        print(f"first {depth:2}: {shares(shown, entries)}")

    store = [named(prompt) for prompt in artifacts.load_table(output / paths.STORE)["prompt"]]
    print(f"store:    {shares(shown, dict.fromkeys(shown, store))}")
    both = [
        any(entry.setting & image.setting and entry.subject & image.subject for entry in store)
        for image in shown.values()
    ]
    all_three = [
        any(all(a & b for a, b in zip(entry, image, strict=True)) for entry in store)
        for image in shown.values()
    ]
    print(
        f"the store has a prompt with setting and a subject for {np.mean(both):.1%}, "
        f"with the style too for {np.mean(all_three):.1%}"
    )


def shares(shown: dict[str, Named], lists: dict[str, list[Named]]) -> str:
    """For setting, style and subject: the share of images that have it in common with one of their
    list.
    """
    parts = []
    for field in Named._fields:
        hits = []
        for image, entries in lists.items():
            wanted = getattr(shown[image], field)
            hits.append(any(getattr(entry, field) & wanted for entry in entries))
        parts.append(f"{field} {np.mean(hits):.1%}")
    return ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", nargs="+", default=["output"], metavar="OUTPUT")
    for run in parser.parse_args().runs:
        show(paths.resolve(run))


if __name__ == "__main__":
    main()
