"""The docs: every command is understood, links and file names are there, a wrong one is found."""

import subprocess
import sys

import pytest

from src.paths import ROOT
from tools import check_docs, docs_text

PAGE = """# Foxes

## How to find them

    ./run_all.sh                     # the whole run
    ./run_all.sh predict --images photos --out photos.parquet
    python -c "print('foxes')"

    notebooks/     a tree is no command

```python
from src.submit import Predictor
```

See [how](#how-to-find-them), [the notebook](notebooks/01_dedup.ipynb) and `src/paths.py`;
`./run_all.sh search` searches.
"""


def test_the_docs_of_this_repository_are_right():
    done = subprocess.run(
        [sys.executable, "tools/check_docs.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with PAGE as its README and links to the folders of this one."""
    monkeypatch.chdir(tmp_path)
    for name in ("notebooks", "src", "params", "benchmarks"):
        (tmp_path / name).mkdir()
    for name in ("notebooks/01_dedup.ipynb", "src/paths.py", "params/demo.yaml"):
        (tmp_path / name).write_text('{"cells": []}')

    def write(page):
        (tmp_path / "README.md").write_text(page)
        return tmp_path

    return write


def problems_of(root):
    return [
        *check_docs.dead_links(root),
        *check_docs.wrong_commands(root),
        *check_docs.wrong_snippets(root),
    ]


def test_a_right_page_has_no_problem(repository):
    root = repository(PAGE)
    assert problems_of(root) == []
    assert [command.words[:2] for command in check_docs.all_commands(root)] == [
        ("./run_all.sh",),
        ("./run_all.sh", "predict"),
        ("python", "-c"),
        ("./run_all.sh", "search"),
    ]


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("photos.parquet", "photos.parquet --foxes", "unrecognized arguments: --foxes"),
        ("--images photos ", "", "the following arguments are required: --images"),
        ("run_all.sh predict", "run_all.sh predcit", "did you mean 'predict'?"),
        ("./run_all.sh   ", "./run_all.sh --sed 1   ", "unrecognized arguments: --sed 1"),
        ("./run_all.sh   ", "./run_all.sh --set sed=1   ", "common.sed is declared by no notebook"),
        ("./run_all.sh   ", "./run_all.sh --params none.yaml   ", "none.yaml"),
        ("./run_all.sh   ", "python benchmarks/foxes.py   ", "benchmarks/foxes.py does not exist"),
        ("./run_all.sh   ", "./run_foxes.sh   ", "./run_foxes.sh is neither a program"),
        ("`./run_all.sh search`", "`./run_all.sh serch`", "did you mean 'search'?"),
        ("print('foxes')", "print('foxes'", "'(' was never closed"),
        ("import Predictor", "import Foxes", "src.submit has no Foxes"),
        ("import Predictor", "import (", "'(' was never closed"),
        ("01_dedup.ipynb", "01_foxes.ipynb", "there is no such file"),
        ("#how-to-find-them", "#how-to-lose-them", "the page has no such heading"),
        ("`src/paths.py`", "`src/foxes.py`", "src/foxes.py does not exist"),
    ],
)
def test_a_planted_fault_is_found(repository, right, wrong, said):
    assert right in PAGE
    problems = problems_of(repository(PAGE.replace(right, wrong, 1)))
    assert len(problems) == 1 and said in problems[0], problems


def test_blocks_of_commands_are_told_from_trees_and_lists():
    kinds = [block.language for block in docs_text.blocks(PAGE)]
    assert kinds == ["", "text", "python"]
    assert docs_text.blocks("- a list\n    with a long entry\n") == []
    joined = docs_text.commands("a", "    source x && SEED=1 jupyter lab  # both\n")
    assert [command.words for command in joined] == [("source", "x"), ("jupyter", "lab")]


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("## Your own data", "your-own-data"),
        ("### `--set`, and how", "--set-and-how"),
        ("# 03 · Model B: neighbors", "03--model-b-neighbors"),
    ],
)
def test_anchors_are_those_of_github(heading, anchor):
    assert docs_text.anchors(heading) == {anchor}
