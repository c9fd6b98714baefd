"""What the benchmark of the nearest prompts takes for a subject."""

import sys

import pytest

from src.demo import grammar, population
from src.paths import ROOT


@pytest.fixture
def demo_neighbors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import demo_neighbors

    yield demo_neighbors
    del sys.modules["demo_neighbors"]


def test_style_and_setting_name_no_subject(demo_neighbors):
    """A pencil sketch in outer space shows no pencil and no star, unless it is said."""
    sketch = demo_neighbors.named("a pencil sketch of two owls, floating among the stars")
    assert sketch == ({"space"}, {"sketch"}, {"owl"})
    window = demo_neighbors.named("a stained glass window of a star, on a red alien planet")
    assert window == ({"mars"}, {"glass"}, {"star"})


def test_every_subject_of_a_scene_is_found(demo_neighbors):
    scenes = population.pool(3, 300)
    for scene in scenes:
        assert grammar.nouns(scene) <= demo_neighbors.named(grammar.prompt(scene)).subject
