"""output/runs.csv: a line for each finished run, the user's answers kept, and the plot of them."""

import numpy as np
import pytest

from src import artifacts, paths
from src.runner import cli, runs, summary
from src.runner.plan import Pipeline, make_plan
from tests.helpers.finished_output import write_finished_output


@pytest.fixture
def plan(tmp_path):
    """A plan of the real notebooks whose stages have all run."""
    write_finished_output(tmp_path / "out")
    (tmp_path / "params.yaml").write_text(
        f"common:\n  output_dir: {tmp_path / 'out'}\n  seed: 7\n02_train_model_a:\n  epochs: 3\n"
    )
    return make_plan(Pipeline(), str(tmp_path / "params.yaml"), ["03_cuml_knn_model_b.seed=8"])


def test_a_line_has_the_scores_and_what_differs_from_the_defaults(plan):
    runs.record(plan)
    line = runs.load(plan.output / paths.RUNS).row(0, named=True)
    assert list(line) == list(runs.COLUMNS)
    assert (line["out_of_fold"], line["low"], line["high"]) == ("0.70000", "0.69000", "0.71000")
    assert (line["test"], line["seconds"], line["leaderboard"]) == ("0.70500", "450", None)
    changed = line["changed"].split("; ")
    assert "epochs=3" in changed
    assert "03_cuml_knn_model_b.seed=8" in changed and "01_dedup.seed=7" in changed
    assert not any("output_dir" in change for change in changed)


def test_a_parameter_that_is_the_same_everywhere_stands_once(plan):
    again = make_plan(Pipeline(), plan.file, [])
    changed = runs.changes(again)
    assert changed.count("seed=7") == 1 and sorted(changed) == [
        "epochs=3",
        "seed=7",
    ]


def test_nothing_differs_where_the_notebooks_defaults_are_used(tmp_path):
    (tmp_path / "params.yaml").write_text("")
    assert runs.changes(make_plan(Pipeline(), str(tmp_path / "params.yaml"), [])) == []


def test_the_user_s_answers_and_columns_are_kept(plan):
    runs.record(plan)
    file = plan.output / paths.RUNS
    header, line = file.read_text(encoding="utf-8").splitlines()
    edited = f'{header},notes\n{line}0.61234,"my best, so far"\n'
    file.write_text(edited, encoding="utf-8")

    runs.record(plan)
    first, second = runs.load(file).rows(named=True)
    assert first["leaderboard"] == "0.61234" and first["notes"] == "my best, so far"
    assert second["leaderboard"] is None and second["notes"] is None


@pytest.mark.parametrize("text", ["finished;changed\n1;2\n", "", "\x00\x01"])
def test_a_file_that_was_broken_is_left_alone(plan, capsys, text):
    file = plan.output / paths.RUNS
    file.write_text(text, encoding="utf-8")
    summary.record_run(plan, {"05_submit": 3.0})
    assert "this run is not recorded: " in capsys.readouterr().err
    assert file.read_text(encoding="utf-8") == text


def test_only_a_run_that_did_something_and_reached_its_end_is_recorded(plan):
    for seconds in ({"05_submit": None}, {"04_ensemble_oof": 3.0}, {}):
        summary.record_run(plan, seconds)
        assert not (plan.output / paths.RUNS).exists()
    summary.record_run(plan, {"04_ensemble_oof": 3.0, "05_submit": None})
    assert len(runs.load(plan.output / paths.RUNS)) == 1


def test_the_command_shows_the_runs_and_plots_the_answers(plan, capsys):
    command = ["runs", "--output", str(plan.output)]
    runs.record(plan)
    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert "0.70000" in shown and "no leaderboard answers yet" in shown
    assert not (plan.output / paths.RUNS_PLOT).exists()

    file = plan.output / paths.RUNS
    table = runs.load(file)
    answered = table.with_columns(leaderboard=np.array([" 0.61 "]))
    artifacts.save_table(file, answered)
    assert cli.main(command) == 0
    assert (plan.output / paths.RUNS_PLOT).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("answer", ["0,61", "rank 12", "nan"])
def test_an_answer_that_is_no_number_is_named(plan, capsys, answer):
    runs.record(plan)
    file = plan.output / paths.RUNS
    artifacts.save_table(file, runs.load(file).with_columns(leaderboard=np.array([answer])))
    assert cli.main(["runs", "--output", str(plan.output)]) == 2
    assert f"line 2: leaderboard is {answer!r}, not a number" in capsys.readouterr().err


def test_without_a_finished_run_it_says_so(tmp_path, capsys):
    assert cli.main(["runs", "--output", str(tmp_path)]) == 2
    assert "no run has finished there yet" in capsys.readouterr().err
