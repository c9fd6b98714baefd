"""`output/runs.csv`: a line for each finished run, with a column for the leaderboard's answer.

The user fills in `leaderboard`; a line that is there is never changed.
"""

import argparse
import json
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from src import artifacts, paths, plots
from src.data.user_tables import read_user_table
from src.ensemble import table1
from src.errors import UserError
from src.paths import STAGES, display_path, resolve
from src.runner.params import declared
from src.runner.plan import Plan

COLUMNS = {
    "finished": "local time",
    "changed": "what differs from the notebooks' defaults",
    "out_of_fold": "the ensemble's cross-fitted score",
    "low": "of its 95 % interval",
    "high": "of its 95 % interval",
    "test": "score on the test images, where their truth is known",
    "seconds": "of all stages",
    "commit": "of this repository",
    "leaderboard": "yours to fill in",
}


def record(plan: Plan) -> None:
    """Add a line for a run that has ended to runs.csv; ValueError where that file is not as it was
    written.
    """
    file = plan.output / paths.RUNS
    # as text, so that what the user wrote comes back letter by letter
    line = pl.DataFrame([_line(plan)], schema=dict.fromkeys(COLUMNS, pl.String))
    if file.exists():
        line = pl.concat([load(file), line], how="diagonal")
    artifacts.save_table(file, line)


def load(file: Path) -> pl.DataFrame:
    """The lines of runs.csv as text, columns that the user added included."""
    table = read_user_table(file)
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(
            f"{display_path(file)} has no column {', '.join(missing)}; there are {table.columns}"
        )
    return table.select(*COLUMNS, pl.exclude(*COLUMNS))


def _line(plan: Plan) -> dict[str, str | None]:
    """What runs.csv keeps of a run, as text."""
    score = artifacts.load_json(plan.output / paths.BLEND)["oof"]
    metas = [artifacts.load_json(plan.output / stage / paths.META) for stage in STAGES]
    test = test_score(plan.output)
    return {
        "finished": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        "changed": "; ".join(changes(plan)),
        "out_of_fold": f"{score['mean']:.5f}",
        "low": f"{score['low']:.5f}",
        "high": f"{score['high']:.5f}",
        "test": None if test is None else f"{test:.5f}",
        "seconds": f"{sum(meta['seconds'] for meta in metas):.0f}",
        "commit": metas[-1]["commit"],
        "leaderboard": None,
    }


def changes(plan: Plan) -> list[str]:
    """`name=value` for each parameter that differs from its default, with the stage where only that
    one differs.
    """
    by_name: dict[str, dict[str, str]] = {}
    declaring: dict[str, int] = {}
    for stage, values in plan.per_stage.items():
        defaults = declared(plan.pipeline.notebooks / f"{stage}.ipynb")
        for name, value in values.items():
            declaring[name] = declaring.get(name, 0) + 1
            if name != "output_dir" and value != defaults[name].default:
                text = json.dumps(value, ensure_ascii=False)
                by_name.setdefault(name, {})[stage] = text

    # once where all stages that have the parameter agree, else by stage
    lines = []
    for name, by_stage in by_name.items():
        everywhere = len(by_stage) == declaring[name] and len(set(by_stage.values())) == 1
        if everywhere:
            lines.append(f"{name}={next(iter(by_stage.values()))}")
        else:
            lines += [f"{stage}.{name}={text}" for stage, text in by_stage.items()]
    return lines


def test_score(output: Path) -> float | None:
    """The ensemble's score on the test images; None where their truth is not known."""
    if not (output / paths.TEST_SCORES).exists():
        return None
    scores = artifacts.load_table(output / paths.TEST_SCORES)

    # the last of the two is what the test images were given
    ensembles = scores.filter(pl.col("model").is_in(["Ensemble", table1.OF_ALL]))
    return ensembles["avg_cos"][-1]


# --- ./run_all.sh runs ---


def main(argv: list[str] | None = None) -> int:
    """Print the runs, and plot out-of-fold against leaderboard where there are answers."""
    parser = argparse.ArgumentParser(
        prog="./run_all.sh runs",
        description="The finished runs of an output folder. Write the leaderboard's answers into "
        "the last column of its runs.csv: then they are plotted against the out-of-fold scores.",
    )
    parser.add_argument(
        "--output",
        default="output",
        metavar="FOLDER",
        help="an output folder (default: %(default)s)",
    )

    output = resolve(parser.parse_args(argv).output)

    file = output / paths.RUNS
    if not file.exists():
        raise UserError(f"{display_path(file)} does not exist: no run has finished there yet")
    try:
        runs = load(file)
        answers = leaderboard(runs, display_path(file))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2

    print_table(runs)
    if len(answers):
        figure = plots.leaderboard(*(answers[name].to_numpy() for name in answers.columns))
        plots.save(figure, output / paths.RUNS_PLOT)
        print(f"out-of-fold against leaderboard: {display_path(output / paths.RUNS_PLOT)}")
    else:
        print(f"no leaderboard answers yet: fill them in in {display_path(file)}")
    return 0


def leaderboard(runs: pl.DataFrame, file: str) -> pl.DataFrame:
    """The runs with an answer as numbers: run (from 1), out_of_fold, low, high, leaderboard.

    Raises ValueError naming the line of `file` that holds something else than a number.
    """
    numbered = runs.with_row_index("run", offset=1)
    answered = numbered.filter(pl.col("leaderboard").str.strip_chars().fill_null("") != "")

    # the user may have edited any of them
    names = ("out_of_fold", "low", "high", "leaderboard")
    for row in answered.iter_rows(named=True):
        for name in names:
            if not _is_number(row[name]):
                line = row["run"] + 1  # after the header
                raise ValueError(f"{file}, line {line}: {name} is {row[name]!r}, not a number")

    columns = [pl.col(name).str.strip_chars().cast(pl.Float64) for name in names]
    return answered.select("run", *columns)


def _is_number(text: str | None) -> bool:
    try:
        return bool(np.isfinite(float(text or "")))
    except ValueError:
        return False


def print_table(runs: pl.DataFrame) -> None:
    """Print the runs, numbered from 1."""
    shown = runs.with_row_index("run", offset=1).fill_null("")
    with pl.Config(
        tbl_formatting="NOTHING",
        tbl_hide_column_data_types=True,
        tbl_hide_dataframe_shape=True,
        tbl_rows=-1,
        tbl_cols=-1,
        tbl_width_chars=200,
        fmt_str_lengths=60,
    ):
        print(shown)


if __name__ == "__main__":
    sys.exit(main())
