"""The executed copy of a notebook, .ipynb and .html."""

import nbformat

from src.paths import ROOT
from src.runner import executed_copy
from tests.helpers.toy_pipeline import BODY, run, write_notebook

BARS = """
import time
for share in (10, 90, 100):
    print(share, '%', end='\\r' if share < 100 else '\\n', flush=True)
    time.sleep(0.2)  # so that each comes as an output of its own
from IPython.display import display
widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}}
display(widget | {"text/plain": "a bar " + "at 0 %"}, raw=True)"""


def test_executed_copy_keeps_a_progress_bar_s_last_state_and_asks_nothing_of_the_network(toy):
    write_notebook(toy, "01_dedup", BODY.format(root=str(ROOT), number=1, stage="01_dedup") + BARS)
    assert run(toy, "--only", "01") == 0
    page = (toy / "out" / "executed" / "01_dedup.html").read_text()
    assert "100 %" in page.rsplit("<pre>", 1)[1] and "90 %" not in page.rsplit("<pre>", 1)[1]
    assert "a bar at" not in page, "a widget is kept, which shows nothing without its kernel"
    assert '<script src="http' not in page and "cdnjs" not in page


def test_progress_bars_are_no_errors_and_warnings_stay_what_they_are():
    bar = "decoding: 100%|##########| 360/360 [00:00<00:00, 3309.09image/s]\n"
    counter = "12it [00:01, 9.10it/s]\n"
    warning = "UserWarning: 3 of 10 images [see above] are 100% black\n"
    stderr = nbformat.v4.new_output("stream", name="stderr", text=bar + counter + warning + bar)
    tidied = executed_copy.tidy_outputs([stderr])
    expected = [("stdout", bar + counter), ("stderr", warning), ("stdout", bar)]
    assert [(output.name, output.text) for output in tidied] == expected


def test_long_code_lines_are_wrapped_in_the_html_page():
    cell = nbformat.v4.new_code_cell("x = 1  # " + "long " * 60)
    page = executed_copy.as_html(nbformat.v4.new_notebook(cells=[cell]))
    style = executed_copy.STYLE.read_text(encoding="utf-8")
    assert "white-space: pre-wrap" in style and style in page.split("</head>")[0]
