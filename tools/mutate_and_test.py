"""How many planted faults the tests notice: mutation testing, a small change of code at a time.

    pip install --target /tmp/mutmut --no-deps mutmut==3.8.1 libcst==1.9.0
    export OMP_NUM_THREADS=1 PYTHONPATH=/tmp/mutmut
    python tools/mutate_and_test.py [--sample N] [--seed N] [MODULE ...]

Prints each change that no test notices and, of each module, its mutants, how many were killed, how
many survived, and the share killed; --sample takes so many of a module's mutants by chance. The
changes are mutmut's. Its runner is not used: it passes over decorated classes, so every dataclass,
and forks a process in which polars has begun its threads, which are dead in the child. Here a
mutant runs in a copy of the tree, in a fork of a process that has only imported the libraries,
against the tests of TESTS that reach its function; one that takes more than a minute or 8 GiB, or
hangs, is killed too.
"""

import argparse
import contextlib
import difflib
import gc
import importlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import coverage
import libcst as cst
import pytest
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import Mutation, MutationVisitor
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

ROOT = Path(__file__).resolve().parents[1]
MODULES = (
    "dedup.filters",
    "dedup.folds",
    "model_b.weighting",
    "model_b.routes",
    "ensemble.blending",
    "submit.submission",
)
TESTS = [
    f"tests/test_{name}.py" for name in ("dedup", "model_b", "ensemble", "submission", "guards")
]
LEFT_OUT = "not million and not competition_sized"  # the slow ones
SECONDS = 60
GIB = 8  # of the processor and of its own memory, for one mutant
HANGS = 600  # seconds after which one that uses no processor is given up
LIBRARIES = (
    "faiss",
    "hypothesis",
    "pandas",
    "pyarrow.parquet",
    "sklearn.isotonic",
    *(f"src.{name}" for name in MODULES),
)


class Visitor(MutationVisitor):
    """Mutmut's, and inside decorated classes too."""

    def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
        return not isinstance(node, cst.ClassDef) and super()._skip_node_and_children(node)


def mutants(code: str) -> list[tuple[range, Callable[[], str]]]:
    """Each change: the lines of the function that it lies in, and what writes the whole code.

    A change outside any function has its own lines.
    """
    wrapper = MetadataWrapper(cst.parse_module(code))
    visitor = Visitor(mutation_operators, IgnoredCode(set(), set(), set()))
    wrapper.visit(visitor)
    places = wrapper.resolve(PositionProvider)

    def written(change: Mutation) -> str:
        return wrapper.module.deep_replace(change.original_node, change.mutated_node).code

    around = [
        places[change.contained_by_top_level_function or change.original_node]
        for change in visitor.mutations
    ]
    return [
        (range(place.start.line, place.end.line + 1), partial(written, change))
        for place, change in zip(around, visitor.mutations, strict=True)
    ]


def failed(*arguments: str) -> bool:
    """Whether pytest fails with these arguments, in a fork of this process."""
    child = os.fork()
    if child:
        return _ended_badly(child)
    status = 1
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_DATA, (GIB << 30, GIB << 30))
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        for name, module in list(sys.modules.items()):  # what lies in the copy is imported anew
            if (getattr(module, "__file__", None) or "").startswith(os.getcwd()):
                del sys.modules[name]
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *arguments])
    finally:
        os._exit(status)


def _ended_badly(child: int) -> bool:
    end = time.monotonic() + HANGS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def file_of(module: str) -> Path:
    """Where a module of src lies: `dedup.filters` in src/dedup/filters.py."""
    return Path("src", *module.split(".")).with_suffix(".py")


def reached() -> dict[str, dict[int, list[str]]]:
    """For each module the tests that run each of its lines; all of them must pass."""
    if failed(
        "--cov=src",
        f"--cov-config={os.devnull}",
        "--cov-context=test",
        "--cov-report=",
        "-k",
        LEFT_OUT,
        *TESTS,
    ):
        sys.exit("the tests fail without any change")
    data = coverage.CoverageData()
    data.read()
    return {name: data.contexts_by_lineno(str(file_of(name).resolve())) for name in MODULES}


def tests_of(lines: range, contexts: dict[int, list[str]]) -> list[str]:
    """The tests that reach one of `lines`, in the order of TESTS.

    Where there is none, those that reach any line.
    """
    found = {
        context.split("|")[0].split("[")[0]
        for line in lines
        for context in contexts.get(line, [])
        if context
    }
    found = found or {
        context.split("|")[0].split("[")[0]
        for line in contexts.values()
        for context in line
        if context
    }
    return sorted(found, key=lambda test: (TESTS.index(test.split("::")[0]), test))


def judge(name: str, contexts: dict[int, list[str]], sample: int | None, seed: int) -> None:
    file = file_of(name)
    code = file.read_text(encoding="utf-8")
    every = list(enumerate(mutants(code)))
    chosen = every if sample is None else random.Random(seed).sample(every, min(sample, len(every)))
    survived = 0
    start = time.monotonic()
    for number, (lines, write) in chosen:
        changed = write()
        file.write_text(changed, encoding="utf-8")
        if not failed("-k", LEFT_OUT, *tests_of(lines, contexts)):
            survived += 1
            told = difflib.unified_diff(code.splitlines(), changed.splitlines(), lineterm="", n=0)
            print(
                "\n".join(
                    [
                        f"{name} {number}:",
                        *(line for line in told if not line.startswith(("---", "+++"))),
                    ]
                ),
                flush=True,
            )
    file.write_text(code, encoding="utf-8")
    killed = len(chosen) - survived
    print(
        f"{name}: {len(every)} mutants, {len(chosen)} tried, {killed} killed, {survived} survived: "
        f"{killed / len(chosen):.1%}, {(time.monotonic() - start) / 60:.1f} minutes",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="*", metavar="MODULE", default=MODULES)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for part in ("src", "tests", "params", "notebooks"):
            shutil.copytree(
                ROOT / part, Path(folder, part), ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copy(ROOT / "pyproject.toml", folder)
        os.chdir(folder)
        sys.path.insert(0, folder)
        for library in LIBRARIES:
            importlib.import_module(library)
        with contextlib.redirect_stdout(io.StringIO()):
            pytest.main(
                ["--collect-only", "-p", "no:cacheprovider", *TESTS]
            )  # the plugins are loaded once, here
        gc.disable()
        gc.freeze()  # else a child spends nine tenths of its time collecting garbage
        contexts = reached()
        sys.dont_write_bytecode = True
        for name in arguments.modules:
            judge(name, contexts[name], arguments.sample, arguments.seed)


if __name__ == "__main__":
    main()
