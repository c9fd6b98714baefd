"""The runner behind run_all.sh: order, skipping what is up to date, one run at a time, logs and clocks.

It imports no model: a run in which everything is up to date takes seconds.
"""

import argparse
import ast
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from src import paths
from src.params import NOTEBOOKS, Problem, input_paths, load_params, missing_inputs, stage_params
from src.paths import ROOT, STAGES, resolve, shown

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
NEEDS = {  # the stages whose artifacts a stage reads; tests/test_notebooks.py holds it against what the notebooks name
    "01_dedup": (),
    "02_train_model_a": ("01_dedup",),
    "03_cuml_knn_model_b": ("01_dedup",),
    "04_ensemble_oof": ("01_dedup", "02_train_model_a", "03_cuml_knn_model_b"),
    "05_submit": ("01_dedup", "02_train_model_a", "03_cuml_knn_model_b", "04_ensemble_oof"),
}
USAGE = """examples:
  ./run_all.sh                                          everything, on the embedded demo
  ./run_all.sh --params params/competition.yaml         another parameters file
  ./run_all.sh --from 03                                go on from notebook 03
  ./run_all.sh --only 03 --force                        run one notebook, up to date or not
  ./run_all.sh --set 02_train_model_a.epochs=3 --set seed=1   change parameters for this run
  ./run_all.sh --status                                 what is up to date, what is not and why; runs nothing

new pictures, with what such a run has trained:
  ./run_all.sh predict --images FOLDER --out FILE.parquet      its own options: ./run_all.sh predict --help

environment: PYTHON=... chooses the interpreter for .venv, SKIP_INSTALL=1 uses the packages that are there"""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="./run_all.sh",
        description="From pictures and prompts to a checked submission: "
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


# --- what is up to date ---


def modules_of(notebook: Path) -> list[str]:
    """Names of the modules of src/ that a notebook imports, and those that they import in turn, sorted."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    found, ahead = (
        set(),
        _imports("\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")),
    )
    while ahead:
        module = ahead.pop()
        found.add(module)
        ahead |= _imports((ROOT / "src" / f"{module}.py").read_text(encoding="utf-8")) - found
    return sorted(found)


def _imports(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "src":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("src."):
            names.add(node.module.removeprefix("src."))
    return names


def state_of(
    stage: str, values: dict[str, object], output: Path, notebooks: Path = NOTEBOOKS
) -> dict[str, dict]:
    """Everything a stage depends on, in parts that can be compared and named: parameters, inputs, code, earlier stages.

    Code is the notebook and the modules that it uses; an earlier stage is the checksums of its artifacts.
    """
    from src.artifacts import fingerprint

    notebook = notebooks / f"{stage}.ipynb"
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = {
        f"notebooks/{stage}.ipynb": fingerprint(
            [(c["cell_type"], "".join(c["source"])) for c in cells]
        )
    }
    code |= {
        f"src/{name}.py": _checksum(ROOT / "src" / f"{name}.py") for name in modules_of(notebook)
    }
    earlier = {
        s: fingerprint(
            {
                name: entry["checksum"]
                for name, entry in (_meta(output, s) or {"files": {}})["files"].items()
            }
        )
        for s in NEEDS[stage]
    }
    inputs = {name: fingerprint(path) for name, path in input_paths(values).items()}
    return {"parameter": values, "input": inputs, "code": code, "earlier stage": earlier}


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def reasons_to_run(stage: str, state: dict[str, dict], output: Path) -> list[str]:
    """Why a stage must run, in words; empty when it is up to date."""
    meta = _meta(output, stage)
    if meta is None:
        return ["it has not run to its end here"]
    gone = [name for name, entry in meta["files"].items() if not _is_whole(output / name, entry)]
    reasons = [f"{len(gone)} of its files are missing or changed, e.g. {gone[0]}"] if gone else []
    for kind, now in json.loads(json.dumps(state)).items():
        before = meta["state"][kind]
        for name in sorted(now.keys() | before.keys()):
            if now.get(name) != before.get(name):
                change = (
                    f" {before.get(name)!r} -> {now.get(name)!r}"
                    if kind == "parameter"
                    else " changed"
                )
                reasons.append(f"{kind} {name}{change}")
    return reasons


def _is_whole(file: Path, entry: dict) -> bool:
    """Whether a file is as its stage left it: by length and time of change, and where the time differs by checksum."""
    if not file.is_file() or file.stat().st_size != entry["bytes"]:
        return False
    return file.stat().st_mtime_ns == entry["changed"] or _checksum(file) == entry["checksum"]


def _meta(output: Path, stage: str) -> dict | None:
    """A stage's meta.json; None where it has not ended, or was run by a runner that kept no checksums."""
    file = output / stage / paths.META
    meta = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    whole = "state" in meta and all(isinstance(entry, dict) for entry in meta["files"].values())
    return meta if whole else None


