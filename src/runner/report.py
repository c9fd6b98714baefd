"""One page for whoever decides whether to submit, `output/report.html`, and Table 1 as the README shows it.

The page is made from the artifacts and from the figures of the executed notebooks. It carries its images, runs no script and
asks nothing of a network. Prompts, names and parameters are words of strangers: all text passes through `html.escape`.
"""

import argparse
import base64
import json
import sys
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path

import polars as pl

from src import artifacts, paths
from src.data import images
from src.ensemble import table1
from src.paths import STAGES, display_path, resolve

BEGIN, END = "<!-- table1:begin -->", "<!-- table1:end -->"
FIGURES = {  # function of src/plots.py -> what the reader should see in its figure; in the order of the page
    "learning_curves": "Training of Model A and of the CLIP rows.",
    "heat_map": "Model B: its constants tuned out-of-fold.",
    "alpha_curve": "The blend: score against the weight of Model A; grey is as good within one standard error.",
    "ladder": "The ladder here and in the paper. The data differ, so only the shapes compare.",
    "calibration": "How well a prediction will fit: by its confidence, and by the agreement of A and B alone.",
}
STYLE = """
:root{--ink:#1d2330;--soft:#5b6474;--line:#dfe3ea;--paper:#fff;--back:#f5f6f8;--blue:#3465a4}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:16px}
section,header{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:18px 20px;margin:0 0 16px}
h1{font-size:1.15rem;margin:0;color:var(--soft);font-weight:600}
h2{font-size:1.15rem;margin:0 0 8px}
h3{font-size:1rem;margin:16px 0 6px}
p{margin:6px 0;max-width:75ch}
.soft{color:var(--soft);font-size:.9rem}
.score{font-size:clamp(2.1rem,8vw,3.2rem);font-weight:700;line-height:1.1;color:var(--blue);font-variant-numeric:tabular-nums}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(220px,1fr));gap:14px 28px;margin:12px 0}
.answers div>b{display:block}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td {
  text-align:right; padding:6px 10px; border-bottom:1px solid var(--line); vertical-align:top;
  font-variant-numeric:tabular-nums;
}
th:first-child,td:first-child{text-align:left}
th{color:var(--soft);font-weight:600;font-size:.82rem}
td small{display:block;color:var(--soft);white-space:nowrap}
td:first-child small{white-space:normal}
.card span{white-space:nowrap}
tr.flag td{font-weight:700;background:#eef3fa}
tr.flag small{font-weight:400}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:18px}
figure{margin:0}
figure img{width:100%;height:auto;border:1px solid var(--line);border-radius:6px;background:#fff}
figcaption{font-size:.88rem;color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,190px),1fr));gap:14px}
.card{border:1px solid var(--line);border-radius:8px;overflow:hidden;font-size:.84rem;line-height:1.35}
.card img{display:block;width:100%;aspect-ratio:1;object-fit:cover;background:var(--back)}
.card div{padding:8px 10px;overflow-wrap:anywhere}
.card ul{margin:4px 0 0;padding-left:1.1em;color:var(--soft)}
.none{aspect-ratio:1;display:grid;place-items:center;color:var(--soft)}
summary{cursor:pointer;font-weight:600;padding:4px 0}
code{font-size:.88em;overflow-wrap:anywhere}
.plain td,.plain th{text-align:left}
.plain td:first-child{white-space:nowrap;color:var(--soft)}
.plain td{overflow-wrap:anywhere}
@media(max-width:520px) {
  main{padding:8px}
  figure.wide img{min-width:640px}
  section,header{padding:14px 12px}
  th,td{padding:6px 4px}
  table{font-size:.86rem}
  .cards{grid-template-columns:1fr 1fr;gap:8px}
  .plain td:first-child{white-space:normal}
}
"""


