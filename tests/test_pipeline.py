"""The runner on toy notebooks: what it runs, what it skips and why, how it reports a failure."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from src import paths
from src.paths import ROOT, STAGES
from src.runner import lock, staleness
from tests.helpers.toy_pipeline import BODY, run, write_notebook


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
    assert capfd.readouterr().out.count("has not finished here") == 5 and not (toy / "out").exists()
    assert run(toy, "--set", "03_cuml_knn_model_b.n=-1") == 1
    capfd.readouterr()
    assert run(toy, command="status") == 0
    lines = dict(line.split(maxsplit=1) for line in capfd.readouterr().out.splitlines())
    assert (
        lines["01_dedup"] == "up to date"
        and "ValueError: n is negative: -1" in lines["03_cuml_knn_model_b"]
    )
    assert "has not finished here" in lines["05_submit"]


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
        "from tests.helpers import toy_pipeline; "
        f"sys.exit(toy_pipeline.run(Path({str(toy)!r})))"
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
        "01_dedup begins: it has not finished here" in log
        and "03_cuml_knn_model_b failed: cell 3: ValueError" in log
    )


def test_stage_without_meta_is_an_error(toy, capfd):
    assert run(toy, "--set", "n=99") == 1
    assert "01_dedup ended without writing" in capfd.readouterr().err


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
