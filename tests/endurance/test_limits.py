"""The whole pipeline in little memory, and on a large set of which one picture in twenty is bad.

Memory is limited by RLIMIT_DATA, what a process may map for itself. A limit on the address space would count the CUDA libraries
that torch maps, 3.2 GB at its import alone; what libraries reserve here and never touch (CUDA's tables, faiss's buffers) is
measured first and added.
"""

import resource
import subprocess
import sys

import polars as pl

from src import submission
from src.paths import ROOT
from tests.endurance import runs

GIB = 2**30
UNTOUCHED = """
import faiss, numpy, torch
faiss.knn(numpy.ones((100, 384), "float32"), numpy.ones((100, 384), "float32"), 1)
kib = lambda file, name: next(int(line.split()[1]) for line in open(f"/proc/self/{file}") if line.startswith(name))
print((kib("status", "VmData:") - kib("smaps_rollup", "Private_Dirty:")) << 10)
"""


def test_smoke_run_with_three_gib_a_process(tmp_path):
    untouched = int(subprocess.run([sys.executable, "-c", UNTOUCHED], capture_output=True, text=True, check=True).stdout)
    assert untouched < 1.5 * GIB
    most = 3 * GIB + untouched
    done = subprocess.run(runs.smoke(tmp_path), cwd=ROOT, capture_output=True, text=True,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (most, most)))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    submission.check(tmp_path / "output" / "submission", tmp_path / "input" / "test" / "sample_submission.csv")


def test_eight_thousand_pictures_of_which_one_in_twenty_is_bad(tmp_path, capsys):
    command = runs.smoke(tmp_path, train_scenes=8000, train_size=96)
    train = tmp_path / "input" / "train"
    files = sorted((train / "images").iterdir())
    assert len(files) == 8000
    damage = (lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"<html>not found</html>",
              lambda content: content[:300] + bytes(200) + content[500:])
    bad = files[::20]
    for i, file in enumerate(bad):
        file.write_bytes(damage[i % 3](file.read_bytes()))
    scratched = [file for file in files[1::400]]  # damage that a decoder may or may not notice
    for file in scratched:
        file.write_bytes(damage[3](file.read_bytes()))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rejected = pl.read_parquet(tmp_path / "output" / "01_dedup" / "rejected.parquet")
    pairs = pl.read_parquet(tmp_path / "output" / "01_dedup" / "pairs.parquet")
    named = {f"images/{file.name}" for file in bad}
    assert len(pairs) + len(rejected) == 8000 and len(bad) == 400
    assert sum(any(image.endswith(name) for name in named) for image in rejected["image"]) == 400
    assert len(rejected) <= 400 + len(scratched)
    submission.check(tmp_path / "output" / "submission", tmp_path / "input" / "test" / "sample_submission.csv")
    with capsys.disabled():
        print("\n" + str(rejected.group_by(pl.col("reason").str.head(40)).len()), done.stdout[-900:])
