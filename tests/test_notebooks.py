"""The real notebooks: their form, their parameters, and a run of them all on the smoke demo."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import polars as pl
import pytest
import yaml

from src import artifacts, paths
from src.ensemble import table1
from src.paths import ROOT, STAGES
from src.runner import params, plan, staleness
from src.submit import pack, submission
from src.submit.predictor import Predictor

PACKAGES = {"01": "dedup", "02": "model_a", "03": "model_b", "04": "ensemble", "05": "submit"}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_is_one_notebook_for_each_stage():
    assert [n.stem for n in NOTEBOOKS] == list(STAGES)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_form(file):
    cells = nbformat.read(file, as_version=4).cells
    opening = cells[0].source
    assert cells[0].cell_type == "markdown" and opening.startswith(f"# {file.stem[:2]} · ")
    assert all(word in opening for word in ("**In:**", "**Out:**", "**Time:**"))
    code = [c for c in cells if c.cell_type == "code"]
    assert "parameters" in code[0].metadata.get("tags", []), "the parameters come first"
    assert sum("parameters" in c.metadata.get("tags", []) for c in code) == 1
    for cell in code:
        assert not cell.outputs and cell.execution_count is None, "committed with outputs"
        assert len(cell.source.splitlines()) <= 25 or cell is code[0], cell.source.splitlines()[0]
        tree = ast.parse(cell.source)
        assert not any(isinstance(node, ast.ClassDef) for node in ast.walk(tree)), (
            "a class belongs in src/"
        )
        assert not re.search(
            r"import \*|[\"'](/home|/root|/kaggle|/tmp|/content|~/)", cell.source
        ), cell.source


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_parameters_are_literals_with_a_comment_each(file):
    cells = nbformat.read(file, as_version=4).cells
    source = next(c.source for c in cells if "parameters" in c.metadata.get("tags", []))
    assert params.declared(file)
    for node in ast.parse(source).body:
        assert "#" in source.splitlines()[node.end_lineno - 1], ast.unparse(node)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_a_stage_needs_every_stage_whose_artifacts_its_notebook_names(file):
    cells = nbformat.read(file, as_version=4).cells
    sources = [c.source for c in cells if c.cell_type == "code"]
    package = ROOT / "src" / PACKAGES[file.stem[:2]]
    sources += [
        module.read_text(encoding="utf-8")
        for module in staleness.source_files(file)
        if module.parent == package
    ]
    source = "\n".join(sources)
    named = {
        str(getattr(paths, name)).split("/")[0]
        for name in re.findall(r"paths\.([A-Z][A-Z0-9_]*)\b", source)
    }
    named |= set(re.findall(r'"(\d\d_\w+)"', source))
    if "paths.TABLE1" in source and file.stem != "04_ensemble_oof":
        named.add("04_ensemble_oof")
    assert named & set(STAGES) - {file.stem} == set(staleness.NEEDS[file.stem])


@pytest.mark.parametrize("name", ["demo", "smoke", "paper", "competition"])
def test_parameters_files_fit_the_notebooks(name):
    file = f"params/{name}.yaml"
    assert params.stage_params(params.load_params(file, []), file)


def smoke_params(folder: Path) -> Path:
    """smoke.yaml with input/smoke and output/smoke moved into `folder`."""
    text = (ROOT / "params" / "smoke.yaml").read_text(encoding="utf-8")
    moved = text.replace("input/smoke", str(folder / "input")).replace(
        "output/smoke", str(folder / "output")
    )
    assert yaml.safe_load(moved)["common"]["output_dir"] == str(folder / "output")
    (folder / "smoke.yaml").write_text(moved, encoding="utf-8")
    return folder / "smoke.yaml"


def test_smoke_run_reaches_a_checked_submission_and_is_then_up_to_date(tmp_path):
    """A corrupt image and an empty prompt are set aside, counted, listed; nothing else is lost."""
    command = [sys.executable, "-m", "src.runner.cli", "--params", str(smoke_params(tmp_path))]
    settings = yaml.safe_load((tmp_path / "smoke.yaml").read_text(encoding="utf-8"))["demo"]
    plan.write_demo(
        Path(settings.pop("folder")), settings
    )  # as the runner does; before it, so that an image can be spoilt
    train = tmp_path / "input" / "train"
    (train / "images" / "000007.jpg").write_bytes(b"no image")
    table = pl.read_csv(train / "metadata.csv")
    table.with_columns(
        prompt=pl.when(pl.col("file_name") == "images/000009.jpg")
        .then(pl.lit(" "))
        .otherwise("prompt")
    ).write_csv(train / "metadata.csv")
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    sample = next((tmp_path / "input" / "test").glob("sample_submission.csv"))
    submission.check(tmp_path / "output" / "submission", sample)
    rejected = pl.read_parquet(tmp_path / "output" / "01_dedup" / "rejected.parquet")
    assert (
        len(rejected) == 2
        and len(pl.read_parquet(tmp_path / "output" / "01_dedup" / "pairs.parquet"))
        == len(table) - 2
    )
    assert sorted(rejected["reason"].str.head(12)) == ["empty prompt", "unreadable i"], rejected
    models = pl.read_csv(tmp_path / "output" / "table1.csv")["model"].to_list()
    assert models == [table1.MEAN_PROMPT, *table1.PAPER]
    on_test = artifacts.load_table(tmp_path / "output" / paths.TEST_SCORES)
    assert on_test["model"].to_list()[:7] == models
    predictor = Predictor(
        tmp_path / "output", device="cpu"
    )  # two members of Model A, and the routes that have a share
    images = sorted((tmp_path / "input" / "test" / "images").iterdir())[:6]
    _, submitted = artifacts.load_embeddings(
        tmp_path / "output" / "submission", [file.stem for file in images]
    )
    offered = artifacts.load_json(tmp_path / "output" / paths.MEMBERS_B)["clip"]
    parts = artifacts.load_json(tmp_path / "output" / paths.CHOICE_B)["parts"]
    assert len(offered) == 2, "routes by two CLIPs were tried"
    assert set(predictor.clips_b) == {part["route"]["clip"] for part in parts} <= set(offered)
    assert predictor(images).embedding == pytest.approx(submitted, abs=1e-3)
    pack.write(tmp_path / "output", tmp_path / "pack")  # both sizes of the one CLIP
    packed = [
        sys.executable,
        "run.py",
        "--images",
        str(images[0].parent),
        "--out",
        str(tmp_path / "new.parquet"),
    ]
    elsewhere = subprocess.run(
        packed, cwd=tmp_path / "pack", capture_output=True, text=True, timeout=300
    )
    assert elsewhere.returncode == 0, elsewhere.stdout + elsewhere.stderr
    new = pl.read_parquet(tmp_path / "new.parquet").sort("id")["embedding"].to_numpy()
    assert (
        new[:6] == pytest.approx(submitted, abs=1e-3)
        and len(list((tmp_path / "pack" / "clip").iterdir())) == 1
    )
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert second.returncode == 0 and "everything is up to date" in second.stdout, (
        second.stdout + second.stderr
    )


def test_the_configuration_page_is_that_of_the_notebooks():
    page = subprocess.run(
        [
            sys.executable,
            "-c",
            "from tools import write_configuration as w; print(w.page(), end='')",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page.stdout == written, "run python tools/write_configuration.py"
