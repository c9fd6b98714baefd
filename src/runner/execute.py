"""One notebook executed by papermill, with a log of its cells and its meta.json completed."""

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from src import paths
from src.errors import UserError
from src.paths import display_path
from src.runner import executed_copy
from src.runner.plan import Plan
from src.runner.staleness import files_of

LOG = logging.getLogger("pipeline")
LOG.setLevel(logging.INFO)
LOG.propagate = False

# an error of the log on a full disk must not hide the message about it
logging.raiseExceptions = False


@contextmanager
def logged(output: Path) -> Iterator[None]:
    """Write the messages of LOG to a file in output/logs: a line for each step, with the time."""
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


def run_stage(plan: Plan, stage: str) -> float:
    """Execute a stage's notebook; its copy with outputs goes to output/executed, as .ipynb and
    .html.

    Returns seconds. Raises papermill's PapermillExecutionError when a cell fails, UserError when
    meta.json was not written.
    """
    from src import artifacts

    folder = plan.output / stage
    meta_file = folder / paths.META
    executed = plan.output / paths.EXECUTED / f"{stage}.ipynb"
    executed.parent.mkdir(parents=True, exist_ok=True)

    # nothing of an earlier run may look like a result of this one
    meta_file.unlink(missing_ok=True)
    (folder / paths.FAILED).unlink(missing_ok=True)
    shutil.rmtree(folder / paths.FIGURES, ignore_errors=True)

    # what the stage depends on is noted before it begins: a change while it runs makes it stale
    state = plan.state(stage)
    began = time.time()
    start = time.perf_counter()
    try:
        _execute(plan, stage, executed)
    except BaseException:
        with suppress(OSError, ValueError):  # on a full disk: the error itself matters more
            executed_copy.finish(executed)
        raise
    executed_copy.finish(executed)
    seconds = time.perf_counter() - start

    # the notebook writes it in its last cell: without it, it did not reach its end
    if not meta_file.exists():
        raise UserError(f"{stage} ended without writing {display_path(meta_file)}")
    runner_facts = {
        "seconds": round(seconds, 1),
        "state": state,
        "files": files_of(plan.output, stage, began),
    }
    artifacts.save_json(meta_file, artifacts.load_json(meta_file) | runner_facts)
    return seconds


def _execute(plan: Plan, stage: str, executed: Path) -> None:
    """Run the notebook in a kernel of its own, with its output on the terminal as it comes."""
    import papermill
    from traitlets.config import Config

    # papermill cannot read `x: str | list = ...` and warns of it; stage_params checks the types
    logging.getLogger("papermill").setLevel(logging.ERROR)
    papermill.execute_notebook(
        plan.pipeline.notebooks / f"{stage}.ipynb",
        executed,
        parameters=plan.per_stage[stage],
        cwd=plan.pipeline.notebooks,
        kernel_name="python3",
        progress_bar=False,
        stdout_file=sys.stdout,
        stderr_file=sys.stderr,
        **_cell_hooks(stage),
        coalesce_streams=True,  # a progress bar's updates become one output
        config=Config(KernelManager={"transport": "ipc"}),  # over TCP others could listen
    )


def _cell_hooks(stage: str) -> dict[str, Callable]:
    """nbclient's hooks, which log each cell as it begins, and its seconds and the memory in use as
    it ends.
    """
    starts: dict[int, float] = {}

    def begin(cell, cell_index: int) -> None:
        starts[cell_index] = time.perf_counter()
        first_line = cell.source.split("\n")[0][:100]
        LOG.info("%s cell %d: %s", stage, cell_index, first_line)

    def end(cell, cell_index: int, execute_reply: dict) -> None:
        outcome = execute_reply["content"]["status"]
        seconds = time.perf_counter() - starts[cell_index]
        message = "%s cell %d: %s in %.1f s, %.2f GB in use"
        LOG.info(message, stage, cell_index, outcome, seconds, _memory_in_use())

    return {"on_cell_execute": begin, "on_cell_executed": end}


def _memory_in_use() -> float:
    """GB held by this process and all that it has started."""
    import psutil

    runner = psutil.Process()
    memory = 0
    for process in [runner, *runner.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # a worker may end at any moment
            memory += process.memory_info().rss
    return memory / 2**30
