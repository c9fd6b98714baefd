"""The runner on five toy notebooks: what it refuses, what it skips and why, and how it speaks of a
failure.
"""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from src import errors, paths
from src.paths import ROOT, STAGES
from src.runner import cli, executed_copy, lock, params, plan, staleness
from src.runner.plan import Pipeline

BODY = """import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from src import artifacts
out = Path(output_dir)
if {number} == 3 and n < 0:
    raise ValueError("n is negative: " + str(n))
(out / "{stage}").mkdir(parents=True, exist_ok=True)
(out / "{stage}" / "result.txt").write_text(str(n))
if {number} == 5:
    (out / "submission.csv").write_text("imgId_eId,val")
if {number} == 4:
    (out / "table1.csv").write_text("model,score\\nEnsemble,0.5")
if n != 99:
    artifacts.write_meta(out / "{stage}", rows=n)"""
BARS = """
import time
for share in (10, 90, 100):
    print(share, '%', end='\\r' if share < 100 else '\\n', flush=True)
    time.sleep(0.2)  # so that each comes as an output of its own
from IPython.display import display
widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}}
display(widget | {"text/plain": "a bar " + "at 0 %"}, raw=True)"""
PARAMETERS = """output_dir = "output"  # a folder
n = 1  # a count
rate: float = 0.5  # a share
train: str | list = "train"  # a source
truth: str | None = None  # a file"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """Five notebooks, a training folder and params.yaml that knows both."""
    for folder in ("notebooks", "train"):
        (tmp_path / folder).mkdir()
    (tmp_path / "train" / "ant.txt").write_text("an ant")
    for number, stage in enumerate(STAGES, start=1):
        write_notebook(tmp_path, stage, BODY.format(root=str(ROOT), number=number, stage=stage))
    (tmp_path / "params.yaml").write_text(
        f"common:\n  output_dir: {tmp_path / 'out'}\n  train: {tmp_path / 'train'}\n"
    )
    return tmp_path


def write_notebook(toy: Path, stage: str, body: str) -> None:
    cells = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(body),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata=kernel), toy / "notebooks" / f"{stage}.ipynb"
    )


def nothing_wrong(per_stage: dict[str, dict]) -> list[str]:
    """The toy notebooks have none of the parameters that the real check knows."""
    return []


def run(toy: Path, *arguments: str, command: str | None = None) -> int:
    words = [command] if command else []
    words += ["--params", str(toy / "params.yaml"), *arguments]
    return cli.main(words, Pipeline(toy / "notebooks", nothing_wrong))


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


def started(output: str) -> dict[str, str]:
    """Stage -> the reason that the runner printed when it started it."""
    return {
        line[4:].split(":")[0]: line.split(": ", 1)[1]
        for line in output.splitlines()
        if line.startswith("=== ")
    }


def test_what_is_up_to_date_is_skipped_and_each_reason_to_run_is_said(toy, capfd):
    def again(*arguments: str) -> dict[str, str]:
        assert run(toy, *arguments) == 0
        return started(capfd.readouterr().out)

    assert list(again()) == list(STAGES)
    assert run(toy) == 0
    output = capfd.readouterr().out
    assert (
        "everything is up to date" in output and "Ensemble" in output and "submission.csv" in output
    )
    assert not started(output)
    for stage in STAGES:
        assert (toy / "out" / "executed" / f"{stage}.html").exists()

    assert again("--set", "05_submit.n=2") == {"05_submit": "parameter n 1 -> 2"}
    (toy / "out" / "05_submit" / "result.txt").unlink()
    assert "files are missing" in again("--set", "05_submit.n=2")["05_submit"]
    (toy / "out" / "submission.csv").unlink()
    assert "submission.csv" in again("--set", "05_submit.n=2")["05_submit"]
    write_notebook(
        toy, "05_submit", BODY.format(root=str(ROOT), number=5, stage="05_submit") + "\n# again"
    )
    assert again("--only", "05") == {
        "05_submit": "parameter n 2 -> 1; code notebooks/05_submit.ipynb changed"
    }
    assert set(again("--only", "04", "--force")) == {"04_ensemble_oof"}
    assert again() == {}, "04 wrote the same again, so nothing depends on a change"
    changed = again("--set", "03_cuml_knn_model_b.n=2")
    assert (
        changed["03_cuml_knn_model_b"] == "parameter n 1 -> 2" and "02_train_model_a" not in changed
    )
    assert changed["04_ensemble_oof"] == "earlier stage 03_cuml_knn_model_b changed"
    (toy / "train" / "bee.txt").write_text("a bee")
    assert again("--from", "05") == {"05_submit": "input train changed"}


def test_edited_artifact_of_the_same_length_is_noticed_and_a_copied_output_is_not_stale(toy, capfd):
    assert run(toy) == 0
    result = toy / "out" / "02_train_model_a" / "result.txt"
    os.utime(result, (1, 1))
    assert run(toy) == 0 and "everything is up to date" in capfd.readouterr().out
    result.write_text("7")
    assert run(toy) == 0
    assert started(capfd.readouterr().out) == {
        "02_train_model_a": "1 of its files are missing or changed, e.g. "
        "02_train_model_a/result.txt"
    }


def test_second_run_on_the_same_output_is_refused_with_who_holds_it(toy, capfd):
    with lock.only_run(toy / "out"):
        assert run(toy) == 2
        assert f"in use by process {os.getpid()} on" in capfd.readouterr().err
        assert run(toy, command="status") == 0
        assert "in use by process" in capfd.readouterr().out
    assert run(toy, "--only", "01") == 0


def test_status_says_what_is_stale_and_what_failed_and_runs_nothing(toy, capfd):
    assert run(toy, command="status") == 0
    assert (
        capfd.readouterr().out.count("has not run to its end here") == 5
        and not (toy / "out").exists()
    )
    assert run(toy, "--set", "03_cuml_knn_model_b.n=-1") == 1
    capfd.readouterr()
    assert run(toy, command="status") == 0
    lines = dict(line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines())
    assert (
        lines["01_dedup"] == "up to date"
        and "ValueError: n is negative: -1" in lines["03_cuml_knn_model_b"]
    )
    assert "has not run" in lines["05_submit"]


def test_only_modules_that_a_notebook_uses_make_it_stale():
    used = {}
    for stage in STAGES:
        files = staleness.source_files(ROOT / "notebooks" / f"{stage}.ipynb")
        used[stage] = {file.relative_to(ROOT / "src").as_posix() for file in files}

    assert "submit/submission.py" in used["05_submit"]
    assert "submit/submission.py" not in used["02_train_model_a"]
    assert "metrics.py" in used["03_cuml_knn_model_b"], "imported by way of another module"
    assert all({"paths.py", "artifacts.py"} <= files for files in used.values())


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
def test_stopped_run_says_how_to_go_on_and_leaves_no_kernel(toy, signal_name):
    write_notebook(
        toy,
        "02_train_model_a",
        "import os, time\nprint('kernel', os.getpid(), flush=True)\ntime.sleep(60)",
    )
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; "
        "from tests import test_pipeline; "
        f"sys.exit(test_pipeline.run(Path({str(toy)!r})))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    kernel = next(int(line.split()[1]) for line in process.stdout if line.startswith("kernel"))
    process.send_signal(getattr(signal, signal_name))
    _, error = process.communicate(timeout=60)
    assert (
        process.returncode == 130
        and "stopped in 02_train_model_a; go on with" in error
        and error.rstrip().endswith("--from 02")
    )
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)


def test_failed_stage_says_what_where_and_how_to_go_on(toy, capfd):
    assert run(toy, "--only", "01") == run(toy, "--only", "03") == 0
    assert run(toy, "--set", "03_cuml_knn_model_b.n=-1") == 1
    error = capfd.readouterr().err
    assert "03_cuml_knn_model_b failed" in error and "ValueError: n is negative: -1" in error
    assert "executed/03_cuml_knn_model_b.ipynb" in error
    assert (
        f"./run_all.sh --params {toy / 'params.yaml'} --set 03_cuml_knn_model_b.n=-1 --from 03"
        in error
    )
    assert not (toy / "out" / "03_cuml_knn_model_b" / "meta.json").exists()
    assert not (toy / "out" / "05_submit").exists()


def test_log_has_a_line_for_each_step_with_the_memory_in_use(toy):
    assert run(toy, "--set", "03_cuml_knn_model_b.n=-1") == 1
    log = next((toy / "out" / "logs").glob("*.log")).read_text()
    assert re.search(r"01_dedup cell 2: ok in \d+\.\d s, \d\.\d\d GB in use", log), log
    assert (
        "01_dedup begins: it has not run" in log
        and "03_cuml_knn_model_b failed: cell 3: ValueError" in log
    )


def test_stage_without_meta_is_an_error(toy, capfd):
    assert run(toy, "--set", "n=99") == 1
    assert "01_dedup ended without writing" in capfd.readouterr().err


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


def test_meta_keeps_the_notebook_s_facts_and_the_runner_s(toy):
    assert run(toy, "--only", "01") == 0
    meta = json.loads((toy / "out" / "01_dedup" / "meta.json").read_text())
    assert (
        meta["rows"] == 1
        and meta["state"]["parameter"]["n"] == 1
        and list(meta["files"]) == ["01_dedup/result.txt"]
    )


ENDS = [
    (
        "import errno, os; raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))",
        "is full: make room; what is finished stays",
    ),
    ("import os; os.kill(os.getpid(), 9)", "the kernel was killed; if memory ran out"),
]


@pytest.mark.parametrize(("body", "advice"), ENDS, ids=["full disk", "killed kernel"])
def test_what_a_full_disk_and_a_killed_kernel_need_is_said(toy, capfd, body, advice):
    write_notebook(toy, "01_dedup", body)
    assert run(toy, "--only", "01") == 1
    assert advice in capfd.readouterr().err


def test_a_report_that_lacks_a_stage_is_no_failure(toy, capfd):
    (toy / "out" / paths.BLEND).parent.mkdir(parents=True)
    (toy / "out" / paths.BLEND).write_text("{}")
    assert run(toy, "--only", "01") == 0
    assert "no report: " in capfd.readouterr().err


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
