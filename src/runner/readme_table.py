"""Table 1 as Markdown, of one run or over several: short for the README, full for the results."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from src import artifacts, paths
from src.ensemble import table1
from src.paths import Stage, display_path
from src.runner.scores import gains, number, over_runs, signed, span

BEGIN = "<!-- table1:begin -->"
END = "<!-- table1:end -->"
COMMAND = "./run_all.sh report --readme"


def short(outputs: Sequence[Path]) -> str:
    """Table 1 in four columns with what it was measured on, for the README."""
    header = ["model", "out-of-fold, 95 % interval", "test", "the paper (another test set)"]
    rows = []
    for row in _rows(outputs):
        score = f"{row['score']} [{number(row['low'])}, {number(row['high'])}]"
        rows.append([row["model"], score, row["test"], number(row["paper"])])
    return f"{_markdown(header, rows)}\n\n{_one_sentence(outputs)}"


def full(outputs: Sequence[Path]) -> str:
    """Table 1 with the rows that each model could learn from, and the seconds, for the results."""
    header = ["model", "rows", "out-of-fold", "95 % interval", "test", "seconds", "the paper"]
    rows = []
    for row in _rows(outputs):
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.0f}"
        learned = f"{row['rows_trained']:,}"
        interval = span(row["low"], row["high"])
        of_paper = number(row["paper"])
        rows.append([row["model"], learned, row["score"], interval, row["test"], seconds, of_paper])
    return f"{_markdown(header, rows)}\n\n{_conditions(outputs)}"


def _rows(outputs: Sequence[Path]) -> list[dict]:
    """The rows of Table 1 as `over_runs` has them, `score` and `test` as text, the best in bold.

    All members together are one more row where there are more than two.
    """
    all_members = pl.col("model") == table1.OF_ALL
    table = over_runs(outputs).filter(pl.col("table1") | all_members)
    best = table["avg_cos"].max()

    rows = []
    for row in table.rows(named=True):
        score = number(row["avg_cos"])
        test = number(row["test"])
        if len(outputs) > 1:
            score += f" ± {number(row['spread'])}"
        if len(outputs) > 1 and test:
            test += f" ± {number(row['test_spread'])}"
        if row["avg_cos"] == best:
            score = f"**{score}**"
        rows.append({**row, "score": score, "test": test})
    return rows


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    for row in rows:
        # a bar in a model's name would end the cell
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines)


def _one_sentence(outputs: Sequence[Path]) -> str:
    """Seeds, the ensemble's gain, and the command, for below the short table."""
    metas = [artifacts.load_json(output / Stage.ENSEMBLE / paths.META) for output in outputs]
    seeds = ", ".join(str(meta["seed"]) for meta in metas)
    gained = [signed(gain["mean"]) for gain in gains(outputs)]
    over = f"the ensemble gains {', '.join(gained)} over the better single model"
    if len(outputs) == 1:
        return f"Seed {seeds}; {over}. Written by `{COMMAND}`."
    return f"Mean ± standard deviation over the seeds {seeds}; {over}. Written by `{COMMAND}`."


def _conditions(outputs: Sequence[Path]) -> str:
    """The paragraph below the full table: rows, seeds, intervals, gains, and the command."""
    metas = [artifacts.load_json(output / Stage.ENSEMBLE / paths.META) for output in outputs]
    rows = ", ".join(f"{meta['rows']:,}" for meta in metas)
    seeds = ", ".join(str(meta["seed"]) for meta in metas)
    if len(outputs) == 1:
        scored = f"Seed {seeds}; all models are scored on the same {rows} out-of-fold rows"
        of_interval = "intervals by a bootstrap over groups"
    else:
        scored = (
            f"Means over the seeds {seeds} ± their standard deviation; "
            f"all models of a seed are scored on the same out-of-fold rows ({rows})"
        )
        of_interval = "an interval is the mean over the seeds of a bootstrap over groups"

    each = [
        f"{signed(gain['mean'])} [{signed(gain['low'])}, {signed(gain['high'])}]"
        for gain in gains(outputs)
    ]
    return (
        f"{scored}, {of_interval}. The ensemble gains {', '.join(each)} over the better "
        f"single model, paired. Written by `{COMMAND}`."
    )


def write(outputs: Sequence[Path], root: Path) -> dict[str, bool]:
    """Put Table 1 into README.md and docs/results.md below `root`; whether that changed each.

    Raises ValueError where a page has not one pair of markers.
    """
    return {
        page: write_page(root / page, table(outputs))
        for page, table in (("README.md", short), ("docs/results.md", full))
    }


def write_page(page: Path, table: str) -> bool:
    """Put `table` between the two markers of `page`; whether that changed it. ValueError without
    one pair of markers.
    """
    text = page.read_text(encoding="utf-8")
    begins = text.count(BEGIN)
    ends = text.count(END)
    if begins != 1 or ends != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(
            f"{display_path(page)} needs one {BEGIN} and, below it, one {END}; "
            f"it has {begins} and {ends}"
        )

    # what stands around the markers stays as it is
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    new = f"{head}{BEGIN}\n\n{table}\n\n{END}{tail}"
    if new == text:
        return False
    with artifacts.atomic(page) as temporary:
        temporary.write_text(new, encoding="utf-8")
    return True
