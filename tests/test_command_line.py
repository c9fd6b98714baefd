"""./run_all.sh: its commands, its options, the parameters it refuses, and how it ends."""

import errno
import os
import shutil
import subprocess
import sys

import pytest

from src import errors
from src.paths import ROOT, STAGES
from src.runner import cli, params, plan
from src.runner.plan import Pipeline
from tests.helpers.toy_pipeline import run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("01_dedupe.n=2", "section '01_dedupe' is unknown; did you mean '01_dedup'?"),
        (
            "common.outputdir=x",
            "common.outputdir is declared by no notebook; did you mean 'output_dir'?",
        ),
        (
            "02_train_model_a.rat=1",
            "02_train_model_a.rat is not declared by notebooks/02_train_model_a.ipynb; "
            "did you mean 'rate'?",
        ),
        ("01_dedup.n=2.5", "01_dedup.n must be int, got 2.5"),
        ("n=true", "01_dedup.n must be int, got True"),
        ("05_submit.truth=3", "05_submit.truth must be str or NoneType, got 3"),
        ("demo.colour=3", "demo.colour is unknown"),
        ("demo.train_scenes=big", "demo.train_scenes must be int, got 'big'"),
        ("train=/no/such/folder", "train: /no/such/folder does not exist"),
        ("seed", "--set seed: wanted KEY=VALUE"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_runs(toy, capsys, change, message):
    assert run(toy, "--set", change) == 2
    assert message in capsys.readouterr().err
    assert not (toy / "out").exists()


def test_a_demo_larger_than_its_grammar_is_refused():
    """It would look for scenes that differ for ever."""
    given = params.load_params("params/demo.yaml", ["demo.train_scenes=18000"])
    message = "need a pool of 19,723 scenes; the grammar has 16,000 that differ enough"
    with pytest.raises(errors.UserError, match=message):
        params.stage_params(given, "params/demo.yaml")


def test_all_wrong_parameters_are_listed_at_once(toy, capsys):
    assert run(toy, "--set", "01_dedup.n=x", "--set", "05_submit.rate=y") == 2
    error = capsys.readouterr().err
    assert "01_dedup.n" in error and "05_submit.rate" in error and str(toy / "params.yaml") in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("common:\n  n: 1\n  n: 2\n", "line 2: keys given twice: ['n']"),
        ("common: 3\n", "sections must hold `name: value` lines; these do not: ['common']"),
        ("- common\n", "must hold sections"),
        ("common: [\n", "params.yaml"),
    ],
)
def test_wrong_yaml_is_refused(toy, capsys, text, message):
    (toy / "params.yaml").write_text(text)
    assert run(toy) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--params", "params/none.yaml"), "params/none.yaml does not exist"),
        (("--from", "07"), "'07' is not a notebook"),
        (("--from", "02", "--only", "03"), "exclude each other"),
        (("--set", "demo=3"), "demo"),
    ],
)
def test_wrong_command_lines_are_refused(toy, capsys, arguments, message):
    assert run(toy, *arguments) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_command_is_refused_with_the_nearest_one(capsys):
    assert cli.main(["stauts"]) == 2
    assert "'stauts' is not one of the commands status, predict" in (
        said := capsys.readouterr().err
    )
    assert "did you mean 'status'?" in said


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_a_module_with_help_of_its_own(name, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    assert f"./run_all.sh {name}" in capsys.readouterr().out


def test_values_given_to_the_notebooks(toy):
    file = str(toy / "params.yaml")
    given = params.load_params(
        file, ["n=7", "common.rate=2", "03_cuml_knn_model_b.n=8", "truth=null", "train=[a, b]"]
    )
    values = params.stage_params(given, file, toy / "notebooks")
    assert [values[stage]["n"] for stage in STAGES] == [7, 7, 8, 7, 7]
    assert (
        values["01_dedup"]["rate"] == 2
        and values["01_dedup"]["train"] == ["a", "b"]
        and values["01_dedup"]["truth"] is None
    )


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (["n=7"], [7, 7, 7, 7, 7]),
        (["n=7", "02_train_model_a.n=8"], [7, 8, 7, 7, 7]),
        (["common.n=7"], [7, 3, 7, 7, 7]),
    ],
)
def test_the_command_line_wins_over_every_section_of_the_file(toy, changes, wanted):
    (toy / "more.yaml").write_text("common: {n: 1}\n02_train_model_a: {n: 3}\n", encoding="utf-8")
    values = params.stage_params(
        params.load_params(str(toy / "more.yaml"), changes), "more.yaml", toy / "notebooks"
    )
    assert [values[stage]["n"] for stage in STAGES] == wanted


@pytest.mark.parametrize(
    ("first", "only", "stages"),
    [
        (None, None, STAGES),
        ("03", None, STAGES[2:]),
        (None, "3", STAGES[2:3]),
        (None, "05_submit", STAGES[4:]),
    ],
)
def test_chosen_stages(first, only, stages):
    assert plan.chosen_stages(first, only) == list(stages)


def test_missing_package_is_named_and_how_to_get_it(toy):
    bare = {
        "PATH": os.environ["PATH"],
        "PYTHON": getattr(sys, "_base_executable", sys.executable),
        "SKIP_INSTALL": "1",
    }
    arguments = (
        "status",
        "--set",
        f"output_dir={toy / 'out'}",
    )  # of the demo: asks for the packages, runs nothing
    done = subprocess.run(
        [ROOT / "run_all.sh", *arguments], env=bare, capture_output=True, text=True, timeout=60
    )
    if done.returncode == 0:
        pytest.skip("this interpreter has the packages without an environment")
    assert (
        done.returncode == 2
        and "is not installed for" in done.stderr
        and "SKIP_INSTALL" in done.stderr
    ), done.stderr


def test_help_needs_no_package_and_no_environment():
    bare = {"PATH": os.environ["PATH"], "PYTHON": getattr(sys, "_base_executable", sys.executable)}
    done = subprocess.run(
        [ROOT / "run_all.sh", "--help"], env=bare, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert all(
        word in done.stdout
        for word in ("--params", "--from", "--only", "--force", "--set", *cli.COMMANDS)
    )


def test_offline_reaches_the_libraries_by_their_own_variables(toy, monkeypatch):
    names = ("OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    for name in names:
        monkeypatch.setenv(name, "0")
    assert run(toy, "--set", "offline=true", command="status") == 0
    assert [os.environ[name] for name in names] == ["1", "1", "1"]


def test_checks_that_fail_themselves_are_said(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(errors.UserError, match="the checks before the run failed themselves"):
        plan.check(plan.make_plan(Pipeline(), "params/smoke.yaml", []))


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (
            ModuleNotFoundError("no polars", name="polars"),
            2,
            "the package polars is not installed for",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "make room and start again"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_what_ends_a_run_outside_the_notebooks(toy, capsys, monkeypatch, error, status, said):
    def ended(file, changes):
        raise error

    monkeypatch.setattr(params, "load_params", ended)
    assert run(toy) == status
    assert said in capsys.readouterr().err


def test_an_error_of_another_kind_keeps_its_traceback(toy, monkeypatch):
    def denied(file, changes):
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(params, "load_params", denied)
    with pytest.raises(PermissionError):
        run(toy)
