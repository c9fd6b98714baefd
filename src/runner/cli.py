"""The runner behind run_all.sh: order, skipping what is up to date, one run at a time, logs and clocks.

It imports no model: a run in which everything is up to date takes seconds.
"""

import argparse
import errno
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from src import paths
from src.errors import UserError
from src.paths import ROOT, STAGES, display_path, resolve
from src.runner.execute import FULL, LITTLE, LOG, logged, only_run, run_stage
from src.runner.params import NOTEBOOKS, load_params, missing_inputs, stage_params
from src.runner.staleness import NEEDS, read_meta, reasons_to_run, state_of

USAGE = """examples:
  ./run_all.sh                                          everything, on the embedded demo
  ./run_all.sh --params params/competition.yaml         another parameters file
  ./run_all.sh --from 03                                go on from notebook 03
  ./run_all.sh --only 03 --force                        run one notebook, up to date or not
  ./run_all.sh --set 02_train_model_a.epochs=3 --set seed=1   change parameters for this run
  ./run_all.sh --status                                 what is up to date, what is not and why; runs nothing

new images, with what such a run has trained:
  ./run_all.sh predict --images FOLDER --out FILE.parquet      its own options: ./run_all.sh predict --help

environment: PYTHON=... chooses the interpreter for .venv, SKIP_INSTALL=1 uses the packages that are there"""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="./run_all.sh",
        description="From images and prompts to a checked submission: "
        "runs the five notebooks in order and skips what is up to date.",
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--params",
        default="params/demo.yaml",
        metavar="FILE",
        help="parameters (default: %(default)s)",
    )
    parser.add_argument(
        "--from",
        dest="first",
        metavar="03",
        help="start at this notebook; earlier ones are left as they are",
    )
    parser.add_argument("--only", metavar="03", help="run this notebook alone")
    parser.add_argument("--force", action="store_true", help="run even what is up to date")
    parser.add_argument(
        "--status",
        action="store_true",
        help="say which notebooks are up to date, and why not; run nothing",
    )
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter for this run: seed=1, 02_train_model_a.epochs=3, demo.train_scenes=500",
    )
    return parser.parse_args(argv)


def demo_to_write(demo: dict | None) -> Path | None:
    """The demo's folder, where the parameters ask for one that is not there, whole and of these sizes."""
    if demo is None:
        return None
    from src import demo as module

    folder = resolve(demo["folder"])
    if not module.is_current(folder, **_sizes(demo)):
        return folder
    print(f"demo       up to date ({display_path(folder)})")
    return None


def _sizes(demo: dict) -> dict[str, int]:
    return {name: value for name, value in demo.items() if name != "folder"}


def write_demo(folder: Path, sizes: dict[str, int]) -> None:
    """Write the demo, and say how long it took."""
    from src import demo as module

    clock = time.perf_counter()
    print(f"demo       writing {display_path(folder)}", flush=True)
    module.write(folder, **sizes)
    print(f"demo       {time.perf_counter() - clock:.0f} s")


def preflight(
    per_stage: dict[str, dict],
    file: str,
    notebooks: Path = NOTEBOOKS,
    *,
    to_be_written: Path | None = None,
) -> None:
    """Raise Problem listing all that would stop the stages, before the first one begins; the demo's folder may be `to_be_written`.

    `preflight.py` looks, in a process of its own; it knows the parameters of NOTEBOOKS: of others the inputs alone are looked at.
    """
    clock, missing = time.perf_counter(), missing_inputs(per_stage, to_be_written=to_be_written)
    wrong, advice = list(missing), ""
    if missing:
        advice = "\nset inputs in the file or with --set, or run the embedded demo: ./run_all.sh --params params/demo.yaml"
    if notebooks == NOTEBOOKS:
        print("checking   sources, weights, settings and room", flush=True)
        done = subprocess.run(
            [sys.executable, "-m", "src.runner.preflight"],
            input=json.dumps(per_stage),
            text=True,
            capture_output=True,
            cwd=ROOT,
        )
        failed = f"the checks before the run failed themselves:\n{done.stderr[-3000:]}"
        wrong += not_run(per_stage)
        wrong += [failed] if done.returncode else json.loads(done.stdout.splitlines()[-1])
    if wrong:
        raise UserError(
            "\n  ".join([f"{file}: nothing has run, since this would stop it", *wrong]) + advice
        )
    print(f"checked    nothing is in the way: {time.perf_counter() - clock:.0f} s")


