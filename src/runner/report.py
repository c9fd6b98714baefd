"""One page for whoever decides whether to submit, `output/report.html`, and Table 1 over several
runs.

The page is made from the artifacts and the figures that the stages saved. It carries its images,
runs no script and loads nothing from a network. Prompts, names and parameters come from strangers:
the template escapes all text.
"""

import argparse
import base64
import json
import sys
from io import BytesIO
from pathlib import Path

import polars as pl

from src import artifacts, paths, web_page
from src.data import images
from src.ensemble import table1
from src.paths import STAGES, Stage, display_path, resolve
from src.runner import readme_table, scores

TEMPLATES = Path(__file__).parent
WIDE = 700  # pixels; a figure that is wider scrolls sideways on a phone

# figures of the page in its order: the stage and the name under which it saves each, and what the
# reader should see in it
CURVES = (
    (Stage.MODEL_A, "learning_curves", "Training of Model A and of the CLIP rows."),
    (Stage.MODEL_B, "weights", "Model B: its constants tuned out-of-fold."),
    (
        Stage.ENSEMBLE,
        "alpha_curve",
        "The blend: score against the weight of Model A; "
        "gray is as good within one standard error.",
    ),
    (
        Stage.ENSEMBLE,
        "ladder",
        "The ladder here and in the paper. The data differ, so only the shapes compare.",
    ),
    (
        Stage.ENSEMBLE,
        "calibration",
        "How well a prediction will fit: by its confidence, and by the agreement of A and B alone.",
    ),
)
SLICES_CAPTION = "Score by slice, 95 % intervals; the line is the mean of all rows."
SLICES = (
    (Stage.ENSEMBLE, "slices", SLICES_CAPTION),
    (Stage.ENSEMBLE, "slices_by_attribute", SLICES_CAPTION),
)


def write(output: Path) -> Path:
    """Write `report.html` into `output` and return its path. Raises FileNotFoundError naming the
    stage that has not run.
    """
    environment = web_page.environment(TEMPLATES)

    # how numbers, seconds and images look on the page is decided here, not in the template
    environment.filters |= {
        "number": scores.number,
        "duration": scores.duration,
        "thumbnail": thumbnail,
    }
    environment.globals["span"] = scores.span

    page = environment.get_template("report.html.jinja").render(contents(output))
    with artifacts.atomic(output / paths.REPORT) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output / paths.REPORT


def contents(output: Path) -> dict[str, object]:
    """What the template shows, by name."""
    ladder = scores.ladder(output)
    metas = {stage: artifacts.load_json(output / stage / paths.META) for stage in STAGES}

    # the last of the two is what the test images get
    names = pl.col("model").is_in(["Ensemble", table1.OF_ALL])
    last = metas[STAGES[-1]]

    return {
        "style": web_page.style(TEMPLATES / "report.css"),
        "blend": artifacts.load_json(output / paths.BLEND),
        "final": ladder.filter(names).row(-1, named=True),
        "submission": display_path(output / paths.SUBMISSION) + ".csv",
        "submitted": last["rows"],
        "ladder": ladder.rows(named=True),
        "best": ladder.filter("table1")["avg_cos"].max(),
        "scored": metas[Stage.ENSEMBLE]["rows"],
        "curves": figures(output, CURVES),
        "gallery": _gallery(output),
        "slices": _extreme_slices(output),
        "slice_figures": figures(output, SLICES),
        "failures": artifacts.load_table(output / paths.FAILURES).rows(named=True),
        "metas": metas,
        "parameters": {stage: _parameters(meta) for stage, meta in metas.items()},
        "seconds": sum(meta.get("seconds", 0) for meta in metas.values()),
        "last": last,
    }


def figures(output: Path, wanted: tuple[tuple[str, str, str], ...]) -> list[dict]:
    """Those of the `wanted` (stage, name, caption) figures that were saved: caption, data (base64
    of the PNG), wide.
    """
    saved = []
    for stage, name, caption in wanted:
        file = output / stage / paths.FIGURES / f"{name}.png"
        if not file.exists():
            continue

        png = file.read_bytes()
        width = int.from_bytes(png[16:20], "big")  # of the PNG's header
        data = base64.b64encode(png).decode()
        saved.append({"caption": caption, "data": data, "wide": width > WIDE})
    return saved


def thumbnail(image: str, side: int) -> dict[str, str]:
    """`data`, base64 of the image as a JPEG of at most `side` pixels, or `error`, a word, where it
    cannot be read.
    """
    # the images may have been moved since the run: the page then says so in their place
    try:
        small = images.decode(image)
    except Exception as error:  # decoders raise what they like on broken input
        return {"error": type(error).__name__}

    small.thumbnail((side, side))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return {"data": base64.b64encode(buffer.getvalue()).decode()}


def _gallery(output: Path) -> list[dict]:
    """The test images with `truth` and `cosine`, which are None where they are not known."""
    rows = artifacts.load_table(output / paths.GALLERY).rows(named=True)
    return [{"truth": None, "cosine": None} | row for row in rows]


def _extreme_slices(output: Path) -> list[dict]:
    """The hardest and the easiest label of each slicing: by, hardest, easiest; the hardest slicing
    first.
    """
    table = artifacts.load_table(output / paths.SLICES).sort("avg_cos")
    extremes = []
    for (by,), part in table.group_by("by", maintain_order=True):
        ends = {"hardest": part.row(0, named=True), "easiest": part.row(-1, named=True)}
        extremes.append({"by": by, **ends})
    return extremes


def _parameters(meta: dict) -> dict[str, str]:
    """A stage's parameters as JSON, by name."""
    values = meta.get("state", {}).get("parameter", {})
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


# --- the command line ---


def main(argv: list[str] | None = None) -> int:
    """`./run_all.sh report`: the page of one run, Table 1 over several, and in the docs."""
    parser = argparse.ArgumentParser(
        prog="./run_all.sh report",
        description="Write report.html of a run; over several runs, print Table 1 with its spread.",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        default=["output"],
        metavar="OUTPUT",
        help="output folders, e.g. one for each seed (default: output)",
    )
    parser.add_argument(
        "--readme",
        action="store_true",
        help="rewrite Table 1 in README.md and docs/results.md from these runs",
    )
    options = parser.parse_args(argv)
    outputs = [resolve(run) for run in options.runs]

    try:
        if options.readme:
            for page, changed in readme_table.write(outputs, paths.ROOT).items():
                print(f"{page}: " + ("Table 1 rewritten" if changed else "Table 1 is up to date"))
        elif len(outputs) > 1:
            _print_runs(outputs)
        else:
            print(display_path(write(outputs[0])))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _print_runs(outputs: list[Path]) -> None:
    """Table 1 over several runs, and the ensemble's gain in each."""
    print(readme_table.full(outputs))
    for gain in scores.gains(outputs):
        interval = f"[{gain['low']:+.4f}, {gain['high']:+.4f}]"
        weights = ", ".join(f"{name} {weight:.3f}" for name, weight in gain["weights"].items())
        print(
            f"{gain['output']}: {gain['mean']:+.4f} {interval} over {gain['better_single']}; "
            f"weights {weights}"
        )


if __name__ == "__main__":
    sys.exit(main())
