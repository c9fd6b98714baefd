"""Table 1 as Markdown, of one run or over several, and its place in the README."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from src import artifacts, paths
from src.ensemble import table1
from src.paths import Stage, display_path
from src.runner.scores import gains, number, over_runs, span

BEGIN = "<!-- table1:begin -->"
END = "<!-- table1:end -->"
HEADER = (
    "| model | rows | out-of-fold | 95 % interval | test | seconds | the paper (another test set) |"
)


def markdown(outputs: Sequence[Path]) -> str:
    """Table 1 as Markdown with what it was measured on; over several runs with the spread.

    The paper's six rows, and all members together where there are more than two.
    """
    all_members = pl.col("model") == table1.OF_ALL
    table = over_runs(outputs).filter(pl.col("table1") | all_members)
    best = table["avg_cos"].max()
    with_spread = len(outputs) > 1

    # a bar in a model's name would end the cell
    lines = [HEADER, "| --- " * 7 + "|"]
    for row in table.iter_rows(named=True):
        cells = _cells(row, is_best=row["avg_cos"] == best, with_spread=with_spread)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", _conditions(outputs)])


def _cells(row: dict, *, is_best: bool, with_spread: bool) -> list[str]:
    """One row of the table as text; the best score in bold."""
    score = number(row["avg_cos"])
    test = number(row["test"])
    if with_spread:
        score += f" ± {number(row['spread'])}"
    if with_spread and test:
        test += f" ± {number(row['test_spread'])}"

    return [
        row["model"],
        f"{row['rows_trained']:,}",
        f"**{score}**" if is_best else score,
        span(row["low"], row["high"]),
        test,
        "" if row["seconds"] is None else f"{row['seconds']:.0f}",
        number(row["paper"]),
    ]


def _conditions(outputs: Sequence[Path]) -> str:
    """The paragraph below the table: rows, seeds, the ensemble's gain, and the command that wrote
    it.
    """
    metas = [artifacts.load_json(output / Stage.ENSEMBLE / paths.META) for output in outputs]
    rows = ", ".join(f"{meta['rows']:,}" for meta in metas)
    seeds = ", ".join(str(meta["seed"]) for meta in metas)
    if len(outputs) == 1:
        scored = f"All models are scored on the same {rows} out-of-fold rows of seed {seeds}"
        of_interval = "intervals by a bootstrap over groups"
    else:
        scored = (
            f"Means over the seeds {seeds}, ± their standard deviation, seconds are the first's; "
            f"all models of a seed are scored on the same out-of-fold rows ({rows})"
        )
        of_interval = "intervals by a bootstrap over groups within a seed"

    each = [f"{g['mean']:+.4f} [{g['low']:+.4f}, {g['high']:+.4f}]" for g in gains(outputs)]
    return (
        f"{scored}, {of_interval}. The ensemble gains {', '.join(each)} over the better "
        f"single model, paired. Written by `./run_all.sh report --readme` from `{paths.TABLE1}`."
    )


def write_readme(outputs: Sequence[Path], readme: Path) -> bool:
    """Put `markdown` between the two markers of `readme`; whether that changed it. ValueError
    without one pair of markers.
    """
    text = readme.read_text(encoding="utf-8")
    begins = text.count(BEGIN)
    ends = text.count(END)
    if begins != 1 or ends != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(
            f"{display_path(readme)} needs one {BEGIN} and, below it, one {END}; "
            f"it has {begins} and {ends}"
        )

    # what stands around the markers stays as it is
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    new = f"{head}{BEGIN}\n\n{markdown(outputs)}\n\n{END}{tail}"
    if new == text:
        return False
    with artifacts.atomic(readme) as temporary:
        temporary.write_text(new, encoding="utf-8")
    return True