def write(output: Path) -> Path:
    """Write `report.html` into `output` and return its path. Raises FileNotFoundError naming the stage that has not run."""
    scores, blend = ladder(output), artifacts.load_json(output / paths.BLEND)
    metas = {stage: artifacts.load_json(output / stage / paths.META) for stage in STAGES}
    figures = _figures(output / paths.EXECUTED)
    parts = [
        _answer(output, scores, blend, metas),
        _table(scores, metas),
        _curves(figures),
        _gallery(output),
        _failures(output, figures),
        _configuration(metas),
        _provenance(metas),
    ]
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Image to prompt embeddings: report</title><style>{STYLE}</style></head><body><main>{"".join(parts)}</main></body></html>
"""
    with artifacts.atomic(output / paths.REPORT) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output / paths.REPORT


def ladder(output: Path) -> pl.DataFrame:
    """Table 1's columns with test, test_low, test_high (null where the truth is not known), `table1` false for the rows beyond."""
    table = artifacts.load_table(output / paths.TABLE1).with_columns(table1=pl.lit(True))
    beyond = artifacts.load_table(output / paths.LADDER_TABLE).with_columns(table1=pl.lit(False))
    numbers = ("avg_cos", "low", "high", "seconds", "paper")
    joined = pl.concat([table, beyond], how="diagonal_relaxed").with_columns(
        pl.col(n).cast(pl.Float64) for n in numbers
    )
    if not (output / paths.TEST_SCORES).exists():
        return joined.with_columns(
            pl.lit(None, pl.Float64).alias(name) for name in ("test", "test_low", "test_high")
        )
    test = artifacts.load_table(output / paths.TEST_SCORES).rename(
        {"avg_cos": "test", "low": "test_low", "high": "test_high"}
    )
    return joined.join(test, on="model", how="left", maintain_order="left")


def _number(value: float | None) -> str:
    """`.6802`, as papers print it; empty for None."""
    return "" if value is None else f"{value:.4f}".replace("0.", ".", 1)


def _short(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".", 1)


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{_number(low)} to {_number(high)}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    number, unit = (
        (seconds, "s")
        if seconds < 100
        else (seconds / 60, "min")
        if seconds < 6000
        else (seconds / 3600, "h")
    )
    return f"{number:.{0 if unit == 's' else 1}f}\u00a0{unit}"


# --- the page, part by part ---


def _answer(output: Path, scores: pl.DataFrame, blend: dict, metas: dict) -> str:
    """What the reader came for: the score, its interval, what the test says, and which file to upload."""
    oof, gain = blend["oof"], blend["difference"]
    final = scores.filter(pl.col("model").is_in(["Ensemble", table1.OF_ALL])).row(-1, named=True)
    test, judged = "not known here", ""
    if final["test"] is not None:
        inside = oof["low"] <= final["test"] <= oof["high"]
        judged = f"{_span(final['test_low'], final['test_high'])}; {'inside' if inside else 'outside'} the out-of-fold interval"
        test = _number(final["test"])
    rows = metas["05_submit"]["rows"]
    weights = ", ".join(f"{name} {weight:.3f}" for name, weight in blend["weights"].items())
    return f"""<header><h1>Image to prompt embeddings</h1>
<div class="score">{_number(oof["mean"])}</div><p>mean cosine of the ensemble with the true prompts' embeddings, out-of-fold and
cross-fitted; 95 % interval {_span(oof["low"], oof["high"])}</p>
<div class="answers"><div><b>On the test images</b>{test}<br><span class="soft">{judged}</span></div>
<div><b>Gain over {escape(blend["better_single"])}</b>{gain["mean"]:+.4f}<br><span class="soft">paired, {gain["low"]:+.4f} to
{gain["high"]:+.4f}</span></div>
<div><b>To upload</b><code>{escape(display_path(output / paths.SUBMISSION))}.csv</code><br><span class="soft">{rows:,} images x 384,
read back and checked; .parquet with a confidence, and .npy</span></div></div>
<p>{escape(blend["verdict"][:1].upper() + blend["verdict"][1:])}. Weights: {escape(weights)}.</p></header>"""


