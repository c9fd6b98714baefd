"""What the checks before a run look at: a small right setup."""

from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from src.runner import params
from tests.helpers import toy_training


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Path:
    """A small CLIP, six training images with metadata.csv, two test images, a text file."""
    folder = tmp_path_factory.mktemp("preflight")
    toy_training.write_clip(folder / "clip")
    for part, n in (("train", 6), ("test/images", 2)):
        (folder / part).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (40, 40), (40 * i, 90, 200 - 30 * i)).save(folder / part / f"p{i}.png")
    rows = pl.DataFrame(
        {
            "file_name": [f"p{i}.png" for i in range(6)],
            "prompt": [f"a plain square number {i}" for i in range(6)],
        }
    )
    rows.write_csv(folder / "train" / "metadata.csv")
    (folder / "prompts.txt").write_text("a red door\na blue wall\n")
    return folder


@pytest.fixture
def per_stage(disk, tmp_path) -> dict[str, dict]:
    """The real notebooks' parameters, set to what is on `disk`."""
    common = {
        "train": str(disk / "train"),
        "test": str(disk / "test"),
        "text_only": str(disk / "prompts.txt"),
        "clip": f"local-dir:{disk / 'clip'}",
        "output_dir": str(tmp_path / "out"),
        "device": "cpu",
    }
    return params.stage_params({"common": common}, "test")
