"""Whether two commits give the same result: the same run by both, in copies of their own, compared.

    python tools/compare_runs.py 404dc37 HEAD [--params params/smoke.yaml]

Both commits are checked out below a temporary folder and run with this interpreter's packages. The
submissions must be equal to the byte, and Table 1 equal in all but its seconds. Exit status 1 where
they are not. With --data FOLDER, for example input/smoke, both use that folder as it is, so that a
change of the demo's own drawings does not count.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl
import yaml

ROOT = Path(__file__).resolve().parents[1]


def run(commit: str, folder: Path, params: str, data: str | None) -> Path:
    """Check `commit` out into `folder` and run it there; its output folder."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    subprocess.run(["git", "checkout", "-q", commit], cwd=folder, check=True)
    if data:
        shutil.copytree(ROOT / data, folder / data)

    environment = os.environ | {"SKIP_INSTALL": "1", "PYTHON": sys.executable}
    command = ["./run_all.sh", "--params", params]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{commit} ended with status {done.returncode}:\n{done.stderr[-3000:]}")

    values = yaml.safe_load((folder / params).read_text(encoding="utf-8"))
    return folder / values["common"]["output_dir"]


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two outputs, in words."""
    differing = []
    if (one / "submission.csv").read_bytes() != (other / "submission.csv").read_bytes():
        differing.append("submission.csv differs")

    tables = [pl.read_csv(output / "table1.csv").drop("seconds") for output in (one, other)]
    if not tables[0].equals(tables[1]):
        differing.append(f"table1.csv differs:\n{tables[0]}\n{tables[1]}")
    return differing


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", help="a commit")
    parser.add_argument("after", help="another commit")
    parser.add_argument("--params", default="params/smoke.yaml")
    parser.add_argument("--data", metavar="FOLDER", help="data of this checkout that both use")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        outputs = []
        for name in ("before", "after"):
            commit = getattr(options, name)
            revision = ["git", "rev-parse", commit]
            commit = subprocess.check_output(revision, cwd=ROOT, text=True).strip()
            print(f"running {commit[:10]}", flush=True)
            outputs.append(run(commit, Path(folder, name), options.params, options.data))
        different = differences(*outputs)

    equal = "submission.csv equal to the byte, table1.csv equal but for seconds"
    print("\n".join(different) or equal)
    return bool(different)


if __name__ == "__main__":
    sys.exit(main())