def _table(scores: pl.DataFrame, metas: dict) -> str:
    body, best = [], scores.filter("table1")["avg_cos"].max()
    for row in scores.iter_rows(named=True):
        oof, test = _span(row["low"], row["high"]), _span(row["test_low"], row["test_high"])
        effort = ", ".join(
            filter(None, [f"{row['rows_trained']:,} rows", _duration(row["seconds"])])
        )
        cells = [
            f"{escape(row['model'])}<small>{effort}</small>",
            f"{_number(row['avg_cos'])}<small>{oof}</small>",
            f"{_number(row['test'])}<small>{test}</small>",
            _number(row["paper"]),
        ]
        flag = ' class="flag"' if row["table1"] and row["avg_cos"] == best else ""
        body.append(f"<tr{flag}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        if row["table1"] and row["model"] == "Ensemble":
            body.append('<tr><td colspan="4" class="soft">beyond the paper\'s rows</td></tr>')
    scored = metas["04_ensemble_oof"]["rows"]
    return f"""<section><h2>Table 1</h2><div class="scroll"><table><thead><tr><th>model</th><th>out-of-fold</th>
<th>test</th><th>paper</th></tr></thead><tbody>{"".join(body)}</tbody></table></div>
<p class="soft">Mean cosine with the truth (equation 8). All rows are scored on the same {scored:,} images, none of which their
model has seen. Below a model: the rows it could learn from and the training time over all folds; below a score: its 95 % interval,
a bootstrap over groups of near-duplicates. The paper's numbers belong to its own hidden test set: the steps compare, the levels do
not.</p></section>"""


def _figures(executed: Path) -> dict[str, list[str]]:
    """PNG figures (base64) of the executed notebooks by the function of `plots` that drew them."""
    found: dict[str, list[str]] = {}
    for notebook in sorted(executed.glob("*.ipynb")):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            pictures = [
                o["data"]["image/png"]
                for o in cell.get("outputs", [])
                if "image/png" in o.get("data", {})
            ]
            names = [name for name in (*FIGURES, "slices") if f"plots.{name}(" in source]
            for name, picture in zip(names, pictures, strict=False):
                found.setdefault(name, []).append("".join(picture).replace("\n", ""))
    return found


def _drawn(pictures: Iterable[tuple[str, str]]) -> str:
    return "".join(
        f'<figure class="{"wide" if _width(picture) > 700 else "narrow"}"><div class="scroll">'
        f'<img alt="{escape(caption)}" src="data:image/png;base64,{escape(picture)}"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for picture, caption in pictures
    )


def _width(picture: str) -> int:
    """Pixels across, from a PNG's header."""
    return int.from_bytes(base64.b64decode(picture[:32])[16:20], "big")


def _curves(figures: dict[str, list[str]]) -> str:
    drawn = _drawn(
        (figures[name][0], caption) for name, caption in FIGURES.items() if name in figures
    )
    return f'<section><h2>Curves</h2><div class="figures">{drawn}</div></section>' if drawn else ""


def _thumbnail(image: str, side: int = 320) -> str:
    """The image as an inlined JPEG, or a word where it cannot be read."""
    try:
        picture = images.decode(image)
    except Exception as error:  # decoders raise what they like on broken input
        return f'<div class="none">{escape(type(error).__name__)}</div>'
    picture.thumbnail((side, side))
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return f'<img alt="" loading="lazy" src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _gallery(output: Path) -> str:
    gallery, cards = artifacts.load_table(output / paths.GALLERY), []
    for row in gallery.iter_rows(named=True):
        truth = f"<br><b>{escape(row['truth'])}</b>" if row.get("truth") else ""
        cosine = (
            f" <span>cosine {_short(row['cosine'])}</span>" if row.get("cosine") is not None else ""
        )
        near = "".join(f"<li>{escape(prompt)}</li>" for prompt in row["prompts"][:3])
        cards.append(
            f'<div class="card">{_thumbnail(row["image"])}<div><span>confidence {_short(row["confidence"])}</span>'
            f"{cosine}{truth}<ul>{near}</ul></div></div>"
        )
    return f"""<section><h2>Test images</h2><p class="soft">From the most to the least confident: the true prompt where it is
known, and the nearest prompts that Model B found, with their similarity.</p><div class="cards">{"".join(cards)}</div></section>"""


def _failures(output: Path, figures: dict[str, list[str]]) -> str:
    worst, told = artifacts.load_table(output / paths.FAILURES), []
    for by, part in (
        artifacts.load_table(output / paths.SLICES)
        .sort("avg_cos")
        .group_by("by", maintain_order=True)
    ):
        low, high = part.row(0, named=True), part.row(-1, named=True)
        told.append(
            f"<li>{escape(by[0])}: hardest {escape(low['label'].strip())} ({_number(low['avg_cos'])}, {low['rows']} rows), "
            f"easiest {escape(high['label'].strip())} ({_number(high['avg_cos'])}, {high['rows']} rows)</li>"
        )
    cards = [
        f'<div class="card">{_thumbnail(row["image"], 240)}<div><span>cosine {_short(row["cosine"])}</span> '
        f"<span>confidence {_short(row['confidence'])}</span><br><b>{escape(row['prompt'])}</b></div></div>"
        for row in worst.iter_rows(named=True)
    ]
    caption = "Score by slice, 95 % intervals; the line is the mean of all rows."
    drawn = _drawn((picture, caption) for picture in figures.get("slices", []))
    return f"""<section><h2>Where it fails</h2><ul>{"".join(told)}</ul><div class="figures">{drawn}</div>
<h3>The worst {len(worst)} out-of-fold</h3><div class="cards">{"".join(cards)}</div></section>"""


def _configuration(metas: dict) -> str:
    parts = []
    for stage, meta in metas.items():
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td><code>{escape(json.dumps(value, ensure_ascii=False))}</code></td></tr>"
            for name, value in meta.get("state", {}).get("parameter", {}).items()
        )
        parts.append(
            f'<details><summary>{escape(stage)}</summary><table class="plain">{rows}</table></details>'
        )
    return f"<section><h2>Configuration</h2>{''.join(parts)}</section>"


