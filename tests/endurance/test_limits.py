"""The whole pipeline in little memory, and on a large set of which one image in twenty is bad.

What counts is resident memory. A limit on what is mapped (RLIMIT_AS, RLIMIT_DATA) would count what
CUDA's libraries, OpenBLAS and polars' allocator reserve and never touch: 4.1 GB beside 1.8 GB in
use.
"""

import subprocess
import time

import polars as pl

from src.paths import ROOT
from src.submit import submission
from tests.endurance import runs

GIB = 2**30


def test_no_process_of_the_smoke_run_uses_three_gib(tmp_path, capsys):
    log = tmp_path / "log.txt"
    most = 0
    process = runs.begin(runs.smoke(tmp_path), log)
    while process.poll() is None:
        most = max(most, runs.largest(process))
        time.sleep(0.05)
    assert process.returncode == 0, log.read_text()[-3000:]
    assert GIB / 2 < most < 3 * GIB
    submission.check(
        tmp_path / "output" / "submission", tmp_path / "input" / "test" / "sample_submission.csv"
    )
    with capsys.disabled():
        print(f"\n{most / GIB:.2f} GiB in the largest process")


def test_eight_thousand_images_of_which_one_in_twenty_is_bad(tmp_path, capsys):
    command = runs.smoke(tmp_path, train_scenes=8000, image_size=96)
    train = tmp_path / "input" / "train"
    files = sorted((train / "images").iterdir())
    assert len(files) == 8000
    damage = (
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"<html>not found</html>",
        lambda content: content[:300] + bytes(200) + content[500:],
    )
    bad = files[::20]
    for i, file in enumerate(bad):
        file.write_bytes(damage[i % 3](file.read_bytes()))
    scratched = files[1::400]  # damage that a decoder may or may not notice
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
    submission.check(
        tmp_path / "output" / "submission", tmp_path / "input" / "test" / "sample_submission.csv"
    )
    with capsys.disabled():
        print(
            "\n" + str(rejected.group_by(pl.col("reason").str.head(40)).len()), done.stdout[-900:]
        )
