"""What is up to date and what is not: parameters, inputs, code and earlier stages, compared with
the last run.
"""

import ast
import hashlib
import json
from pathlib import Path

from src import paths
from src.paths import ROOT, Stage
from src.runner.params import NOTEBOOKS, input_paths

# the stages whose artifacts a stage reads; tests/test_notebooks.py compares it with the notebooks
NEEDS: dict[str, tuple[str, ...]] = {
    Stage.DEDUP: (),
    Stage.MODEL_A: (Stage.DEDUP,),
    Stage.MODEL_B: (Stage.DEDUP,),
    Stage.ENSEMBLE: (Stage.DEDUP, Stage.MODEL_A, Stage.MODEL_B),
    Stage.SUBMIT: (Stage.DEDUP, Stage.MODEL_A, Stage.MODEL_B, Stage.ENSEMBLE),
}


# files in the root of the output folder that no stage writes
RUNNER_FILES = (paths.REPORT, paths.RUNS, paths.RUNS_PLOT)


def source_files(notebook: Path) -> list[Path]:
    """Files below src/ that a notebook imports, and those that they import in turn, sorted."""
    code = "\n".join(source for kind, source in _sources(notebook) if kind == "code")

    # a change of any module that is reached by imports may change what the notebook computes
    files: set[Path] = set()
    ahead = imported_files(code)
    while ahead:
        file = ahead.pop()
        files.add(file)
        ahead |= imported_files(file.read_text(encoding="utf-8")) - files
    return sorted(files)


def imported_files(source: str) -> set[Path]:
    """Files below src/ that Python code imports by `from src... import ...`, packages'
    `__init__.py` included.
    """
    files = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        parts = node.module.split(".")
        if parts[0] != "src":
            continue

        # a name behind `import` may be a module or something that a module holds
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
    """Everything a stage depends on, in parts that can be compared and named: parameters, inputs,
    code, earlier stages.

    Code is the notebook and the modules that it uses; an earlier stage is the checksums of its
    artifacts.
    """
    from src.artifacts import fingerprint

    notebook = notebooks / f"{stage}.ipynb"
    code = {f"notebooks/{stage}.ipynb": fingerprint(_sources(notebook))}
    for file in source_files(notebook):
        code[file.relative_to(ROOT).as_posix()] = _checksum(file)

    inputs = {name: fingerprint(path) for name, path in input_paths(values).items()}
    earlier = {name: fingerprint(_artifacts(output, name)) for name in NEEDS[stage]}
    return {"parameter": values, "input": inputs, "code": code, "earlier stage": earlier}


def _sources(notebook: Path) -> list[tuple[str, str]]:
    """Type and source of each cell."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


def _artifacts(output: Path, stage: str) -> dict[str, str]:
    """Checksums by name of the files a stage left, without its figures, which no stage reads."""
    meta = read_meta(output, stage)
    if meta is None:
        return {}
    figures = f"{stage}/{paths.FIGURES}/"
    return {
        name: entry["checksum"]
        for name, entry in meta["files"].items()
        if not name.startswith(figures)
    }


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def reasons_to_run(stage: str, state: dict[str, dict], output: Path) -> list[str]:
    """Why a stage must run, in words; empty when it is up to date."""
    meta = read_meta(output, stage)
    if meta is None:
        return ["it has not finished here"]

    reasons = []
    gone = [name for name, entry in meta["files"].items() if not _is_whole(output / name, entry)]
    if gone:
        reasons.append(f"{len(gone)} of its files are missing or changed, e.g. {gone[0]}")

    # through JSON, as the earlier state was: tuples become lists there
    for kind, now in json.loads(json.dumps(state)).items():
        reasons += _changes(kind, meta["state"][kind], now)
    return reasons


def _changes(kind: str, before: dict, now: dict) -> list[str]:
    """A line for each name whose value differs; for a parameter with both values."""
    changes = []
    for name in sorted(now.keys() | before.keys()):
        if now.get(name) == before.get(name):
            continue
        if kind == "parameter":
            changes.append(f"{kind} {name} {before.get(name)!r} -> {now.get(name)!r}")
        else:
            changes.append(f"{kind} {name} changed")
    return changes


def _is_whole(file: Path, entry: dict) -> bool:
    """Whether a file is as its stage left it: same length, and same time of change or else same
    checksum.
    """
    if not file.is_file() or file.stat().st_size != entry["bytes"]:
        return False

    # the time is looked at first: a checksum reads the whole file
    return file.stat().st_mtime_ns == entry["changed"] or _checksum(file) == entry["checksum"]


def read_meta(output: Path, stage: str) -> dict | None:
    """A stage's meta.json; None where the stage has not run to its end under this runner."""
    file = output / stage / paths.META
    if not file.exists():
        return None
    meta = json.loads(file.read_text(encoding="utf-8"))
    if "state" not in meta:  # the notebook ended, the runner did not or was not there
        return None
    has_checksums = all(isinstance(entry, dict) for entry in meta["files"].values())
    return meta if has_checksums else None


def files_of(output: Path, stage: str, since: float) -> dict[str, dict]:
    """Length, time of change and checksum of a stage's artifacts: those in its folder, and those it
    wrote into the root.
    """
    # several stages write into the root: the files of this one are no older than its run
    own = [f for f in (output / stage).rglob("*") if f.is_file() and f.name != paths.META]
    root = [
        f
        for f in output.glob("[!.]*")
        if f.is_file() and f.stat().st_mtime >= since and f.name not in RUNNER_FILES
    ]
    files = {}
    for file in sorted([*own, *root]):
        stat = file.stat()
        files[file.relative_to(output).as_posix()] = {
            "bytes": stat.st_size,
            "changed": stat.st_mtime_ns,
            "checksum": _checksum(file),
        }
    return files
