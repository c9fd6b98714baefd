"""`./run_all.sh status`: which notebooks are up to date, which are not and why; runs nothing."""

import argparse

from src import paths
from src.errors import UserError
from src.runner.lock import only_run
from src.runner.plan import Pipeline, Plan, add_options, make_plan


def main(argv: list[str], pipeline: Pipeline) -> int:
    """Print the state of each stage, and whether a run is in progress; exit status 0."""
    parser = argparse.ArgumentParser(prog="./run_all.sh status", description=__doc__)
    add_options(parser)
    options = parser.parse_args(argv)

    # nothing is written: not even the output folder, where it is not there yet
    plan = make_plan(pipeline, options.params, options.changes)
    for stage in plan.stages:
        print(f"{stage:22} {stage_status(plan, stage)}")
    if plan.output.is_dir():
        print(_who_runs(plan))
    return 0


def stage_status(plan: Plan, stage: str) -> str:
    """ "up to date", or why the stage must run, or when and where it failed."""
    failed = plan.output / stage / paths.FAILED
    if failed.exists():
        return f"failed, {failed.read_text(encoding='utf-8').strip()}"
    return "; ".join(plan.reasons(stage)) or "up to date"


def _who_runs(plan: Plan) -> str:
    try:
        with only_run(plan.output):
            return "no run in progress"
    except UserError as in_use:
        return str(in_use)
