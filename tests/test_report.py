import base64
import re
from html.parser import HTMLParser
from io import BytesIO

import nbformat
import numpy as np
import polars as pl
import pytest
from PIL import Image

from src import artifacts, paths
from src.ensemble import table1
from src.paths import STAGES
from src.runner import report

NASTY = "<script>alert('fox')</script> & \"owl\" <img src=x onerror=alert(1)>"


def png(width: int) -> str:
    buffer = BytesIO()
    Image.new("RGB", (width, 40), "white").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_output(output, *, ensemble_score=0.70, gain=0.02, seed=1, test=True):
    """Every artifact that the report reads, with the words of a stranger wherever a stranger's words can stand."""
    scores = dict(zip(table1.PAPER, [0.61, 0.62, 0.63, 0.68, 0.65, ensemble_score], strict=True))
    rows = [table1.Scored(name, 1000, np.full(50, score), 12.0) for name, score in scores.items()]
    artifacts.save_table(output / paths.TABLE1, table1.table1(rows))
    beyond = table1.table1([table1.Scored(NASTY, 10, np.full(50, 0.5), None)]).drop("paper")
    artifacts.save_table(output / paths.LADDER_TABLE, beyond)
    interval = {"mean": ensemble_score, "low": ensemble_score - 0.01, "high": ensemble_score + 0.01}
    artifacts.save_json(
        output / paths.BLEND,
        {
            "weights": {"model_a": 0.6, "model_b": 0.4},
            "oof": interval,
            "better_single": "model_a",
            "verdict": "the ensemble is better",
            "difference": {"mean": gain, "low": gain - 0.001, "high": gain + 0.001},
        },
    )
    for stage in STAGES:
        artifacts.write_meta(
            output / stage, rows=1000, seconds=90.0, seed=seed, state={"parameter": {"text": NASTY}}
        )
    Image.new("RGB", (30, 20), "red").save(output / "fox.png")
    image, missing = str(output / "fox.png"), str(output / "gone.png")
    artifacts.save_table(
        output / paths.GALLERY,
        pl.DataFrame(
            {
                "id": ["a", "b"],
                "image": [image, missing],
                "confidence": [0.7, 0.5],
                "prompts": [[NASTY], []],
                "truth": [NASTY, "owl"],
                "cosine": [0.8, 0.4],
            }
        ),
    )
    artifacts.save_table(
        output / paths.FAILURES,
        pl.DataFrame(
            {
                "id": ["a"],
                "image": [image],
                "prompt": [NASTY],
                "cosine": [0.1],
                "confidence": [0.5],
                "nearest": [0.5],
            }
        ),
    )
    artifacts.save_table(
        output / paths.SLICES,
        pl.DataFrame(
            {
                "by": ["style"] * 2,
                "label": ["oil", NASTY],
                "rows": [5, 6],
                "avg_cos": [0.5, 0.7],
                "low": [0.4, 0.6],
                "high": [0.6, 0.8],
            }
        ),
    )
    if test:
        artifacts.save_table(
            output / paths.TEST_SCORES,
            pl.DataFrame(
                {
                    "model": ["Ensemble"],
                    "avg_cos": [ensemble_score + 0.005],
                    "low": [ensemble_score - 0.02],
                    "high": [0.75],
                }
            ),
        )
    write_executed(output)


def write_executed(output):
    cells = [
        nbformat.v4.new_code_cell(
            f"plots.{name}(x);",
            outputs=[nbformat.v4.new_output("display_data", {"image/png": png(width)})],
        )
        for name, width in (("alpha_curve", 600), ("slices", 900))
    ]
    (output / paths.EXECUTED).mkdir(parents=True, exist_ok=True)
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells), output / paths.EXECUTED / "04_ensemble_oof.ipynb"
    )