def _provenance(metas: dict) -> str:
    times = "".join(
        f"<tr><td>{escape(stage)}</td><td>{_duration(meta.get('seconds'))}</td>"
        f"<td>{escape(str(meta.get('device', 'cpu')))}</td><td>{escape(meta['written'])}</td></tr>"
        for stage, meta in metas.items()
    )
    last = metas[STAGES[-1]]
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    return f"""<section><h2>Times and versions</h2><div class="scroll"><table class="plain"><tr><th>stage</th><th>time</th>
<th>device</th><th>ended</th></tr>{times}</table></div>
<p class="soft">Together {_duration(sum(m.get("seconds", 0) for m in metas.values()))}; seed
{escape(str(last.get("seed")))}; commit {escape(str(last.get("commit")))}; {escape(versions)}.</p></section>"""


# --- Table 1 over several runs, and in the README ---


def over_runs(outputs: Sequence[Path]) -> pl.DataFrame:
    """`ladder` of several runs in one: each number's mean over the runs, and `spread`, `test_spread`: standard deviations.

    Seconds are those of the first run: later ones may find in its cache what the first had to compute.
    """
    tables = pl.concat(
        [
            ladder(output).with_row_index("place").with_columns(run=pl.lit(n))
            for n, output in enumerate(outputs)
        ]
    )
    middle = [
        pl.col(n).mean()
        for n in ("avg_cos", "low", "high", "paper", "test", "test_low", "test_high")
    ]
    return (
        tables.group_by("model", "table1")
        .agg(
            pl.col("place").min(),
            pl.col("seconds").filter(pl.col("run") == 0).first(),
            pl.len().alias("runs"),
            pl.col("rows_trained").mean().round().cast(pl.Int64),
            *middle,
            spread=pl.col("avg_cos").std(),
            test_spread=pl.col("test").std(),
        )
        .sort("place")
        .drop("place")
    )


def gains(outputs: Sequence[Path]) -> list[dict]:
    """Each run's paired gain over its better single member, and its blend: output, better_single, mean, low, high, weights."""
    found = []
    for output in outputs:
        blend = artifacts.load_json(output / paths.BLEND)
        facts = {name: blend[name] for name in ("better_single", "weights")}
        found.append({"output": display_path(output), **facts, **blend["difference"]})
    return found


