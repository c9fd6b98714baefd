"""Check the docs: every command, link and file name of the README, the pages and the notebooks.

    python tools/check_docs.py          # commands are parsed, links and names are looked up
    python tools/check_docs.py --run    # and every cheap command is run as written, in a clean copy

Parsing runs a command with its own words until its arguments are understood. With --run the copy
gets a small trained output, images and the files that the docs name; what takes long (a run of the
notebooks, a benchmark, the tests) is still only parsed. Exit status 1 where something is wrong.
"""

import argparse
import ast
import contextlib
import importlib
import io
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from src.runner.plan import Pipeline, make_plan
from tools import docs_text
from tools.docs_text import EXTERNAL, Command

HISTORY = ("CHANGELOG.md",)  # names what is gone
RENDERED = "docs/rendered"  # notebooks' own cells, which run as notebooks
USAGE_ERROR = 4  # of pytest
SECONDS = 180  # for one command


def pages(root: Path) -> list[Path]:
    """Every Markdown page of the repository, and the notebooks."""
    found = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("notebooks/*.ipynb")]
    found += [*root.glob("assets/**/*.md"), root / "input/README.md", root / "output/README.md"]
    return sorted(file for file in found if file.exists())


# --- links and file names ---


def dead_links(root: Path) -> list[str]:
    """A line for each link whose file or heading is not there, and each file name that does not
    exist.
    """
    problems = []
    for page in pages(root):
        name = page.relative_to(root).as_posix()
        text = docs_text.page_text(page)
        for target in docs_text.links(text):
            if "://" not in target and not target.startswith("mailto:"):
                problems += _dead_link(root, page, target)
        if name not in HISTORY:
            missing = [file for file in docs_text.file_names(text) if not _exists(root, file)]
            problems += [f"{name}: {file} does not exist" for file in missing]
    return problems


def _dead_link(root: Path, page: Path, target: str) -> list[str]:
    """What is wrong with one link, if anything."""
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    where = page.relative_to(root).as_posix()
    if not file.exists() or not file.is_relative_to(root):
        return [f"{where}: link to {target}, but there is no such file"]
    if anchor and anchor not in docs_text.anchors(docs_text.page_text(file)):
        return [f"{where}: link to {target}, but the page has no such heading"]
    return []


def _exists(root: Path, name: str) -> bool:
    """Whether a file, or with `*` at least one file, has this name; a module may lack its .py."""
    candidates = [name.rstrip("/"), f"{name}.py"]
    return any(any(root.glob(candidate)) for candidate in candidates)


# --- commands, parsed ---


class Understood(BaseException):
    """Raised in place of the work of a command, once its arguments are parsed."""


@contextlib.contextmanager
def only_parsing() -> Iterator[None]:
    """Every argparse parser stops the program once it has understood the arguments."""
    original = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        original(self, args, namespace)
        raise Understood

    argparse.ArgumentParser.parse_args = parse_and_stop
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args = original


def all_commands(root: Path) -> list[Command]:
    """The commands of every page but the changelog."""
    found = []
    for page in pages(root):
        name = page.relative_to(root).as_posix()
        if name not in HISTORY:
            found += docs_text.commands(name, docs_text.page_text(page))
    return found


def wrong_command(root: Path, command: Command) -> str | None:
    """Why a command cannot be meant, by its parser; None where it is understood."""
    program, *words = command.words
    if program in EXTERNAL:
        return None
    if program == "./run_tests.sh":
        return _wrong_tests(words)
    if program == "./run_all.sh":
        refused = _parse(command, lambda: _run_module("src.runner.cli", words))
        return refused or _parse(command, lambda: _plan(words))
    if program == "python" and words[:2] == ["-m", "pytest"]:
        return _wrong_tests(words[2:])
    if program == "python" and words[:1] == ["-c"]:
        return _wrong_code(words[1])
    if program == "python" and words[:1] == ["-m"]:
        return _parse(command, lambda: _run_module(words[1], words[2:]))
    if program == "python" and words and (root / words[0]).is_file():
        return _parse(command, lambda: _run_file(root / words[0], words[1:]))
    if program == "python" and words:
        return f"{words[0]} does not exist"
    return f"{program} is neither a program of this repository nor one of {', '.join(EXTERNAL)}"


