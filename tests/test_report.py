"""The report as a page: what it shows, and that no word of a stranger becomes markup."""

import base64
import re
from html.parser import HTMLParser

import pytest

from src import paths
from src.runner import readme_table, report, scores
from tests.helpers.finished_output import NASTY, write_finished_output


class Page(HTMLParser):
    """Text and tags of a page, with every tag that is opened also closed."""

    def __init__(self, html):
        super().__init__()
        self.text = []
        self.tags = []
        self.open = []
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
    write_finished_output(tmp_path)
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


def test_an_image_that_is_gone_is_said_so(page):
    assert "FileNotFoundError" in page


def test_a_wide_figure_scrolls_on_a_phone(page):
    figures = [a.get("class") for tag, a in Page(page).tags if tag == "figure"]
    assert figures == ["narrow", "wide"]


def test_a_figure_stands_above_its_own_caption(tmp_path):
    write_finished_output(tmp_path)
    names = {"weight of Model A": "alpha_curve", "Score by slice": "slices"}
    html = report.write(tmp_path).read_text(encoding="utf-8")
    figures = re.findall(r"<figure.*?base64,(.*?)\".*?<figcaption>(.*?)</figcaption>", html, re.S)
    assert len(figures) == 2
    for data, caption in figures:
        name = next(name for words, name in names.items() if words in caption)
        saved = tmp_path / "04_ensemble_oof" / paths.FIGURES / f"{name}.png"
        assert base64.b64decode(data) == saved.read_bytes()


def test_without_a_truth_it_says_that_the_test_score_is_not_known(tmp_path):
    write_finished_output(tmp_path, test=False)
    text = report.write(tmp_path).read_text(encoding="utf-8")
    assert "not known here" in text and "out-of-fold interval" not in text


def test_a_missing_stage_is_named(tmp_path):
    write_finished_output(tmp_path)
    (tmp_path / paths.BLEND).unlink()
    with pytest.raises(
        FileNotFoundError, match="blend.json does not exist: run ./run_all.sh --only 04"
    ):
        report.write(tmp_path)


def write_pages(folder):
    """README.md and docs/results.md with a stale table between the markers."""
    pages = [folder / "README.md", folder / "docs" / "results.md"]
    for page in pages:
        page.parent.mkdir(exist_ok=True)
        text = f"# Title\n\n{readme_table.BEGIN}\nstale\n{readme_table.END}\n\ntext\n"
        page.write_text(text, encoding="utf-8")
    return pages


def test_the_tables_of_readme_and_results_are_those_of_the_run(tmp_path):
    write_finished_output(tmp_path)
    readme, results = write_pages(tmp_path)
    changed = readme_table.write([tmp_path], tmp_path)
    assert changed == {"README.md": True, "docs/results.md": True}
    for page in (readme, results):
        text = page.read_text(encoding="utf-8")
        assert "stale" not in text and "Seed 1;" in text
        assert text.startswith("# Title\n\n<!--") and text.endswith("-->\n\ntext\n")

    short = readme.read_text(encoding="utf-8").splitlines()
    assert "| model | out-of-fold, 95 % interval | test | the paper (another test set) |" in short
    assert "| Mean prompt | .5000 [.5000, .5000] |  |  |" in short
    assert "| CLIP | .6100 [.6100, .6100] |  | .5642 |" in short
    assert "| Ensemble | **.7000** [.7000, .7000] | .7050 | .5961 |" in short
    full = results.read_text(encoding="utf-8").splitlines()
    assert "| Mean prompt | 1,000 | .5000 | .5000 to .5000 |  |  |  |" in full
    assert "| CLIP | 1,000 | .6100 | .6100 to .6100 |  | 12 | .5642 |" in full
    assert "| Ensemble | 1,000 | **.7000** | .7000 to .7000 | .7050 | 12 | .5961 |" in full

    again = readme_table.write([tmp_path], tmp_path)
    assert not any(again.values()), "a second time changes nothing"
    write_finished_output(tmp_path, ensemble_score=0.71)
    assert all(readme_table.write([tmp_path], tmp_path).values())
    assert "**.7100**" in readme.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "",
        readme_table.BEGIN,
        f"{readme_table.END} {readme_table.BEGIN}",
        f"{readme_table.BEGIN}{readme_table.END}" * 2,
    ],
)
def test_a_readme_without_one_pair_of_markers_is_left_alone(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(ValueError, match="README.md needs one <!-- table1:begin -->"):
        readme_table.write_page(tmp_path / "README.md", "a table")
    assert (tmp_path / "README.md").read_text() == text


def test_several_seeds_become_a_mean_and_a_spread(tmp_path, capsys):
    runs = [tmp_path / f"seed{seed}" for seed in (1, 2, 3)]
    for seed, (run, score) in enumerate(zip(runs, (0.70, 0.71, 0.72), strict=True), 1):
        write_finished_output(run, ensemble_score=score, gain=score - 0.68, seed=seed)
    final = scores.over_runs(runs).filter(model="Ensemble").row(0, named=True)
    assert (final["runs"], final["avg_cos"], final["spread"]) == (
        3,
        pytest.approx(0.71),
        pytest.approx(0.01),
    )
    assert report.main(["--runs", *map(str, runs)]) == 0
    said = capsys.readouterr().out
    assert (
        "**.7100 ± .0100**" in said
        and "| Mean prompt | 1,000 | .5000 ± .0000 | .5000 to .5000 |  |  |  |" in said
        and "Means over the seeds 1, 2, 3" in said
        and "out-of-fold rows (1,000, 1,000, 1,000)" in said
        and "+.0200 [+.0190, +.0210], +.0300" in said
    )
    assert said.count("over model_a") == 3


def test_no_run_is_no_traceback(tmp_path, capsys):
    assert report.main(["--runs", str(tmp_path)]) == 2
    assert "table1.csv does not exist" in capsys.readouterr().err


def test_the_command_rewrites_the_tables_once(tmp_path, capsys, monkeypatch):
    write_finished_output(tmp_path / "run")
    write_pages(tmp_path)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert [report.main(["--readme", "--runs", str(tmp_path / "run")]) for _ in range(2)] == [0, 0]
    assert (
        capsys.readouterr().out
        == "README.md: Table 1 rewritten\ndocs/results.md: Table 1 rewritten\n"
        "README.md: Table 1 is up to date\ndocs/results.md: Table 1 is up to date\n"
    )
