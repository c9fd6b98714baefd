"""The disk fills up in each stage: a clear message, nothing half-written, and the run can go on."""

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from src.paths import STAGES
from tests.endurance import runs

SIZE = 1500  # MiB of the small disk


@pytest.fixture
def small_disk(tmp_path) -> Path:
    """A tmpfs of `SIZE` MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        os.geteuid()
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "tmpfs", folder]
        ).returncode
    ):
        pytest.skip("a tmpfs can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path, leave: int) -> Path:
    """A file that leaves `leave` bytes of the disk free."""
    ballast = folder / "ballast"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - leave)
    return ballast


def assert_whole(output: Path) -> None:
    """Every artifact with its own name can be read; no temporary one is left."""
    for file in (f for f in output.rglob("*") if f.is_file()):
        assert ".tmp" not in file.name, file
        if file.suffix == ".parquet":
            pl.read_parquet(file)
        elif file.suffix == ".npy":
            np.load(file, mmap_mode="r")


def test_disk_full_in_each_stage(tmp_path, small_disk, capsys):
    calm = runs.smoke(tmp_path)
    output = small_disk / "output"
    log = tmp_path / "log.txt"
    assert runs.begin(calm, log).wait() == 0, log.read_text()[-3000:]
    command = runs.smoke(tmp_path, output)
    said = {}
    for stage in STAGES:
        log.unlink()
        process = runs.begin(command, log)
        while process.poll() is None and not (log.exists() and f"=== {stage}" in log.read_text()):
            time.sleep(0.1)
        ballast = fill(small_disk, leave=200_000)
        assert process.wait() != 0, f"{stage} went through on a full disk"
        text = log.read_text()
        assert "make room" in text and "Traceback" not in text.split(f"{stage} failed.")[-1], text[
            -3000:
        ]
        said[stage] = [line for line in text.splitlines() if "make room" in line][-1]
        assert_whole(output)
        ballast.unlink()
    assert runs.begin(command, log).wait() == 0, log.read_text()[-3000:]
    assert (output / "submission.csv").read_bytes() == (
        tmp_path / "output" / "submission.csv"
    ).read_bytes()
    with capsys.disabled():
        print("\n" + "\n".join(f"{stage}: {line}" for stage, line in said.items()))
