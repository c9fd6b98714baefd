"""docs/data.md explains every reason why the code sets a row aside."""

import ast
import json
import re

import pytest

from src.paths import ROOT

PAGE = ROOT / "docs" / "data.md"
HEADER = "| reason | cause | remedy |"
REASON = re.compile(r"[a-z][\w.,' -]* [\w.,' -]*")  # words, as no pattern and no code has them
REASON_OF = {"Row": 3, "rows_of": 3, "Caption": 1, "Record": 1, "lit": 0}  # index of the argument


@pytest.fixture(scope="module")
def modules() -> list[ast.Module]:
    """The modules that read the inputs."""
    files = sorted((ROOT / "src" / "data").rglob("*.py"))
    return [ast.parse(file.read_text(encoding="utf-8")) for file in files]


def named_reasons(modules: list[ast.Module]) -> set[str]:
    """The texts of a module's constants that are reasons, or the beginning of one."""
    texts = set()
    for module in modules:
        for node in module.body:
            is_constant = isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            if is_constant and REASON.fullmatch(str(node.value.value)):
                texts.add(node.value.value)
    return texts


def reasons_of_notebook() -> set[str]:
    """The reasons that notebook 01 itself gives."""
    notebook = (ROOT / "notebooks" / "01_dedup.ipynb").read_text(encoding="utf-8")
    cells = json.loads(notebook)["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells)
    return set(re.findall(r'reason=pl\.lit\("([^"]+)"\)', code))


def explained(page: str) -> list[str]:
    """The reasons in the table of the page; what follows a reason stands in it as …."""
    rows = page.split(HEADER)[1].split("\n\n", maxsplit=1)[0].splitlines()[2:]
    cells = [row.split(" | ")[0] for row in rows]
    return [reason.rstrip(" …:") for cell in cells for reason in re.findall("`([^`]+)`", cell)]


def unnamed_reasons(modules: list[ast.Module]) -> list[str]:
    """The reasons that are written where they are given, so that no constant has their text."""
    given = []
    for module in modules:
        for node in ast.walk(module):
            if isinstance(node, ast.Call):
                given += reasons_of_call(node)
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reason":
                given.append(node.value)
    return [ast.unparse(reason) for reason in given if is_written_out(reason)]


def reasons_of_call(call: ast.Call) -> list[ast.expr]:
    """The arguments of a call that are reasons."""
    name = ast.unparse(call.func).rpartition(".")[2]
    index = REASON_OF.get(name)
    positional = [] if index is None else call.args[index : index + 1]
    return positional + [keyword.value for keyword in call.keywords if keyword.arg == "reason"]


def is_written_out(reason: ast.expr) -> bool:
    """Whether a reason begins with a text of its own, not with a constant's."""
    if isinstance(reason, ast.JoinedStr):
        reason = reason.values[0]
    return isinstance(reason, ast.Constant) and isinstance(reason.value, str)


def test_the_page_explains_every_reason_and_no_other(modules):
    reasons = named_reasons(modules) | reasons_of_notebook()
    assert len(reasons) >= 20
    assert sorted(explained(PAGE.read_text(encoding="utf-8"))) == sorted(reasons)


def test_every_reason_is_a_constant(modules):
    assert unnamed_reasons(modules) == []


@pytest.mark.parametrize(
    "planted",
    [
        'Caption(None, "a bad fox")',
        'rows_of(name, image, captions, "a bad fox")',
        'Row(name, image, None, f"a bad {fox}")',
        'Attempt(content, reason="a bad fox")',
        'reason = f"a bad {fox}"',
        'table.with_columns(pl.lit("a bad fox"))',
    ],
)
def test_a_planted_reason_without_a_constant_is_found(planted):
    assert len(unnamed_reasons([ast.parse(planted)])) == 1


def test_a_planted_constant_is_found():
    module = ast.parse('FOX = "a bad fox"\nPATTERN = "a [bad] fox"\nNAME = "fox"\n')
    assert named_reasons([module]) == {"a bad fox"}
    page = f"{HEADER}\n| --- | --- | --- |\n| `a fox: …`, `an owl` | why | what |\n\n| `no` | |\n"
    assert explained(page) == ["a fox", "an owl"]
