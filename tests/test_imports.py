"""Imports point one way: shared <- data <- encoder <- stages <- ensemble <- submit <- runner."""

import ast
from pathlib import Path

import pytest

from src.paths import ROOT

SHARED = {
    "src",
    "artifacts",
    "batches",
    "dask_workers",
    "errors",
    "knn",
    "lazy",
    "metrics",
    "paths",
    "plots",
    "statistics",
    "web_page",
}
STAGES = {"dedup", "model_a", "model_b"}
MAY_IMPORT = {
    "shared": {"shared"},
    "data": {"shared", "data"},
    "encoder": {"shared", "data", "encoder"},
    "dedup": {"shared", "data", "encoder", "dedup"},
    "model_a": {"shared", "data", "encoder", "model_a"},
    "model_b": {"shared", "data", "encoder", "model_b"},
    "ensemble": {"shared", "data", "encoder", "ensemble"} | STAGES,
    "submit": {"shared", "data", "encoder", "ensemble", "submit"} | STAGES,
    "demo": {"shared", "data", "encoder", "demo"},
    "runner": {"shared", "data", "encoder", "ensemble", "submit", "demo", "runner"} | STAGES,
}


def layer_of(module: str) -> str:
    """`src.data.images` -> `data`; modules of src/ itself are `shared`, but for the encoder."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 else "src"
    return "shared" if name in SHARED else name


def imported_modules(source: str) -> set[str]:
    """Every `src...` module that the code imports, at its top or inside a function."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "src":
            modules |= {f"src.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
    return {module for module in modules if module.split(".")[0] == "src"}


def wrong_imports(file: Path, source: str) -> list[str]:
    """What a file of src/ imports from a layer that it must not know."""
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    layer = layer_of(module)
    return [
        f"{module} imports {other}"
        for other in sorted(imported_modules(source))
        if layer_of(other) not in MAY_IMPORT[layer]
    ]


def test_imports_point_one_way():
    wrong = []
    for file in sorted((ROOT / "src").rglob("*.py")):
        wrong += wrong_imports(file, file.read_text(encoding="utf-8"))
    assert not wrong


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("src/knn/exact.py", "from src.model_b import datastore"),
        ("src/data/images.py", "from src.dedup.filters import cosine_filter"),
        ("src/model_a/fit.py", "from src import model_b"),
        ("src/model_b/routes.py", "import src.ensemble.blending"),
        ("src/demo/write.py", "def f():\n    from src.dedup import folds"),
        ("src/submit/pack.py", "from src.runner import cli"),
    ],
)
def test_a_planted_import_is_noticed(file, line):
    assert len(wrong_imports(ROOT / file, line)) == 1


def test_no_module_imports_itself_in_a_circle():
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file
        for file in (ROOT / "src").rglob("*.py")
    }
    imports = {}
    for module, file in files.items():
        imports[module] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("src"):
                continue
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            imports[module] |= (submodules | {node.module}) & files.keys()

    def reaches(start: str) -> set[str]:
        """Every module on some way of imports from `start`."""
        reached: set[str] = set()
        ahead = set(imports[start])
        while ahead:
            module = ahead.pop()
            reached.add(module)
            ahead |= imports[module] - reached
        return reached

    assert not [module for module in files if module in reaches(module)]