def _parse(command: Command, program) -> str | None:
    """Run `program` until it has understood its arguments; what it says where it has not."""
    said = io.StringIO()
    try:
        with only_parsing(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            code = program()
    except Understood:
        return None
    except SystemExit as stopped:
        code = stopped.code
    except ModuleNotFoundError as error:
        # a program may need a package that requirements.txt leaves out, if it says so
        is_extra = re.search(rf"pip install .*\b{error.name}==", _source(command))
        return None if is_extra else str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

    lines = said.getvalue().strip().splitlines()
    last = lines[-1] if lines else f"exit status {code}"
    is_short = command.in_sentence and "arguments are required" in last
    return None if code in (0, None) or is_short else last


def _source(command: Command) -> str:
    """The program's text, of a command that is a file."""
    file = Path(command.words[1]) if len(command.words) > 1 else Path()
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _run_module(name: str, words: list[str]) -> int | None:
    """`python -m name words`."""
    with _arguments([name, *words]):
        module = importlib.import_module(name)
        return module.main(words)


def _wrong_code(code: str) -> str | None:
    """Why the program of `python -c` is not Python."""
    try:
        ast.parse(code)
    except SyntaxError as error:
        return str(error)
    return None


def _plan(words: list[str]) -> None:
    """Read the parameters of a run and check their names and types, without its inputs."""
    is_run = not words or words[0].startswith("-")
    values = {"--params": ["params/demo.yaml"], "--set": []}
    for word, value in pairwise([*words, ""] if is_run else []):
        if word in values:
            values[word].append(value)
    make_plan(Pipeline(), values["--params"][-1], values["--set"])


def _run_file(file: Path, words: list[str]) -> int | None:
    """`python file words`; a program without arguments has nothing to parse and is not run."""
    if "argparse" not in file.read_text(encoding="utf-8"):
        return 2 if words else 0
    with _arguments([str(file), *words]):
        runpy.run_path(str(file), run_name="__main__")
    return 0


@contextlib.contextmanager
def _arguments(words: list[str]) -> Iterator[None]:
    """`sys.argv` of a program, and its own folder to import from."""
    argv_before = sys.argv
    path_before = list(sys.path)
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    try:
        yield
    finally:
        sys.argv = argv_before
        sys.path[:] = path_before


def _wrong_tests(words: list[str]) -> str | None:
    """Why pytest refuses these words, found by collecting."""
    import pytest

    quiet = ["--collect-only", "-q", "-p", "no:cacheprovider", "--no-cov"]
    files = [word for word in words if word.startswith("tests")] or ["tests/helpers"]
    flags = [word for word in words if word.startswith("-")]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = pytest.main([*quiet, *flags, *files])
    lines = said.getvalue().strip().splitlines()
    return lines[-1] if code == USAGE_ERROR else None


def wrong_commands(root: Path) -> list[str]:
    """A line for each command that its own parser refuses; equal ones are parsed once."""
    reasons: dict[tuple, str | None] = {}
    problems = []
    for command in all_commands(root):
        key = (command.words, command.in_sentence)
        if key not in reasons:
            reasons[key] = wrong_command(root, command)
        if reasons[key]:
            problems.append(f"{command}: {reasons[key]}")
    return problems


def wrong_snippets(root: Path) -> list[str]:
    """A line for each Python snippet that is not Python, or imports what does not exist."""
    problems = []
    for page in pages(root):
        for block in docs_text.snippets(docs_text.page_text(page)):
            where = f"{page.relative_to(root).as_posix()}:{block.line}"
            try:
                tree = ast.parse(block.text)
            except SyntaxError as error:
                problems.append(f"{where}: {error}")
                continue
            imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
            problems += [f"{where}: {what}" for node in imports for what in _missing_names(node)]
    return problems


def _missing_names(node: ast.ImportFrom) -> list[str]:
    module = importlib.import_module(node.module or "")
    missing = []
    for alias in node.names:
        module_name = f"{node.module}.{alias.name}"
        is_module = hasattr(module, "__path__") and find_spec(module_name) is not None
        if not hasattr(module, alias.name) and not is_module:
            missing.append(f"{node.module} has no {alias.name}")
    return missing


# --- commands, run ---


def clean_copy(root: Path, folder: Path) -> Path:
    """The files of the repository in `folder`, as a clone has them, and what the docs name there.

    A small trained output, and images under the names that the docs use.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (root / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, target)

    subprocess.run(
        [sys.executable, "-c", PREPARE],
        cwd=folder,
        check=True,
        capture_output=True,
        timeout=SECONDS,
    )
    return folder


PREPARE = """
import shutil
from pathlib import Path
from src import artifacts, paths
from tests.helpers import finished_output, trained_output

here = Path.cwd()
finished_output.write_finished_output(here / "output")
judged = artifacts.load_json(here / "output" / paths.BLEND)
trained_output.write_output(here)
trained = artifacts.load_json(here / "output" / paths.BLEND)
artifacts.save_json(here / "output" / paths.BLEND, judged | trained)

images = sorted((here / "test").glob("*.png"))
for folder in ("photos", "FOLDER", "input/smoke/test/images"):
    shutil.copytree(here / "test", here / folder)
for name, image in zip(("fox.png", "owl.png", "query.png"), images, strict=False):
    shutil.copy(image, here / name)
shutil.copytree(here / "output", here / "output" / "smoke")
shutil.copytree(here / "output" / "smoke", here / "output" / "photos")
"""


def failed_commands(root: Path) -> list[str]:
    """A line for each cheap command, or Python snippet, that fails in a clean copy."""
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        copy = clean_copy(root, Path(folder))
        done = set()
        for page in pages(root):
            name = page.relative_to(root).as_posix()
            if name.startswith(RENDERED):
                continue
            text = docs_text.page_text(page)
            for command in docs_text.commands(name, text):
                words = runnable(command)
                if words and words not in done and name not in HISTORY:
                    done.add(words)
                    problems += _failure(copy, command, words)
            for block in docs_text.snippets(text):
                program = Command(name, block.line, ("python", "-c", block.text))
                problems += _failure(copy, program, (sys.executable, *program.words[1:]))
    return problems


def runnable(command: Command) -> tuple[str, ...] | None:
    """What is run in place of a command: itself where it is cheap, its `status` for a whole run."""
    program, *words = command.words
    if program != "./run_all.sh" or command.in_sentence:
        return None
    if words and not words[0].startswith("-"):
        return command.words

    # the run itself takes minutes; its parameters are read and checked by `status`
    kept = []
    for word, value in pairwise([*words, ""]):
        if word in ("--params", "--set"):
            kept += [word, value]
    return (program, "status", *kept)


def _failure(copy: Path, command: Command, words: tuple[str, ...]) -> list[str]:
    """Run `words` in the copy; what it said where it failed. A server is stopped once it serves."""
    environment = {**os.environ, "SKIP_INSTALL": "1", "PYTHON": sys.executable}
    start = time.perf_counter()
    process = subprocess.Popen(
        words,
        cwd=copy,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    said = []
    assert process.stdout
    for line in process.stdout:
        said.append(line)
        if "browse" in words and "http://" in line:
            os.killpg(process.pid, signal.SIGINT)
    code = process.wait(SECONDS)

    print(f"{time.perf_counter() - start:5.1f} s  {command}", flush=True)
    if code == 0 or ("browse" in words and code in (130, -signal.SIGINT)):
        return []
    return [f"{command}: exit status {code}: {''.join(said[-3:]).strip()}"]


def main() -> int:
    """Print what is wrong; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", action="store_true", help="run the cheap commands, some 2 minutes")
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout")
    options = parser.parse_args()

    root = options.root.resolve()
    os.chdir(root)
    problems = dead_links(root) + wrong_commands(root) + wrong_snippets(root)
    if options.run:
        problems += failed_commands(root)
    print(*problems, sep="\n")
    print(f"{len(pages(root))} pages, {len(all_commands(root))} commands, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