class Page(HTMLParser):
    """Text and tags of a page, with every tag that is opened also closed."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.open = [], [], []
        self.feed(html)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page(tmp_path):
    write_output(tmp_path)
    return report.write(tmp_path).read_text(encoding="utf-8")


def test_it_opens_with_the_answer(page):
    body = re.sub(r"\s+", " ", " ".join(Page(page).text[2:40]))
    assert (
        body.index(".7000")
        < body.index(".6900 to .7100")
        < body.index(".7050")
        < body.index("+0.0200")
    )
    assert "inside the out-of-fold interval" in body and "submission.csv" in body


def test_it_is_whole_in_itself(page):
    tags = Page(page).tags
    assert not any(tag in ("script", "link", "iframe", "object", "form") for tag, _ in tags)
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    sources = [a["src"] for tag, a in tags if tag == "img"]
    assert len(sources) == 4 and all(s.startswith("data:image/") for s in sources)
    assert not re.search(r"https?:|url\(|@import", page)


def test_the_words_of_strangers_stay_words(page):
    assert NASTY not in page and "".join(Page(page).text).count(NASTY) >= 5


def test_a_image_that_is_gone_is_said_so(page):
    assert "FileNotFoundError" in page


def test_a_wide_figure_scrolls_on_a_phone(page):
    figures = [a.get("class") for tag, a in Page(page).tags if tag == "figure"]
    assert figures == ["narrow", "wide"]


def test_without_a_truth_it_says_that_the_test_score_is_not_known(tmp_path):
    write_output(tmp_path, test=False)
    text = report.write(tmp_path).read_text(encoding="utf-8")
    assert "not known here" in text and "out-of-fold interval" not in text


def test_a_missing_stage_is_named(tmp_path):
    write_output(tmp_path)
    (tmp_path / paths.BLEND).unlink()
    with pytest.raises(
        FileNotFoundError, match="blend.json does not exist: run ./run_all.sh --only 04"
    ):
        report.write(tmp_path)


def test_the_readme_s_table_is_that_of_the_run(tmp_path):
    write_output(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{report.BEGIN}\nstale\n{report.END}\n\ntext\n", encoding="utf-8")
    assert report.write_readme([tmp_path], readme)
    text = readme.read_text(encoding="utf-8")
    assert (
        "stale" not in text
        and text.startswith("# Title\n\n<!--")
        and text.endswith("-->\n\ntext\n")
    )
    assert "| CLIP | 1,000 | .6100 | .6100 to .6100 |  | 12 | .5642 |" in text
    assert (
        "| Ensemble | 1,000 | **.7000** | .7000 to .7000 | .7050 | 12 | .5961 |" in text
        and "seed 1" in text
    )
    assert not report.write_readme([tmp_path], readme), "a second time changes nothing"
    write_output(tmp_path, ensemble_score=0.71)
    assert report.write_readme([tmp_path], readme) and "**.7100**" in readme.read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    "text", ["", report.BEGIN, f"{report.END} {report.BEGIN}", f"{report.BEGIN}{report.END}" * 2]
)
def test_a_readme_without_one_pair_of_markers_is_left_alone(tmp_path, text):
    write_output(tmp_path)
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match="README.md needs one <!-- table1:begin -->"):
        report.write_readme([tmp_path], tmp_path / "README.md")
    assert (tmp_path / "README.md").read_text() == text


def test_several_seeds_become_a_mean_and_a_spread(tmp_path, capsys):
    runs = [tmp_path / f"seed{seed}" for seed in (1, 2, 3)]
    for seed, (run, score) in enumerate(zip(runs, (0.70, 0.71, 0.72), strict=True), 1):
        write_output(run, ensemble_score=score, gain=score - 0.68, seed=seed)
    final = report.over_runs(runs).filter(model="Ensemble").row(0, named=True)
    assert (final["runs"], final["avg_cos"], final["spread"]) == (
        3,
        pytest.approx(0.71),
        pytest.approx(0.01),
    )
    assert report.main(["--runs", *map(str, runs)]) == 0
    said = capsys.readouterr().out
    assert (
        "**.7100 ± .0100**" in said
        and "seeds 1, 2, 3" in said
        and "+0.0200 [+0.0190, +0.0210], +0.0300" in said
    )
    assert said.count("over model_a") == 3


def test_no_run_is_no_traceback(tmp_path, capsys):
    assert report.main(["--runs", str(tmp_path)]) == 2
    assert "table1.csv does not exist" in capsys.readouterr().err


def test_the_command_rewrites_the_readme_once(tmp_path, capsys, monkeypatch):
    write_output(tmp_path / "run")
    (tmp_path / "README.md").write_text(f"{report.BEGIN}\n{report.END}\n")
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert [report.main(["--readme", "--runs", str(tmp_path / "run")]) for _ in range(2)] == [0, 0]
    assert (
        capsys.readouterr().out
        == "README.md: Table 1 rewritten\nREADME.md: Table 1 is up to date\n"
    )