def markdown(outputs: Sequence[Path]) -> str:
    """Table 1 as Markdown with what it was measured on: the paper's six rows, and all members together where there are more.

    Over several runs with the spread.
    """
    table, several = (
        over_runs(outputs).filter(pl.col("table1") | (pl.col("model") == table1.OF_ALL)),
        len(outputs) > 1,
    )
    best = table["avg_cos"].max()
    lines = [
        "| model | rows | out-of-fold | 95 % interval | test | seconds | the paper (another test set) |",
        "| --- " * 7 + "|",
    ]
    for row in table.iter_rows(named=True):
        score = _number(row["avg_cos"]) + (f" ± {_number(row['spread'])}" if several else "")
        score = f"**{score}**" if row["avg_cos"] == best else score
        test = _number(row["test"]) + (
            f" ± {_number(row['test_spread'])}" if several and row["test"] is not None else ""
        )
        cells = [
            row["model"],
            f"{row['rows_trained']:,}",
            score,
            _span(row["low"], row["high"]),
            test,
            "" if row["seconds"] is None else f"{row['seconds']:.0f}",
            _number(row["paper"]),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", _conditions(outputs)])


def _conditions(outputs: Sequence[Path]) -> str:
    metas = [artifacts.load_json(output / "04_ensemble_oof" / paths.META) for output in outputs]
    seeds, rows = [meta["seed"] for meta in metas], metas[0]["rows"]
    gained = gains(outputs)
    several = f"seeds {', '.join(map(str, seeds))}; ± is the standard deviation over them, seconds are those of the first"
    named = several if len(seeds) > 1 else f"seed {seeds[0]}"
    each = [f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}]" for gain in gained]
    return (
        f"All rows are scored on the same {rows:,} out-of-fold rows, intervals by a bootstrap over groups; {named}. The "
        f"ensemble gains {', '.join(each)} over the better single model, paired. Written by `python -m src.runner.report --readme` "
        f"from `{paths.TABLE1}`."
    )


def write_readme(outputs: Sequence[Path], readme: Path) -> bool:
    """Put `markdown` between the two markers of `readme`; whether that changed it. ValueError without one pair of markers."""
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(
            f"{display_path(readme)} needs one {BEGIN} and, below it, one {END}; it has {text.count(BEGIN)} and "
            f"{text.count(END)}"
        )
    head, rest = text.split(BEGIN)
    new = f"{head}{BEGIN}\n\n{markdown(outputs)}\n\n{END}{rest.split(END)[1]}"
    if new != text:
        with artifacts.atomic(readme) as temporary:
            temporary.write_text(new, encoding="utf-8")
    return new != text


def main(argv: list[str] | None = None) -> int:
    """`python -m src.runner.report`: the page of one run, Table 1 over several, and the README's table."""
    parser = argparse.ArgumentParser(
        prog="python -m src.runner.report",
        description="report.html of a run; Table 1 over several runs",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        default=["output"],
        metavar="OUTPUT",
        help="output folders, e.g. one a seed",
    )
    parser.add_argument(
        "--readme", action="store_true", help="rewrite Table 1 in README.md from these runs"
    )
    options = parser.parse_args(argv)
    outputs = [resolve(run) for run in options.runs]
    try:
        if options.readme:
            changed = write_readme(outputs, paths.ROOT / "README.md")
            print("README.md: " + ("Table 1 rewritten" if changed else "Table 1 is up to date"))
        elif len(outputs) > 1:
            print(markdown(outputs))
            for gain in gains(outputs):
                span = f"[{gain['low']:+.4f}, {gain['high']:+.4f}]"
                weights = ", ".join(
                    f"{name} {weight:.3f}" for name, weight in gain["weights"].items()
                )
                print(
                    f"{gain['output']}: {gain['mean']:+.4f} {span} over {gain['better_single']}; weights {weights}"
                )
        else:
            print(display_path(write(outputs[0])))
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
