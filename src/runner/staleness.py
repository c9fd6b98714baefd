"""What is up to date and what is not: parameters, inputs, code and earlier stages, compared with the last run."""

import ast
import hashlib
import json
from pathlib import Path

from src import paths
from src.paths import ROOT
from src.runner.params import NOTEBOOKS, input_paths

NEEDS = {  # the stages whose artifacts a stage reads; tests/test_notebooks.py holds it against what the notebooks name
    "01_dedup": (),
    "02_train_model_a": ("01_dedup",),
    "03_cuml_knn_model_b": ("01_dedup",),
    "04_ensemble_oof": ("01_dedup", "02_train_model_a", "03_cuml_knn_model_b"),
    "05_submit": ("01_dedup", "02_train_model_a", "03_cuml_knn_model_b", "04_ensemble_oof"),
}


# --- what is up to date ---


def source_files(notebook: Path) -> list[Path]:
    """Files below src/ that a notebook imports, and those that they import in turn, sorted."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")

    found: set[Path] = set()
    ahead = imported_files(code)
    while ahead:
        file = ahead.pop()
        found.add(file)
        ahead |= imported_files(file.read_text(encoding="utf-8")) - found
    return sorted(found)


def imported_files(source: str) -> set[Path]:
    """Files below src/ that Python code imports by `from src... import ...`, packages' `__init__.py` included."""
    files = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != "src":
            continue

        parts = node.module.split(".")
        modules = [parts[:depth] for depth in range(1, len(parts) + 1)]
        modules += [[*parts, alias.name] for alias in node.names]
        for module in modules:
            path = ROOT.joinpath(*module)
            candidates = (path.with_suffix(".py"), path / "__init__.py")
            files |= {file for file in candidates if file.is_file()}
    return files


def state_of(
    stage: str, values: dict[str, object], output: Path, notebooks: Path = NOTEBOOKS
) -> dict[str, dict]:
    """Everything a stage depends on, in parts that can be compared and named: parameters, inputs, code, earlier stages.

    Code is the notebook and the modules that it uses; an earlier stage is the checksums of its artifacts.
    """
    from src.artifacts import fingerprint

    notebook = notebooks / f"{stage}.ipynb"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = {
        f"notebooks/{stage}.ipynb": fingerprint(
            [(c["cell_type"], "".join(c["source"])) for c in cells]
        )
    }
    code |= {file.relative_to(ROOT).as_posix(): _checksum(file) for file in source_files(notebook)}
    earlier = {
        s: fingerprint(
            {
                name: entry["checksum"]
                for name, entry in (read_meta(output, s) or {"files": {}})["files"].items()
            }
        )
        for s in NEEDS[stage]
    }
    inputs = {name: fingerprint(path) for name, path in input_paths(values).items()}
    return {"parameter": values, "input": inputs, "code": code, "earlier stage": earlier}


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def reasons_to_run(stage: str, state: dict[str, dict], output: Path) -> list[str]:
    """Why a stage must run, in words; empty when it is up to date."""
    meta = read_meta(output, stage)
    if meta is None:
        return ["it has not run to its end here"]
    gone = [name for name, entry in meta["files"].items() if not _is_whole(output / name, entry)]
    reasons = [f"{len(gone)} of its files are missing or changed, e.g. {gone[0]}"] if gone else []
    for kind, now in json.loads(json.dumps(state)).items():
        before = meta["state"][kind]
        for name in sorted(now.keys() | before.keys()):
            if now.get(name) != before.get(name):
                change = (
                    f" {before.get(name)!r} -> {now.get(name)!r}"
                    if kind == "parameter"
                    else " changed"
                )
                reasons.append(f"{kind} {name}{change}")
    return reasons


def _is_whole(file: Path, entry: dict) -> bool:
    """Whether a file is as its stage left it: by length and time of change, and where the time differs by checksum."""
    if not file.is_file() or file.stat().st_size != entry["bytes"]:
        return False
    return file.stat().st_mtime_ns == entry["changed"] or _checksum(file) == entry["checksum"]


def read_meta(output: Path, stage: str) -> dict | None:
    """A stage's meta.json; None where it has not ended, or was run by a runner that kept no checksums."""
    file = output / stage / paths.META
    meta = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    whole = "state" in meta and all(isinstance(entry, dict) for entry in meta["files"].values())
    return meta if whole else None


def files_of(output: Path, stage: str, since: float) -> dict[str, dict]:
    """Length, time of change and checksum of a stage's artifacts: those in its folder, and those it wrote into the root."""
    own = [f for f in (output / stage).rglob("*") if f.is_file() and f.name != paths.META]
    root = [f for f in output.glob("[!.]*") if f.is_file() and f.stat().st_mtime >= since]
    return {
        f.relative_to(output).as_posix(): {
            "bytes": f.stat().st_size,
            "changed": f.stat().st_mtime_ns,
            "checksum": _checksum(f),
        }
        for f in sorted([*own, *root])
    }
