"""What one run will do, worked out before it starts: parameters, stages, demo data, problems."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from src.errors import UserError
from src.paths import ROOT, STAGES, display_path, resolve
from src.runner import params
from src.runner.staleness import NEEDS, read_meta, reasons_to_run, state_of

ADVICE = (
    "set inputs in the file or with --set, or run the embedded demo: "
    "./run_all.sh --params params/demo.yaml"
)


def preflight_problems(per_stage: dict[str, dict]) -> list[str]:
    """What `src.runner.preflight` finds wrong with the stages, a line each.

    It loads the models, so it is a separate process: the runner stays small, and no GPU memory
    remains in use.
    """
    # the parameters go in as JSON, the lines come out as JSON, on the last line that is printed
    done = subprocess.run(
        [sys.executable, "-m", "src.runner.preflight"],
        input=json.dumps(per_stage),
        text=True,
        check=False,
        capture_output=True,
        cwd=ROOT,
    )
    if done.returncode:
        return [f"the checks before the run failed themselves:\n{done.stderr[-3000:]}"]
    return json.loads(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class Pipeline:
    """The notebooks that are run, and the check of their parameters that precedes them."""

    notebooks: Path = params.NOTEBOOKS
    check: Callable[[dict[str, dict]], list[str]] = preflight_problems


@dataclass(frozen=True)
class Plan:
    """One run as the command line and the parameters file ask for it."""

    pipeline: Pipeline
    file: str  # the parameters file, as it was given
    changes: list[str]  # of --set
    per_stage: dict[str, dict]  # the parameters of every stage
    stages: list[str]  # those of this run
    output: Path
    demo: dict | None  # the embedded demo's folder and sizes

    @property
    def wanted(self) -> dict[str, dict]:
        """The parameters of this run's stages."""
        return {stage: self.per_stage[stage] for stage in self.stages}

    def state(self, stage: str) -> dict[str, dict]:
        """Everything that a stage depends on, as `staleness.state_of` gives it."""
        return state_of(stage, self.per_stage[stage], self.output, self.pipeline.notebooks)

    def reasons(self, stage: str) -> list[str]:
        """Why a stage must run; empty when it is up to date."""
        return reasons_to_run(stage, self.state(stage), self.output)

    def resume_command(self, stage: str) -> str:
        """What to type to go on from a stage."""
        changes = [part for change in self.changes for part in ("--set", change)]
        command = shlex.join(["./run_all.sh", "--params", self.file, *changes])
        return f"{command} --from {stage[:2]}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which parameters: `--params` and `--set`."""
    parser.add_argument(
        "--params",
        default="params/demo.yaml",
        metavar="FILE",
        help="parameters (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter for this run: seed=1, 02_train_model_a.epochs=3, demo.train_scenes=500",
    )


def make_plan(
    pipeline: Pipeline,
    file: str,
    changes: list[str],
    *,
    first: str | None = None,
    only: str | None = None,
) -> Plan:
    """Read and check the parameters. Raises UserError listing all that is wrong with them."""
    given = params.load_params(file, changes)
    per_stage = params.stage_params(given, file, pipeline.notebooks)

    # libraries read these when they are imported, here and in the notebooks
    if given.get("common", {}).get("offline"):
        os.environ |= {"OFFLINE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

    return Plan(
        pipeline=pipeline,
        file=file,
        changes=changes,
        per_stage=per_stage,
        stages=chosen_stages(first, only),
        output=resolve(per_stage[STAGES[0]]["output_dir"]),
        demo=given.get("demo"),
    )


def chosen_stages(first: str | None, only: str | None) -> list[str]:
    """The stages that `--from` and `--only` leave, by number or name."""
    if first and only:
        raise UserError("--from and --only exclude each other")
    if only:
        return [STAGES[_stage_index(only)]]
    if first:
        return list(STAGES[_stage_index(first) :])
    return list(STAGES)


def _stage_index(text: str) -> int:
    for index, stage in enumerate(STAGES):
        number = stage.split("_")[0]
        if text == stage or text.zfill(2) == number:
            return index
    raise UserError(f"{text!r} is not a notebook; there are {', '.join(STAGES)}")


# --- what would stop it ---


def obstacles(plan: Plan, *, to_be_written: Path | None = None) -> list[str]:
    """What is known at once and would stop the run: inputs that do not exist, and earlier stages
    that have not run.
    """
    missing = params.missing_inputs(plan.wanted, to_be_written=to_be_written)
    return [*missing, *stages_to_run_first(plan.stages, plan.output)]


def stages_to_run_first(stages: list[str], output: Path) -> list[str]:
    """A line for every stage that one of `stages` needs, and that is neither one of them nor has
    run to its end.
    """
    # an earlier stage that is part of this run will have run in time
    needed = {earlier for stage in stages for earlier in NEEDS[stage]}
    outside = sorted(needed - set(stages))
    lacking = [stage for stage in outside if read_meta(output, stage) is None]
    if not lacking:
        return []

    begin = lacking[0][:2]
    folder = display_path(output)
    return [f"{stage} has not finished in {folder}: use --from {begin}" for stage in lacking]


def check(plan: Plan, *, to_be_written: Path | None = None) -> None:
    """Raise UserError listing all that would stop the run, before its first stage begins.

    Where the demo's folder is still `to_be_written`, no model in it is loaded.
    """
    # all problems together, so that they can be mended together
    start = time.perf_counter()
    what = "settings and inputs" if to_be_written else "sources, weights, settings and disk space"
    print(f"checking   {what}", flush=True)
    problems = obstacles(plan, to_be_written=to_be_written) + plan.pipeline.check(plan.wanted)

    if problems:
        lines = [f"{plan.file}: nothing was run, because of these problems", *problems]
        missing = params.missing_inputs(plan.wanted, to_be_written=to_be_written)
        advice = f"\n{ADVICE}" if missing else ""
        raise UserError("\n  ".join(lines) + advice)
    print(f"checked    no problem found: {time.perf_counter() - start:.0f} s")


# --- the embedded demo ---


def demo_to_write(demo: dict | None) -> Path | None:
    """The demo's folder, where the parameters ask for one that is not there, complete and of these
    sizes.
    """
    if demo is None:
        return None
    from src import demo as module

    folder = resolve(demo["folder"])
    if not module.is_current(folder, **demo_sizes(demo)):
        return folder
    print(f"demo       up to date ({display_path(folder)})")
    return None


def demo_sizes(demo: dict) -> dict[str, int]:
    """The demo's parameters without its folder."""
    return {name: value for name, value in demo.items() if name != "folder"}


def write_demo(folder: Path, sizes: dict[str, int]) -> None:
    """Write the demo, and print how long it took."""
    from src import demo as module

    start = time.perf_counter()
    print(f"demo       writing {display_path(folder)}", flush=True)
    module.write(folder, **sizes)
    print(f"demo       {time.perf_counter() - start:.0f} s")
