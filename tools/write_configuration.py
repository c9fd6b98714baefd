"""Write docs/configuration.md: every parameter of the notebooks, from their parameter cells.

    python tools/write_configuration.py

A test holds the page against the notebooks.
"""

import ast
import io
import json
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"
HEAD = """# Configuration

Every parameter, its default and what it does. The defaults stand in the notebooks' parameter cells
and nowhere else; a parameters file (`params/*.yaml`) and `--set` change them. Keys of a section
named after a notebook reach that notebook; keys of `common:` reach every notebook that has them.

    ./run_all.sh --params params/competition.yaml --set seed=1 --set 02_train_model_a.epochs=3

A key that no notebook has, or a value of another type, is refused before anything runs. The runner
has one key of its own: `offline: true` in `common:` lets no connection leave the machine.

Written by `python tools/write_configuration.py` from the notebooks.
"""


def parameter_rows(source: str) -> list[tuple[str, str, str, str]]:
    """(group, name, default, comment) of each line of a parameter cell, in order."""
    comments = {}
    own_lines = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        text = token.string.lstrip("# ")
        is_own_line = source.splitlines()[token.start[0] - 1].lstrip().startswith("#")
        (own_lines if is_own_line else comments)[token.start[0]] = text

    rows = []
    for node in ast.parse(source).body:
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        group = next((own_lines[n] for n in range(node.lineno - 1, 0, -1) if n in own_lines), "")
        comment = "; ".join(
            comments[n] for n in range(node.lineno, node.end_lineno + 1) if n in comments
        )
        default = json.dumps(ast.literal_eval(node.value), ensure_ascii=False)
        rows.append((group, target.id, default, comment))
    return rows


def cell(text: str) -> str:
    """Text as it may stand in a Markdown table."""
    return text.replace("|", "\\|")


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
        parts.append(f"\n## {file.stem}\n\n| parameter | default | what |\n| --- | --- | --- |\n")

        group_before = None
        for group, name, default, comment in parameter_rows("".join(tagged[0]["source"])):
            if group != group_before:
                parts.append(f"| **{cell(group)}** | | |\n")
                group_before = group
            parts.append(f"| `{name}` | `{cell(default)}` | {cell(comment)} |\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} written")
