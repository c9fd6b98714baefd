"""The page of errors quotes real messages: each one occurs in the code that prints it."""

import ast
import json
import re

import pytest

from src.paths import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
HOLE = "\0"  # where a message has a value in it
FEWEST_LETTERS = 9  # of a quote, without its holes


def quotes(page: str) -> list[str]:
    """The quoted messages in the first column of each table, … for what differs."""
    first_cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    return [quote for cell in first_cells for quote in re.findall(r"`([^`]+)`", cell)]


def texts_of(tree: ast.AST) -> list[str]:
    """Every string of a program, HOLE for each value in it."""
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
        if isinstance(node, ast.JoinedStr):
            parts = [
                str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values
            ]
            texts.append("".join(parts))
    return texts


@pytest.fixture(scope="module")
def messages() -> list[str]:
    """Every text of the package, the notebooks and the scripts of the shell."""
    programs = [file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py")]
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        programs += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]

    texts = [text for program in programs for text in texts_of(ast.parse(program))]
    return texts + [(ROOT / "setup.sh").read_text(encoding="utf-8")]


def is_said(quote: str, messages: list[str]) -> bool:
    """Whether one message holds the parts of the quote in order, and a value between each two."""
    between = f"[^{HOLE}]*{HOLE}.*"
    pattern = re.compile(between.join(re.escape(part) for part in quote.split("…")), re.DOTALL)
    return any(pattern.search(text) for text in messages)


def test_every_quoted_message_is_one_of_the_code(messages):
    found = quotes(PAGE.read_text(encoding="utf-8"))
    assert len(found) > 60
    assert [quote for quote in found if len(re.findall("[A-Za-z]", quote)) < FEWEST_LETTERS] == []
    assert [quote for quote in found if not is_said(quote, messages)] == []


@pytest.mark.parametrize(
    "wrong",
    [
        "train: … does not exits; set common.train",
        "Python 3.11 or newer is wanted",
        "set common.train to a folder or a table … does not exist",
        "… cannot be read with a monkey wrench",
    ],
)
def test_a_planted_wrong_message_is_found(messages, wrong):
    assert not is_said(wrong, messages)


def test_quotes_are_those_of_the_first_column_and_match_values_by_holes():
    page = "| message | what |\n| --- | --- |\n| `a fox`, `an owl: …` | `no quote` |\n"
    assert quotes(page) == ["a fox", "an owl: …"]
    assert is_said("an owl: …", [f"an owl: {HOLE} flies"])
    assert not is_said("an owl: … flies", ["an owl: it flies"])
