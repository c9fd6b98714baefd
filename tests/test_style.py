"""The style that a tool can check: the linter and the type checker find nothing."""

import os
import subprocess
import sys

from src.paths import ROOT


def test_ruff_finds_nothing():
    folders = ["src", "tests", "notebooks", "benchmarks", "tools"]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_mypy_finds_nothing():
    command = [sys.executable, "-m", "mypy", "--no-incremental", "--cache-dir", os.devnull]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
