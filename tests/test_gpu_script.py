"""Every command of benchmarks/gpu_all.sh is one that its program takes."""

import re
import shlex
import subprocess
import sys

import pytest
import torch

from src.paths import ROOT
from src.runner import params
from src.submit import batch

SCRIPT = ROOT / "benchmarks/gpu_all.sh"


def steps() -> dict[str, list[str]]:
    """The commands of the script's steps by name, without the time limit."""
    text = SCRIPT.read_text().replace("\\\n", " ").replace('"$python"', "python")
    words = [shlex.split(line) for line in re.findall(r"^  step (\d.*)$", text, flags=re.MULTILINE)]
    return {name: command for _, name, *command in words}


def test_the_steps_are_the_ones_that_the_documentation_names():
    table = (ROOT / "docs/gpu.md").read_text()
    assert len(steps()) == 6
    for name in steps():
        assert f"| {name} |" in table


def test_notebooks_and_predict_take_their_options():
    notebooks = steps()["notebooks"]
    assert notebooks[0] == "./run_all.sh" and notebooks[1::2] == ["--set"] * 3
    # a name that no notebook has raises
    file = "params/demo.yaml"
    changed = params.stage_params(params.load_params(file, notebooks[2::2]), file)
    assert changed["02_train_model_a"]["ablation_epochs"] == 0
    assert changed["03_cuml_knn_model_b"]["ablation"] is False

    command, sub_command, *options = steps()["predict"]
    assert (command, sub_command) == ("./run_all.sh", "predict")
    given = batch.arguments(options)
    assert given.output == changed["05_submit"]["output_dir"]
    # the demo's test images, which the notebooks' step has drawn
    assert given.images.startswith(changed["05_submit"]["test"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="would run: there is a GPU")
@pytest.mark.parametrize("name", ["tests", "search", "ViT-L training", "ViT-L encoding"])
def test_programs_take_their_options(name):
    command = [sys.executable, *steps()[name][1:]]
    if name == "tests":
        command.append("--collect-only")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if name == "tests":
        assert done.returncode == 0 and "tests/test_gpu.py" in done.stdout
        return
    # the program's own refusal comes once it has read its options
    assert done.returncode == 1 and done.stderr.startswith("torch sees no CUDA GPU"), done.stderr
