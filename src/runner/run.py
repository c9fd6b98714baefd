"""A run of the notebooks: plan, check, then stage by stage, skipping what is up to date."""

import argparse
import os
import shlex
import signal
import sys
import time

from src.errors import LOOK_UP, UserError
from src.runner import summary
from src.runner.execute import LOG, logged, run_stage
from src.runner.lock import only_run
from src.runner.plan import (
    Pipeline,
    Plan,
    add_options,
    check,
    demo_sizes,
    demo_to_write,
    make_plan,
    obstacles,
    write_demo,
)

USAGE = """other commands, each with its own --help:
{commands}

examples:
  ./run_all.sh                                          everything, on the embedded demo
  ./run_all.sh --params params/competition.yaml         another parameters file
  ./run_all.sh --from 03                                go on from notebook 03
  ./run_all.sh --only 03 --force                        run one notebook, up to date or not
  ./run_all.sh --set 02_train_model_a.epochs=3 --set seed=1   change parameters for this run
  ./run_all.sh predict --images FOLDER --out FILE.parquet     new images, with the trained models

environment: PYTHON=... chooses the interpreter for .venv;
SKIP_INSTALL=1 uses the packages that are installed"""


def arguments(argv: list[str], commands: str) -> argparse.Namespace:
    """The options of a run; `commands` is the help on the other commands."""
    parser = argparse.ArgumentParser(
        prog="./run_all.sh",
        usage="./run_all.sh [COMMAND] [options]",
        description="From images and prompts to a checked submission: "
        "runs the five notebooks in order and skips what is up to date.",
        epilog=USAGE.format(commands=commands),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser)
    parser.add_argument(
        "--from",
        dest="first",
        metavar="03",
        help="start at this notebook; the results of earlier ones are used as they are",
    )
    parser.add_argument("--only", metavar="03", help="run this notebook alone")
    parser.add_argument("--force", action="store_true", help="run even what is up to date")
    return parser.parse_args(argv)


def main(argv: list[str], pipeline: Pipeline, *, commands: str = "") -> int:
    """Run the notebooks. Exit status: 0 done, 1 a stage failed, 130 interrupted; raises UserError
    when refused.
    """
    options = arguments(argv, commands)
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel is this environment's Python
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")

    # a cluster's eviction ends like Ctrl-C, so that the kernel is stopped too
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    try:
        plan = make_plan(
            pipeline, options.params, options.changes, first=options.first, only=options.only
        )
        return run(plan, force=options.force)
    except UserError as refusal:
        raise UserError(f"{refusal}\n{LOOK_UP}") from None


def run(plan: Plan, *, force: bool = False) -> int:
    """Check the plan, write the demo where it asks for one, run the stages that are stale; the exit
    status.
    """
    demo_folder = demo_to_write(plan.demo)

    # what can be refused at once is refused before anything is written
    if demo_folder or obstacles(plan):
        check(plan, to_be_written=demo_folder)

    with only_run(plan.output), logged(plan.output):
        LOG.info("%s", shlex.join(["./run_all.sh", *sys.argv[1:]]))
        if demo_folder and plan.demo:
            write_demo(demo_folder, demo_sizes(plan.demo))

        # what takes seconds to check is only checked where something will run
        if force or any(plan.reasons(stage) for stage in plan.stages):
            check(plan)
        return _run_stages(plan, force)


def _run_stages(plan: Plan, force: bool) -> int:
    """Run each stage that is stale, and print the summary; the exit status."""
    start = time.perf_counter()
    seconds: dict[str, float | None] = {}

    for stage in plan.stages:
        # asked anew for each stage: the one before may have changed its input
        reasons = plan.reasons(stage)
        if not reasons and not force:
            print(f"{stage}: up to date")
            seconds[stage] = None
            continue

        why = "; ".join(reasons[:3]) or "--force"
        print(f"\n=== {stage}: {why}", flush=True)
        LOG.info("%s begins: %s", stage, why)
        try:
            seconds[stage] = run_stage(plan, stage)
        except KeyboardInterrupt:
            summary.print_interrupt(plan, stage)
            return 130
        except Exception as error:
            summary.print_failure(plan, stage, error)
            return 1

    summary.write_report(plan.output, changed=any(seconds.values()))
    summary.record_run(plan, seconds)
    summary.print_summary(plan.output, seconds, time.perf_counter() - start)
    return 0
