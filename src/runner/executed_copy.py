"""The executed copy of a notebook, as a reader wants it: finished progress bars, no widgets, and an
HTML page.
"""

import re
from pathlib import Path

WIDGET = "application/vnd.jupyter.widget-view+json"
STYLE = Path(__file__).with_name("executed_copy.css")

# a bar of tqdm: "images: 100%|████| 5/5 [00:01<00:00, 4.9it/s]";
# without a total "7it [00:01, 4.9it/s]"
PROGRESS_BAR = re.compile(r"^.*?(\d+%\|.*\||\b\d+\S*) ?\S* \[\d+:\d\d.*\]\s*$")


def finish(executed: Path) -> None:
    """Tidy the outputs of an executed notebook in place, and write it as HTML beside it; nothing
    where it is not there.
    """
    import nbformat

    from src.artifacts import atomic

    if not executed.exists():
        return
    notebook = nbformat.read(executed, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = tidy_outputs(cell.outputs)

    with atomic(executed) as temporary:
        nbformat.write(notebook, temporary)
    with atomic(executed.with_suffix(".html")) as temporary:
        temporary.write_text(as_html(notebook), encoding="utf-8")


def tidy_outputs(outputs: list) -> list:
    """A cell's outputs with the last state of each progress bar, and without widgets, which need a
    kernel.

    Bars are written to stderr, which is shown as an error; here they become ordinary output, and
    warnings stay what they are.
    """
    # in their order: a warning between two bars stays between them
    tidied = []
    for output in outputs:
        if WIDGET in output.get("data", {}):
            continue
        if output.output_type != "stream":
            tidied.append(output)
            continue
        text = _last_states(output.text)
        tidied += _streams(output.name, text)
    return tidied


def _last_states(text: str) -> str:
    """Text as a terminal leaves it: of what was overwritten by \\r the last state, and no line that
    was blanked.
    """
    # what stands before a \r on its line was overwritten by what follows
    last = re.sub(r"[^\n]*\r", "", text)
    return re.sub(r"(?m)^ +\n?$", "", last)


def _streams(name: str, text: str) -> list:
    """Stream outputs for `text`, with the progress bars among the lines of stderr as stdout."""
    import nbformat

    streams: list = []
    for line in text.splitlines(keepends=True):
        # lines that follow one another on the same stream are one output
        line_name = "stdout" if PROGRESS_BAR.match(line) else name
        if streams and streams[-1].name == line_name:
            streams[-1].text += line
        else:
            streams.append(nbformat.v4.new_output("stream", name=line_name, text=line))
    return streams


def as_html(notebook) -> str:
    """The notebook as one HTML page that needs no network, with long code lines wrapped."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        mathjax_url="",
        require_js_url="",
        jquery_url="",
        mermaid_js_url="",
        mermaid_layout_elk_js_url="",
    )
    html, _ = exporter.from_notebook_node(notebook)
    style = STYLE.read_text(encoding="utf-8")
    return html.replace("</head>", f"<style>\n{style}</style>\n</head>", 1)
