"""What a Markdown page says that can be checked: its commands, snippets, links and file names."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

SHELL = ("", "sh", "bash", "console")
PROGRAMS = ("./run_all.sh", "./run_tests.sh", "python")

# what is no part of this repository, and so is not run
EXTERNAL = ("source", "jupyter", "pip", "pre-commit", "kaggle", "embedding-atlas", "git")
FOLDERS = ("src", "docs", "tests", "tools", "benchmarks", "params", "notebooks", "assets")

FENCE = re.compile(r"^ {0,3}```+ *(\w*)")
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]\n]*\]\(([^()\s]+)\)")
IMAGE = re.compile(r"<img[^>]*\ssrc=\"([^\"]+)\"")
HEADING = re.compile(r"^#{1,6} +(.*?) *#*$", re.MULTILINE)
SETTING = re.compile(r"^[A-Z_]+=")  # of the environment, before a command
FILE_NAME = re.compile(rf"^({'|'.join(FOLDERS)})/[\w.*/-]*$")


@dataclass(frozen=True)
class Block:
    """A block of code: its language ("" where none is named), its first line's number, its text."""

    language: str
    line: int
    text: str


@dataclass(frozen=True)
class Command:
    """One command line. One inside a sentence may leave out what a command needs."""

    page: str
    line: int
    words: tuple[str, ...]
    in_sentence: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {shlex.join(self.words)}"


def page_text(file: Path) -> str:
    """The Markdown of a page, or of a notebook's cells."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def blocks(text: str) -> list[Block]:
    """The fenced and the indented blocks of code, in order; none within a list."""
    found: list[Block] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        fence = FENCE.match(lines[number])
        is_indented = lines[number].startswith("    ") and (number == 0 or not lines[number - 1])
        end = number + 1

        if fence:
            while end < len(lines) and not FENCE.match(lines[end]):
                end += 1
            body = "\n".join(lines[number + 1 : end])
            found.append(Block(fence[1], number + 2, body))
            end += 1
        elif is_indented:
            while end < len(lines) and lines[end].startswith("    "):
                end += 1
            body = "\n".join(line[4:] for line in lines[number:end])
            found.append(Block(_language_of(body), number + 1, body))
        number = end
    return found


def _language_of(body: str) -> str:
    """Of an indented block: python, text (a tree, say), or "" for commands."""
    first = body.split(maxsplit=1)[0] if body.split() else ""
    if first in ("from", "import"):
        return "python"
    is_command = first.startswith("./") or first in PROGRAMS or first in EXTERNAL
    return "" if is_command else "text"


def commands(page: str, text: str) -> list[Command]:
    """The command lines of a page: those of its blocks, and those that a sentence names."""
    found = []
    for block in blocks(text):
        if block.language in SHELL:
            for offset, line in enumerate(block.text.splitlines()):
                found += _commands_of(page, block.line + offset, line)

    for number, line in enumerate(_without_blocks(text).splitlines(), 1):
        for code in INLINE.findall(line):
            words = shlex.split(code) if code.count('"') % 2 == 0 and "'" not in code else []
            if words and words[0] in PROGRAMS:
                found.append(Command(page, number, tuple(words), in_sentence=True))
    return found


def _commands_of(page: str, number: int, line: str) -> list[Command]:
    """The commands of one line of a shell block, which may be joined by &&."""
    words = [word for word in shlex.split(line, comments=True) if not SETTING.match(word)]
    found: list[Command] = []
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        found.append(Command(page, number, tuple(words[:end])))
        words = words[end + 1 :]
    return found


def snippets(text: str) -> list[Block]:
    """The blocks of Python."""
    return [block for block in blocks(text) if block.language == "python"]


def links(text: str) -> list[str]:
    """The targets of links and images, outside code."""
    prose = INLINE.sub("", _without_blocks(text))
    return LINK.findall(prose) + IMAGE.findall(prose)


def file_names(text: str) -> list[str]:
    """The files of the repository that a page names in code, `*` and all."""
    named = INLINE.findall(_without_blocks(text))
    return [name for name in named if FILE_NAME.match(name)]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    names = HEADING.findall(_without_blocks(text))
    return {re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-") for name in names}


def _without_blocks(text: str) -> str:
    """The page with blank lines in place of its blocks of code, so that line numbers stay."""
    lines = text.splitlines()
    for block in blocks(text):
        for number in range(block.line - 1, block.line - 1 + len(block.text.splitlines())):
            lines[number] = ""
    return "\n".join(lines)
