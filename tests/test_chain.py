"""predict, search, export and browse, one after another on a trained output, as they are typed."""

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from src.paths import ROOT
from src.submit import browse, export, search
from src.submit.vectors import vectors_file

ENVIRONMENT = {
    **os.environ,
    "SKIP_INSTALL": "1",
    "PYTHON": sys.executable,
    "PYTHONUNBUFFERED": "1",
}


def run_all(*arguments: object) -> str:
    """What `./run_all.sh` prints."""
    command = [str(ROOT / "run_all.sh"), *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def predicted(trained: Path, tmp_path_factory) -> Path:
    """The result of `predict` on the 24 test images of plain colors."""
    out = tmp_path_factory.mktemp("predicted") / "found.parquet"
    told = run_all(
        *("predict", "--images", trained / "test", "--out", out),
        *("--output", trained / "output", "--device", "cpu"),
    )
    assert "found.parquet: 24 images" in told
    return out


def test_search_opens_what_predict_wrote_and_writes_a_page(predicted, tmp_path):
    before = vectors_file(predicted).stat().st_mtime_ns
    page = tmp_path / "page.html"
    told = run_all("search", predicted, "a red door", "-k", 5, "--html", page)
    assert len(told.splitlines()) == 7, told  # a heading, five images, where the page is
    assert vectors_file(predicted).stat().st_mtime_ns == before, "the vectors were copied again"
    assert page.read_text(encoding="utf-8").count('src="data:image/jpeg;base64,') == 5

    # by one of the images: itself first; by the same image as a file: the same images
    first = pl.read_parquet(predicted)["id"][0]
    assert search.main([str(predicted), "--near", first, "--out", str(tmp_path / "near.csv")]) == 0
    assert pl.read_csv(tmp_path / "near.csv")["id"][0] == first


def test_an_image_is_a_query(predicted, trained, tmp_path):
    image = trained / "test" / "blue_wall.png"
    output = ["--output", str(trained / "output"), "--device", "cpu"]
    out = tmp_path / "like.parquet"
    assert search.main([str(predicted), "--image", str(image), "--out", str(out), *output]) == 0
    results = pl.read_parquet(out)
    assert results["similarity"][0] == pytest.approx(1, abs=1e-4)
    assert "blue_wall.png" in results.filter(pl.col("similarity") > 1 - 1e-4)["id"]


def test_files_are_there_although_the_table_was_cut_off(predicted, tmp_path, monkeypatch):
    def cut_off(results: pl.DataFrame) -> None:
        raise BrokenPipeError  # as `| head -1` does

    monkeypatch.setattr(search, "print_results", cut_off)
    files = ["--html", str(tmp_path / "page.html"), "--out", str(tmp_path / "table.csv")]
    options = search.arguments([str(predicted), "a red door", *files])
    with pytest.raises(BrokenPipeError):
        search._search(options)
    assert (tmp_path / "page.html").exists() and (tmp_path / "table.csv").exists()


def test_export_hands_over_every_image(predicted, trained, tmp_path):
    told = run_all("export", predicted, "--to", "parquet", "--out", tmp_path / "images.parquet")
    assert "images.parquet: 24 images" in told
    table = pq.read_table(tmp_path / "images.parquet")
    assert {Path(path).parent for path in table["path"].to_pylist()} == {trained / "test"}
    assert {"x", "y", "vector", "neighbors", "text"} <= set(table.column_names)


def test_browse_shows_the_images_until_it_is_interrupted(predicted):
    command = [str(ROOT / "run_all.sh"), "browse", str(predicted), "--port", "0"]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            lines = iter(process.stdout.readline, "")
            address = next(filter(None, (re.search(r"http://127\S+/", line) for line in lines)))[0]
            page = urllib.request.urlopen(f"{address}?q=a+red+door", timeout=60).read().decode()
            image = re.search(r'<img src="(/image/\d+)"', page)[1]
            answer = urllib.request.urlopen(address.rstrip("/") + image, timeout=60)
            assert answer.headers["content-type"] == "image/jpeg"
        finally:
            process.send_signal(signal.SIGINT)  # Ctrl+C
            _, error = process.communicate(timeout=60)
    assert process.returncode == 0 and "Traceback" not in error, error


# --- bad input ---

COMMANDS = {
    "search": lambda file: search.main([str(file), "a fox"]),
    "browse": lambda file: browse.main([str(file), "--port", "0"]),
    "export": lambda file: export.main([str(file), "--out", str(file) + ".out.parquet"]),
}


@pytest.fixture
def bad_files(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """What is given in place of a result, and what is said of it."""
    for name in ("found.csv", "found.npy", "text.parquet"):
        (tmp_path / name).write_text("id,e0\nfox.jpg,1")
    (tmp_path / "folder.parquet").mkdir()
    pl.DataFrame({"id": ["a"], "prompt": ["a fox"]}).write_parquet(tmp_path / "pairs.parquet")
    wide = pl.Series([[0.0] * 512], dtype=pl.Array(pl.Float32, 512))
    pl.DataFrame({"id": ["a"], "embedding": wide}).write_parquet(tmp_path / "clip.parquet")
    schema = {"id": pl.String, "embedding": pl.Array(pl.Float32, 384)}
    pl.DataFrame(schema=schema).write_parquet(tmp_path / "empty.parquet")
    said = {
        "nowhere.parquet": "does not exist: write it by predict",
        "folder.parquet": "is a folder: name the .parquet result of predict",
        "found.csv": "run predict with --out found.parquet",
        "found.npy": "run predict with --out found.parquet",
        "text.parquet": "is not a Parquet file",
        "pairs.parquet": "without ['embedding']: it is not a result of predict",
        "clip.parquet": "its vectors are 512 long, not 384: of another model",
        "empty.parquet": "holds no rows",
    }
    return {name: (tmp_path / name, message) for name, message in said.items()}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_result_is_refused_in_one_line(bad_files, capsys, command):
    for file, message in bad_files.values():
        assert COMMANDS[command](file) == 2, file
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1 and message in said[0] and file.name in said[0], said


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("a folder", "is a folder: a file is to be written there"),
        ("file.txt/page.html", "cannot be written: file.txt is not a folder"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    tmp_path, capsys, monkeypatch, target, message
):
    (tmp_path / "a folder").mkdir()
    (tmp_path / "file.txt").write_text("x")
    out = str(tmp_path / target)
    for module in (search, export):
        monkeypatch.setattr(module, "Index", None)  # is not reached
    assert search.main(["found.parquet", "a fox", "--html", out]) == 2
    assert message in capsys.readouterr().err
    assert export.main(["found.parquet", "--out", out]) == 2
    assert message in capsys.readouterr().err