def not_run(per_stage: dict[str, dict]) -> list[str]:
    """A line for every stage that one of these needs, and that is neither among them nor has run to its end."""
    output = resolve(next(iter(per_stage.values()))["output_dir"])
    needed = {
        earlier for stage in per_stage for earlier in NEEDS[stage] if earlier not in per_stage
    }
    lacking = [stage for stage in sorted(needed) if read_meta(output, stage) is None]
    return [
        f"{stage} has not run to its end in {display_path(output)}: use --from {lacking[0][:2]}"
        for stage in lacking
    ]


def chosen(first: str | None, only: str | None) -> list[str]:
    """The stages that `--from` and `--only` leave, by number or name."""

    def index(text: str) -> int:
        found = [
            i
            for i, stage in enumerate(STAGES)
            if stage == text or stage.split("_")[0] == text.zfill(2)
        ]
        if not found:
            raise UserError(f"{text!r} is no notebook; there are {', '.join(STAGES)}")
        return found[0]

    if first and only:
        raise UserError("--from and --only exclude each other")
    return (
        [STAGES[index(only)]] if only else list(STAGES[index(first) :]) if first else list(STAGES)
    )


def run(options: argparse.Namespace, notebooks: Path = NOTEBOOKS) -> int:
    """The whole run; returns the exit status."""
    params = load_params(options.params, options.changes)
    per_stage = stage_params(params, options.params, notebooks)
    stages = chosen(options.first, options.only)
    output = resolve(per_stage["01_dedup"]["output_dir"])
    if params.get("common", {}).get("offline"):
        os.environ |= {"OFFLINE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if options.status:
        return status(per_stage, output, notebooks)
    changes = [part for change in options.changes for part in ("--set", change)]
    again = shlex.join(["./run_all.sh", "--params", options.params, *changes]) + " --from "
    wanted, demo = {stage: per_stage[stage] for stage in stages}, params.get("demo")
    to_be_written = demo_to_write(demo)
    if to_be_written or missing_inputs(wanted) or (notebooks == NOTEBOOKS and not_run(wanted)):
        preflight(wanted, options.params, notebooks, to_be_written=to_be_written)
    with only_run(output), logged(output):
        clock = time.perf_counter()
        LOG.info("%s", shlex.join(["./run_all.sh", *sys.argv[1:]]))
        if to_be_written:
            write_demo(to_be_written, _sizes(demo))
            if missing_inputs(wanted):  # in the demo's folder, but of no demo
                preflight(wanted, options.params, notebooks)
        times = {}
        for stage in stages:
            reasons = reasons_to_run(
                stage, state_of(stage, per_stage[stage], output, notebooks), output
            )
            if not reasons and not options.force:
                print(f"{stage}: up to date")
                times[stage] = None
                continue
            if notebooks == NOTEBOOKS and not any(times.values()):  # before the first
                preflight(wanted, options.params)
            why = "; ".join(reasons[:3]) or "asked for by --force"
            print(f"\n=== {stage}: {why}", flush=True)
            LOG.info("%s begins: %s", stage, why)
            try:
                times[stage] = run_stage(stage, per_stage[stage], output, notebooks)
            except KeyboardInterrupt:
                LOG.info("stopped in %s", stage)
                print(f"\nstopped in {stage}; go on with {again}{stage[:2]}", file=sys.stderr)
                return 130
            except Exception as error:
                _report_failure(stage, error, output, again + stage[:2])
                return 1
        if (output / paths.BLEND).exists() and (
            any(times.values()) or not (output / paths.REPORT).exists()
        ):
            _write_report(output)
        _report(output, times, time.perf_counter() - clock)
    return 0


def status(per_stage: dict[str, dict], output: Path, notebooks: Path = NOTEBOOKS) -> int:
    """Print each stage's state: up to date, stale and why, or failed and where; and who is at work there. Exit status 0."""
    for stage, values in per_stage.items():
        failed = output / stage / paths.FAILED
        reasons = reasons_to_run(stage, state_of(stage, values, output, notebooks), output)
        said = (
            f"failed, {failed.read_text(encoding='utf-8').strip()}"
            if failed.exists()
            else "; ".join(reasons) or "up to date"
        )
        print(f"{stage:22} {said}")
    if output.is_dir():
        try:
            with only_run(output):
                print("nobody is at work here")
        except UserError as problem:
            print(problem)
    return 0


def _report_failure(stage: str, error: Exception, output: Path, again: str) -> None:
    print(f"\n{stage} failed.", file=sys.stderr)
    if hasattr(error, "ename"):
        trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
        where = f"cell {error.exec_count}: {error.ename}: {error.evalue}"
        print("\n".join(trace[-15:-1]), f"\n{where}", sep="\n", file=sys.stderr)
    else:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        where = f"{type(error).__name__}: {error}"
    if (
        getattr(error, "errno", None) in FULL
        or os.strerror(errno.ENOSPC) in where
        or shutil.disk_usage(output).free < LITTLE
    ):
        print(
            f"the disk that holds {display_path(output)} is full: make room; what is finished stays",
            file=sys.stderr,
        )
    if "Kernel died" in where:
        print(
            "the kernel was killed; if memory ran out (the log has what was in use), lower batch_size",
            file=sys.stderr,
        )
    executed = output / paths.EXECUTED / f"{stage}.ipynb"
    mark = output / stage / paths.FAILED
    LOG.info("%s failed: %s", stage, where)
    with suppress(OSError):  # on a full disk
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(f"{datetime.now():%Y-%m-%d %H:%M:%S}, {where}\n", encoding="utf-8")
    print(
        f"\nexecuted copy: {display_path(executed)} (and .html)\ngo on with:    {again}",
        file=sys.stderr,
    )


def _write_report(output: Path) -> None:
    from src.runner import report

    try:
        report.write(output)
    except FileNotFoundError as error:  # a stage has not run here yet, as with --only
        print(f"no report: {error}", file=sys.stderr)


def _report(output: Path, times: dict[str, float | None], total: float) -> None:
    import polars as pl

    table = output / paths.TABLE1
    if table.exists():
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
            print(pl.read_csv(table))
    submission = output / f"{paths.SUBMISSION}.csv"
    if submission.exists():
        print(f"\nsubmission: {display_path(submission)} (also .parquet and .npy)")
    if (output / paths.REPORT).exists():
        print(f"report:     {display_path(output / paths.REPORT)}")
    print(
        "\n"
        + "\n".join(
            f"{stage:22} {'up to date' if t is None else f'{t:6.0f} s'}"
            for stage, t in times.items()
        )
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (
        2**20 if sys.platform != "darwin" else 2**30
    )
    if all(t is None for t in times.values()):
        print("everything is up to date")
    else:
        print(f"{'total':22} {total:6.0f} s, largest process {peak:.1f} GB")
        print(f"the notebooks as they ran: {display_path(output / paths.EXECUTED)}")


def main(argv: list[str] | None = None, notebooks: Path = NOTEBOOKS) -> int:
    """Entry point of run_all.sh: 0 done, 1 a stage failed, 2 parameters, inputs or packages are refused, 130 interrupted."""
    options = arguments(argv)
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel is this environment's Python
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # a cluster's eviction ends like Ctrl-C: the kernel is stopped too
    try:
        return run(options, notebooks)
    except UserError as problem:
        print(problem, file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f"the package {error.name} is not installed for {sys.executable}: run without SKIP_INSTALL=1, or install "
            "requirements.txt into it",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"{error}: make room and start again; what is finished stays", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
