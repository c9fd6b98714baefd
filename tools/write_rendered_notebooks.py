"""Write docs/rendered/: the notebooks with their outputs as Markdown pages, from a finished run.

    python tools/write_rendered_notebooks.py [--output output]

Code, prose, printed text and tables as text, and the figures at a readable size; warnings and
long outputs are cut. What is written replaces what was there.
"""

import argparse
import base64
import io
import shutil
import sys
from pathlib import Path

import nbformat
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from src import artifacts, paths

FOLDER = paths.ROOT / "docs" / "rendered"
WIDTH = 700  # pixels of a figure, at most
LINES = 24  # of one output
COLUMNS = 160

HEAD = """# The notebooks as they ran

Each notebook with its outputs, from a run on {rows:,} training pairs of the embedded demo, seed
{seed}. Written by `python tools/write_rendered_notebooks.py`; `output/executed/` has the full
copies of a run of your own.

"""


def page(notebook, stem: str) -> tuple[str, dict[str, bytes]]:
    """The notebook as Markdown, and its figures by file name."""
    parts = []
    figures: dict[str, bytes] = {}
    for cell in notebook.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            continue  # the values of the run, which the parameters' cell explains
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue

        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                ending, content = small(base64.b64decode(output.data["image/png"]))
                name = f"{stem}_{len(figures) + 1}.{ending}"
                figures[name] = content
                parts.append(f"![figure]({name})")
            elif text := text_of(output):
                parts.append(f"```text\n{text}\n```")
    return "\n\n".join(parts) + "\n", figures


def text_of(output) -> str:
    """What an output prints, cut to LINES and COLUMNS; no warnings, no figures' names."""
    if output.output_type == "stream":
        text = output.text if output.name == "stdout" else ""
    else:
        text = output.get("data", {}).get("text/plain", "")
    lines = [line[:COLUMNS] for line in text.rstrip().splitlines()]
    if len(lines) > LINES:
        lines = [*lines[:LINES], f"... {len(lines) - LINES} more lines"]
    return "\n".join(lines)


def small(png: bytes) -> tuple[str, bytes]:
    """Ending and content of the figure, at most WIDTH wide: a PNG of few colors, or a JPEG."""
    figure = Image.open(io.BytesIO(png)).convert("RGB")
    figure.thumbnail((WIDTH, 10 * WIDTH))

    with_palette = io.BytesIO()
    palette = figure.quantize(64, method=Image.Quantize.MAXCOVERAGE)
    palette.save(with_palette, "PNG", optimize=True)
    as_jpeg = io.BytesIO()
    figure.save(as_jpeg, "JPEG", quality=60, optimize=True)
    if len(with_palette.getvalue()) < len(as_jpeg.getvalue()):
        return "png", with_palette.getvalue()
    return "jpg", as_jpeg.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output"), help="of a finished run")
    options = parser.parse_args()

    executed = paths.resolve(options.output) / paths.EXECUTED
    pages = {}
    for stage in paths.STAGES:
        notebook = nbformat.read(executed / f"{stage}.ipynb", as_version=4)
        pages[stage] = page(notebook, stage.split("_")[0])

    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    index = []
    for stage, (text, figures) in pages.items():
        (FOLDER / f"{stage}.md").write_text(text, encoding="utf-8")
        for name, content in figures.items():
            (FOLDER / name).write_bytes(content)
        title = text.splitlines()[0].removeprefix("# ")
        index.append(f"- [{title}]({stage}.md)")
    facts = artifacts.load_json(paths.resolve(options.output) / paths.Stage.DEDUP / paths.META)
    head = HEAD.format(rows=facts["rows"], seed=facts["seed"])
    (FOLDER / "README.md").write_text(head + "\n".join(index) + "\n", encoding="utf-8")

    size = sum(file.stat().st_size for file in FOLDER.iterdir())
    print(f"{FOLDER.relative_to(paths.ROOT)}: {len(pages)} pages, {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
