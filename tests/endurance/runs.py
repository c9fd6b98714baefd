"""The smoke run as a process: begun, killed, waited for."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from src import demo
from src.paths import ROOT


def smoke(folder: Path, output: Path | None = None, **sizes: int) -> list[str]:
    """Write the smoke demo, of other `sizes` where given, into `folder` once.

    Returns the command that runs it into `output`, by default `folder`/output.
    """
    given = yaml.safe_load((ROOT / "params" / "smoke.yaml").read_text(encoding="utf-8"))
    text = yaml.safe_dump(given).replace("input/smoke", str(folder / "input"))
    given = yaml.safe_load(text)
    given["common"]["output_dir"] = str(output or folder / "output")
    settings = given.pop("demo")
    if not (folder / "input" / demo.STAMP).exists():
        demo.write(Path(settings.pop("folder")), **{**settings, **sizes})
    file = folder / f"{(output or folder / 'output').name}.yaml"
    file.write_text(yaml.safe_dump(given), encoding="utf-8")
    return [sys.executable, "-m", "src.runner.cli", "--params", str(file)]


def begin(command: list[str], log: Path) -> subprocess.Popen:
    """Start it, what it says going to `log`."""
    with log.open("a", encoding="utf-8") as stream:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )


def stage_of(log: Path) -> str:
    """The stage that a run was in when its log ended."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    begun = [line.split(":")[0][4:] for line in lines if line.startswith("=== ")]
    return begun[-1] if begun else "before the first"


def kill(process: subprocess.Popen, kernel: bool) -> None:
    """SIGKILL the runner, or only the notebook's kernel, as the out-of-memory killer does."""
    if kernel:
        for child in psutil.Process(process.pid).children(recursive=True):
            if "ipykernel_launcher" in " ".join(child.cmdline()):
                child.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)


def largest(process: subprocess.Popen) -> int:
    """Resident bytes of the largest process of a run."""
    sizes = [0]
    with suppress(psutil.NoSuchProcess):
        whole = psutil.Process(process.pid)
        for one in (whole, *whole.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                sizes.append(one.memory_info().rss)
    return max(sizes)
