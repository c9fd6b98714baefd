"""What a run prints at its end: Table 1, files and times; or what failed and how to go on."""

import errno
import logging
import os
import re
import resource
import shutil
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from src import paths
from src.errors import LOOK_UP
from src.paths import Stage, display_path
from src.runner.execute import LOG
from src.runner.lock import DISK_FULL
from src.runner.plan import Plan

LITTLE_SPACE = 32 << 20  # bytes; with less free space any error is taken for a full disk


def write_report(output: Path, *, changed: bool) -> None:
    """Write report.html where there is a blend, and something changed or no report is there yet."""
    has_report = (output / paths.REPORT).exists()
    if not (output / paths.BLEND).exists() or (has_report and not changed):
        return
    from src.runner import report

    try:
        report.write(output)
    except FileNotFoundError as error:  # a stage has not run here yet, as with --only
        print(f"no report: {error}", file=sys.stderr)


def record_run(plan: Plan, seconds: dict[str, float | None]) -> None:
    """Add a line to runs.csv where the run has changed something and reached a submission."""
    reached_end = Stage.SUBMIT in seconds and (plan.output / paths.BLEND).exists()
    if not reached_end or not any(seconds.values()):
        return
    from src.runner import runs

    try:
        runs.record(plan)
    except (ValueError, FileNotFoundError) as error:  # of a file that the user may edit
        print(f"this run is not recorded: {error}", file=sys.stderr)


def print_summary(output: Path, seconds: dict[str, float | None], total: float) -> None:
    """Print Table 1, what was written, and the seconds of each stage (None: it was up to date)."""
    if (output / paths.TABLE1).exists():
        _print_table1(output / paths.TABLE1)

    # what was written, where there is something
    submission = output / f"{paths.SUBMISSION}.csv"
    if submission.exists():
        print(f"\nsubmission: {display_path(submission)} (also .parquet and .npy)")
    if (output / paths.REPORT).exists():
        print(f"report:     {display_path(output / paths.REPORT)}")
    if (output / paths.RUNS).exists():
        print(f"all runs:   {display_path(output / paths.RUNS)} (./run_all.sh runs)")

    print()
    for stage, value in seconds.items():
        print(f"{stage:22} {'up to date' if value is None else f'{value:6.0f} s'}")
    if all(value is None for value in seconds.values()):
        print("everything is up to date")
        return
    print(f"{'total':22} {total:6.0f} s, largest process {_peak_memory():.1f} GB")
    print(f"executed notebooks:    {display_path(output / paths.EXECUTED)}")


def _print_table1(table: Path) -> None:
    import polars as pl

    print(f"\nTable 1 ({display_path(table)})")
    with pl.Config(
        tbl_formatting="NOTHING",
        tbl_hide_column_data_types=True,
        tbl_hide_dataframe_shape=True,
        tbl_rows=20,
        tbl_cols=-1,
        float_precision=4,
        tbl_width_chars=120,
        fmt_str_lengths=40,
    ):
        print(pl.read_csv(table, glob=False))


def _peak_memory() -> float:
    """GB of the largest process so far that has ended; Linux counts in kB, macOS in bytes."""
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return largest / (2**30 if sys.platform == "darwin" else 2**20)


# --- a run that did not reach its end ---


def print_interrupt(plan: Plan, stage: str) -> None:
    """Log the interrupted stage, and print how to go on."""
    # the kernel was stopped on purpose: asyncio must not report its death below the advice
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    LOG.info("stopped in %s", stage)
    print(f"\nstopped in {stage}; go on with {plan.resume_command(stage)}", file=sys.stderr)


def print_failure(plan: Plan, stage: str, error: Exception) -> None:
    """Print what failed, advice where the cause is known, and how to go on; note it in the log and
    in failed.txt.
    """
    from papermill.exceptions import PapermillExecutionError

    print(f"\n{stage} failed.", file=sys.stderr)
    where = f"{type(error).__name__}: {error}"
    if isinstance(error, PapermillExecutionError):  # of a cell
        where = f"cell {error.exec_count}: {error.ename}: {error.evalue}"
        print(_end_of_traceback(error.traceback), end="\n\n", file=sys.stderr)
    print(where, file=sys.stderr)

    # a full disk, too little memory: what can be done about it stands right below the error
    for line in _advice(plan.output, error, where):
        print(line, file=sys.stderr)
    executed = plan.output / paths.EXECUTED / f"{stage}.ipynb"
    print(f"\nexecuted copy: {display_path(executed)} (and .html)", file=sys.stderr)
    print(f"go on with:    {plan.resume_command(stage)}", file=sys.stderr)
    print(LOOK_UP, file=sys.stderr)

    # for `./run_all.sh status` and for whoever reads the log
    LOG.info("%s failed: %s", stage, where)
    mark = plan.output / stage / paths.FAILED
    with suppress(OSError):  # on a full disk
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(f"{datetime.now():%Y-%m-%d %H:%M:%S}, {where}\n", encoding="utf-8")


def _end_of_traceback(traceback: list[str]) -> str:
    """The last lines of a kernel's traceback without its colors, and without the error itself."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(traceback))
    return "\n".join(plain.splitlines()[-15:-1])


def _advice(output: Path, error: Exception, where: str) -> list[str]:
    """What the user can do about an error whose cause is known."""
    advice = []
    says_full = getattr(error, "errno", None) in DISK_FULL or os.strerror(errno.ENOSPC) in where
    if says_full or shutil.disk_usage(output).free < LITTLE_SPACE:
        advice.append(
            f"the disk that holds {display_path(output)} is full: make room; what is finished stays"
        )
    if "Kernel died" in where:
        advice.append(
            "the kernel was killed; if memory ran out (the log has what was in use), "
            "lower batch_size"
        )
    return advice
