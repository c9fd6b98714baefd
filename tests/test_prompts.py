"""Targets of the known model, and prompts changed without changing their sense."""

import random

import numpy as np
import pytest

from src.data import prompts

WORDNET = {
    "data": "00000001 00 n 02 fox 0 reynard 0 000 | a clever animal\n",
    "index": "fox n 1 0 1 0 00000001\nreynard n 1 0 1 0 00000001\n",
}


def test_synonyms_and_shuffling_change_prompts_the_same_way_for_a_seed():
    texts = ["a beautiful painting of a small house", "xyzzy plugh"]
    first = prompts.augment(texts, synonyms=True, seed=1)
    assert first == prompts.augment(texts, synonyms=True, seed=1)
    assert first[0] != texts[0] and first[1] == texts[1]
    shuffled = prompts.augment(texts, shuffle=True, seed=1)
    assert shuffled[0] != texts[0] and sorted(shuffled[0].split()) == sorted(texts[0].split())


def test_a_wordnet_on_disk_is_read_and_named(tmp_path, monkeypatch):
    folder = tmp_path / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{part}").write_text(
            "  1 WordNet 3.0\n" + (WORDNET["data"] if part == "noun" else "")
        )
        (folder / f"index.{part}").write_text(
            "  1 WordNet 3.0\n" + (WORDNET["index"] if part == "noun" else "")
        )
        (folder / f"{part}.exc").write_text("")
    offset = (folder / "data.noun").read_text().index("00000001")
    for file in folder.glob("*.noun"):
        file.write_text(file.read_text().replace("00000001", f"{offset:08d}"))
    monkeypatch.setattr(prompts, "WORDNETS", (str(tmp_path / "none"), str(folder)))
    prompts.thesaurus.cache_clear()
    assert prompts.thesaurus()[0].startswith("WordNet in ")
    assert (
        prompts.synonyms_of("fox") == ["reynard"]
        and prompts.synonyms_of("foxes") == []
        and prompts.synonyms_of("a") == []
    )
    assert prompts.replace_synonyms("a red fox", rng=random.Random(0)) == "a red reynard"
    prompts.thesaurus.cache_clear()


def test_without_wordnet_the_embedded_table_says_so(monkeypatch):
    monkeypatch.setattr(prompts, "WORDNETS", ())
    prompts.thesaurus.cache_clear()
    assert "embedded table of" in prompts.thesaurus()[0] and prompts.synonyms_of("red") == [
        "crimson"
    ]
    prompts.thesaurus.cache_clear()


@pytest.mark.parametrize(
    ("prompt", "tells"),
    [
        ("a fox to the left of a lamp", True),
        ("Right-handed knight", True),
        ("a bright lamp, copyright", False),
        ("leftovers on a plate", False),
    ],
)
def test_prompts_that_tell_left_from_right_are_known(prompt, tells):
    assert prompts.tells_sides(prompt) is tells


def test_changed_targets_are_encoded_once(tmp_path, monkeypatch):
    texts = ["a small house", "a red boat"]
    changed, first = prompts.changed_targets(texts, tmp_path, kind="shuffle", seed=0)
    assert first == pytest.approx(prompts.encode(changed), abs=1e-6)
    monkeypatch.setattr(prompts, "encode", None)
    assert (prompts.changed_targets(texts, tmp_path, kind="shuffle", seed=0)[1] == first).all()
    with pytest.raises(ValueError, match="kind must be synonyms or shuffle, got 'typos'"):
        prompts.changed_targets(texts, tmp_path, kind="typos", seed=0)


def test_targets_are_unit_rows_in_order_and_those_of_the_known_model():
    rows = prompts.encode(["a fox", "a fox in the snow", "a fox"])
    assert rows.shape == (3, 384) and rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert (rows[0] == rows[2]).all() and rows[0] @ rows[1] > 0.7
    assert prompts.encode([]).shape == (0, 384)


def test_known_rows_are_taken_as_they_are_and_the_rest_is_encoded():
    texts = ["a red fox", "a blue door", "a red fox", "a green hill"]
    marked = np.full(prompts.WIDTH, 7, np.float32)
    rows = prompts.encode(texts, known={"a red fox": marked, "another": marked})
    assert (rows[[0, 2]] == 7).all() and np.allclose(
        rows[[1, 3]], prompts.encode(["a blue door", "a green hill"]), atol=1e-6
    )
    assert prompts.encode([]).shape == (0, prompts.WIDTH)
