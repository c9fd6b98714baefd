"""Five toy notebooks that take no time, and the runner on them."""

from pathlib import Path

import nbformat

from src.paths import ROOT, STAGES
from src.runner import cli
from src.runner.plan import Pipeline

BODY = """import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from src import artifacts
out = Path(output_dir)
if {number} == 3 and n < 0:
    raise ValueError("n is negative: " + str(n))
(out / "{stage}").mkdir(parents=True, exist_ok=True)
(out / "{stage}" / "result.txt").write_text(str(n))
if {number} == 5:
    (out / "submission.csv").write_text("imgId_eId,val")
if {number} == 4:
    (out / "table1.csv").write_text("model,score\\nEnsemble,0.5")
if n != 99:
    artifacts.write_meta(out / "{stage}", rows=n)"""
PARAMETERS = """output_dir = "output"  # a folder
n = 1  # a count
rate: float = 0.5  # a share
train: str | list = "train"  # a source
truth: str | None = None  # a file"""


def write_toy_pipeline(folder: Path) -> Path:
    """Five notebooks, a training folder and params.yaml that knows both."""
    for part in ("notebooks", "train"):
        (folder / part).mkdir()
    (folder / "train" / "ant.txt").write_text("an ant")
    for number, stage in enumerate(STAGES, start=1):
        write_notebook(folder, stage, BODY.format(root=str(ROOT), number=number, stage=stage))
    (folder / "params.yaml").write_text(
        f"common:\n  output_dir: {folder / 'out'}\n  train: {folder / 'train'}\n"
    )
    return folder


def write_notebook(toy: Path, stage: str, body: str) -> None:
    cells = [
        nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(body),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata=kernel), toy / "notebooks" / f"{stage}.ipynb"
    )


def nothing_wrong(per_stage: dict[str, dict]) -> list[str]:
    """The toy notebooks have none of the parameters that the real check knows."""
    return []


def run(toy: Path, *arguments: str, command: str | None = None) -> int:
    words = [command] if command else []
    words += ["--params", str(toy / "params.yaml"), *arguments]
    return cli.main(words, Pipeline(toy / "notebooks", nothing_wrong))