def _files(output: Path, stage: str, since: float) -> dict[str, dict]:
    """Length, time of change and checksum of a stage's artifacts: those in its folder, and those it wrote into the root."""
    own = [f for f in (output / stage).rglob("*") if f.is_file() and f.name != paths.META]
    root = [f for f in output.glob("[!.]*") if f.is_file() and f.stat().st_mtime >= since]
    return {
        f.relative_to(output).as_posix(): {
            "bytes": f.stat().st_size,
            "changed": f.stat().st_mtime_ns,
            "checksum": _checksum(f),
        }
        for f in sorted([*own, *root])
    }


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
        raise Problem(
            f"output_dir: {shown(output)} cannot be written ({error.strerror}): set another one"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise Problem(
                f"{shown(output)} is in use by {lock.read().strip() or 'another run'}: wait for it, stop it, or use "
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
        raise Problem(f"{stage} ended without writing {shown(meta_file)}")
    meta = json.loads(meta_file.read_text(encoding="utf-8"))
    save_json(
        meta_file,
        {
            **meta,
            "seconds": round(seconds, 1),
            "state": state,
            "files": _files(output, stage, began),
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


def demo_to_write(demo: dict | None) -> Path | None:
    """The demo's folder, where the parameters ask for one that is not there, whole and of these sizes."""
    if demo is None:
        return None
    from src import demo as module

    folder = resolve(demo["folder"])
    if not module.is_current(folder, **_sizes(demo)):
        return folder
    print(f"demo       up to date ({shown(folder)})")
    return None


def _sizes(demo: dict) -> dict[str, int]:
    return {name: value for name, value in demo.items() if name != "folder"}


def write_demo(folder: Path, sizes: dict[str, int]) -> None:
    """Write the demo, and say how long it took."""
    from src import demo as module

    clock = time.perf_counter()
    print(f"demo       writing {shown(folder)}", flush=True)
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
            [sys.executable, "-m", "src.preflight"],
            input=json.dumps(per_stage),
            text=True,
            capture_output=True,
            cwd=ROOT,
        )
        failed = f"the checks before the run failed themselves:\n{done.stderr[-3000:]}"
        wrong += not_run(per_stage)
        wrong += [failed] if done.returncode else json.loads(done.stdout.splitlines()[-1])
    if wrong:
        raise Problem(
            "\n  ".join([f"{file}: nothing has run, since this would stop it", *wrong]) + advice
        )
    print(f"checked    nothing is in the way: {time.perf_counter() - clock:.0f} s")


def not_run(per_stage: dict[str, dict]) -> list[str]:
    """A line for every stage that one of these needs, and that is neither among them nor has run to its end."""
    output = resolve(next(iter(per_stage.values()))["output_dir"])
    needed = {
        earlier for stage in per_stage for earlier in NEEDS[stage] if earlier not in per_stage
    }
    lacking = [stage for stage in sorted(needed) if _meta(output, stage) is None]
    return [
        f"{stage} has not run to its end in {shown(output)}: use --from {lacking[0][:2]}"
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
            raise Problem(f"{text!r} is no notebook; there are {', '.join(STAGES)}")
        return found[0]

    if first and only:
        raise Problem("--from and --only exclude each other")
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
        except Problem as problem:
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
            f"the disk that holds {shown(output)} is full: make room; what is finished stays",
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
        f"\nexecuted copy: {shown(executed)} (and .html)\ngo on with:    {again}", file=sys.stderr
    )


def _write_report(output: Path) -> None:
    from src import report

    try:
        report.write(output)
    except FileNotFoundError as error:  # a stage has not run here yet, as with --only
        print(f"no report: {error}", file=sys.stderr)


def _report(output: Path, times: dict[str, float | None], total: float) -> None:
    import polars as pl

    table = output / paths.TABLE1
    if table.exists():
        print(f"\nTable 1 ({shown(table)})")
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
        print(f"\nsubmission: {shown(submission)} (also .parquet and .npy)")
    if (output / paths.REPORT).exists():
        print(f"report:     {shown(output / paths.REPORT)}")
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
        print(f"the notebooks as they ran: {shown(output / paths.EXECUTED)}")


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
    except Problem as problem:
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
