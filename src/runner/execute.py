"""One notebook executed by papermill, with its lock, log and clock."""

import errno
import fcntl
import json
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from src import paths
from src.errors import UserError
from src.paths import display_path
from src.runner.params import NOTEBOOKS
from src.runner.staleness import files_of, state_of

WIDGET = "application/vnd.jupyter.widget-view+json"
LOG = logging.getLogger("pipeline")
LOG.setLevel(logging.INFO)
LOG.propagate = False
logging.raiseExceptions = (
    False  # a log that finds the disk full must not bury the message that says so
)
FULL = (errno.ENOSPC, errno.EDQUOT)
LITTLE = (
    32 << 20
)  # bytes: with so little free an error is the disk's; numpy's says "138240 requested and 38880 written"


@contextmanager
def logged(output: Path) -> Iterator[None]:
    """Write what LOG is told into a file of this run in output/logs: a line a step, with the time."""
    file = output / paths.LOGS / f"{datetime.now():%Y-%m-%d_%H-%M-%S}.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    LOG.addHandler(handler)
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        handler.close()


@contextmanager
def only_run(output: Path) -> Iterator[None]:
    """Hold `output` for this run. Raises Problem naming who holds it when another run is at work there."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / paths.LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        if error.errno in FULL:
            raise
        raise UserError(
            f"output_dir: {display_path(output)} cannot be written ({error.strerror}): set another one"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"{display_path(output)} is in use by {lock.read().strip() or 'another run'}: wait for it, stop it, or use "
                "another output_dir"
            ) from None
        lock.truncate(0)
        lock.write(
            f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}"
        )
        lock.flush()
        yield
        lock.truncate(0)


# --- running ---


def run_stage(
    stage: str, values: dict[str, object], output: Path, notebooks: Path = NOTEBOOKS
) -> float:
    """Execute one notebook with papermill; its copy with outputs goes to output/executed, as .ipynb and .html.

    Returns seconds. Raises papermill's PapermillExecutionError when a cell fails, Problem when meta.json was not written.
    """
    import papermill
    from traitlets.config import Config

    logging.getLogger("papermill").setLevel(
        logging.ERROR
    )  # it does not know `x: str | list = ...`; stage_params has checked
    from src.artifacts import save_json

    meta_file = output / stage / paths.META
    for mark in (meta_file, output / stage / paths.FAILED):
        mark.unlink(missing_ok=True)
    executed = output / paths.EXECUTED / f"{stage}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)
    state = state_of(stage, values, output, notebooks)
    began, clock = time.time(), time.perf_counter()
    try:
        papermill.execute_notebook(
            notebooks / f"{stage}.ipynb",
            executed,
            parameters=values,
            cwd=notebooks,
            kernel_name="python3",
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            **_step_hooks(stage),
            coalesce_streams=True,  # a progress bar's updates become one output
            config=Config(KernelManager={"transport": "ipc"}),
        )  # not over TCP, which others can read
    except BaseException:
        with suppress(
            OSError, ValueError
        ):  # on a full disk the copy cannot be tidied: the error itself matters more
            _tidy(executed)
        raise
    _tidy(executed)
    seconds = time.perf_counter() - clock
    if not meta_file.exists():
        raise UserError(f"{stage} ended without writing {display_path(meta_file)}")
    meta = json.loads(meta_file.read_text(encoding="utf-8"))
    save_json(
        meta_file,
        {
            **meta,
            "seconds": round(seconds, 1),
            "state": state,
            "files": files_of(output, stage, began),
        },
    )
    return seconds


def _step_hooks(stage: str) -> dict[str, Callable]:
    """nbclient's hooks that write a line into the log as each cell begins, and one with seconds and memory when it is done."""
    import psutil

    began = {}

    def begin(cell, cell_index: int) -> None:
        began[cell_index] = time.perf_counter()
        LOG.info("%s cell %d: %s", stage, cell_index, cell.source.split("\n")[0][:100])

    def end(cell, cell_index: int, execute_reply: dict) -> None:
        memory = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):  # a worker may end at any moment
                memory += process.memory_info().rss
        LOG.info(
            "%s cell %d: %s in %.1f s, %.2f GB in use",
            stage,
            cell_index,
            execute_reply["content"]["status"],
            time.perf_counter() - began[cell_index],
            memory / 2**30,
        )

    return {"on_cell_execute": begin, "on_cell_executed": end}


def _tidy(executed: Path) -> None:
    """Keep the last state of each progress bar in the executed copy, drop widgets (they need a kernel), and write it as HTML."""
    import nbformat
    from nbconvert import HTMLExporter

    from src.artifacts import atomic

    if not executed.exists():
        return
    notebook = nbformat.read(executed, as_version=4)
    for cell in (c for c in notebook.cells if c.cell_type == "code"):
        cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
        for output in (o for o in cell.outputs if o.output_type == "stream"):
            output.text = re.sub(
                r"(?m)^ +\n?$", "", re.sub(r"[^\n]*\r", "", output.text)
            )  # a bar that was taken away is blank
    with atomic(executed) as temporary:
        nbformat.write(notebook, temporary)
    exporter = HTMLExporter(
        mathjax_url="",
        require_js_url="",
        jquery_url="",
        mermaid_js_url="",
        mermaid_layout_elk_js_url="",
    )  # read without a network
    html, _ = exporter.from_notebook_node(notebook)
    with atomic(executed.with_suffix(".html")) as temporary:
        temporary.write_text(html, encoding="utf-8")
