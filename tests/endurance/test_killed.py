"""SIGKILL at random moments of the smoke run, started again each time: the submission is the same.

KILLS=40 ./run_tests.sh --endurance -k killed -s
"""

import collections
import os
import shutil
import subprocess
import time

import numpy as np

from tests.endurance import runs

KILLS = int(os.environ.get("KILLS", 40))
SEED = int(os.environ.get("KILL_SEED", 0))


def test_killed_at_random_moments_every_run_ends_with_the_same_submission(tmp_path, capsys):
    began = time.perf_counter()
    command = runs.smoke(tmp_path)
    output = tmp_path / "output"
    log = tmp_path / "log.txt"
    assert runs.begin(command, log).wait() == 0, log.read_text()[-3000:]
    calm = (output / "submission.csv").read_bytes()
    seconds = time.perf_counter() - began
    rng = np.random.default_rng(SEED)
    kills = 0
    rounds = 0
    hit = collections.Counter()
    while kills < KILLS:
        shutil.rmtree(output)
        rounds += 1
        while True:
            log.unlink()
            process = runs.begin(command, log)
            try:
                status = process.wait(rng.uniform(0.5, seconds / 3) if kills < KILLS else None)
            except subprocess.TimeoutExpired:
                kills += 1
                kernel = bool(rng.random() < 0.3)
                hit[f"{runs.stage_of(log)}, {'the kernel' if kernel else 'the runner'}"] += 1
                runs.kill(process, kernel)
                if (
                    process.wait() == 0
                ):  # there was no kernel to kill just then, and it ran to its end
                    break
                continue
            assert status == 0, log.read_text()[-3000:]
            break
        assert (output / "submission.csv").read_bytes() == calm, (
            f"after {kills} kills the submission is another one"
        )
    with capsys.disabled():
        print(
            f"\n{kills} kills in {rounds} runs, all {rounds} with the same submission; "
            f"killed: {dict(sorted(hit.items()))}; {(time.perf_counter() - began) / 60:.0f} minutes"
        )
