"""All five notebooks at 6,000, 20,000 and 90,000 pairs: seconds and peak memory of each stage.

    python benchmarks/scale.py                     draw, run every size, print the table
    python benchmarks/scale.py --rows 6000         one size; --last 03 stops after notebook 03
    python benchmarks/scale.py --report [--plot assets/scale.png]    what has been measured so far

What is drawn and every stage that has run to its end are kept, so a run that was stopped goes on.
The pairs are the demo's scenes, 100,000 prompts without images are in every size. Unlike the
demo's, families of near-duplicates are not kept apart from each other: 90,000 rows need 59,000
families, and the grammar has 12,264 combinations of first subject and setting. Reduced against the
demo's parameters: one epoch of each training, no ablations. Everything else has its default.

Memory is that of the stage's whole process tree, sampled every second. `held` is what cannot
be given back (anonymous and shared memory), `mapped` adds the file pages that are mapped at the
moment, of the pixel cache above all, which the kernel may drop at any time.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import polars as pl
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from src.demo.folder import save_jpeg, save_png
from src.demo.grammar import Scene, compose, prompt, vary
from src.demo.population import ROWS_PER_FAMILY, repeats
from src.demo.weights import write_clip
from src.paths import STAGES

SIZES = (6_000, 20_000, 90_000)
TEXT_PROMPTS = 100_000
TEST_SCENES = 500
IMAGE_SIZE = 256  # pixels, as in the demo
CLIP_SIZE = 128
CHUNK = 500  # images a task draws
INTERVAL = 1.0  # seconds between two samples of the memory
GIB = 2**30

PARAMETERS = """common:
  train: {drawn}/pairs-{rows}.csv
  test: {drawn}/test
  text_only: {drawn}/text.txt
  clip: local-dir:{drawn}/clip
  output_dir: {folder}/output

02_train_model_a:
  epochs: 1
  baseline_epochs: 1
  ablation_epochs: 0

03_cuml_knn_model_b:
  ablation: false
"""


# --- what is drawn ---


def population(rng: np.random.Generator, rows: int) -> list[Scene]:
    """`rows` scenes, family by family, so that every beginning repeats as the whole does."""
    sizes = repeats(round(1.02 * rows / ROWS_PER_FAMILY))
    scenes: list[Scene] = []
    for size in rng.permutation(sizes):
        scene = compose(rng)
        scenes.append(scene)
        scenes += [vary(scene, rng) for _ in range(size - 1)]
    return scenes[:rows]


def other_prompts(rng: np.random.Generator, n: int, taken: set[str]) -> list[str]:
    """`n` distinct prompts, none of `taken`."""
    prompts: dict[str, None] = {}
    while len(prompts) < n:
        text = prompt(compose(rng))
        if text not in taken:
            prompts[text] = None
    return list(prompts)


def draw_chunk(jobs: list[tuple[Scene, int, Path]]) -> int:
    """Draw the images of `jobs` that are not there yet; the number of jobs."""
    for scene, size, path in jobs:
        if path.exists():
            continue
        save = save_jpeg if path.suffix == ".jpg" else save_png
        temporary = path.with_name(f"unfinished-{path.name}")
        save((scene, size, temporary))
        temporary.rename(path)
    return len(jobs)


def draw(folder: Path, rows: int) -> None:
    """Write the table of `rows` pairs with its images, the test images, prompts and the CLIP."""
    table = folder / f"pairs-{rows}.csv"
    if table.exists():
        return

    largest = max(SIZES)
    scenes = population(np.random.default_rng([0, *b"scale"]), max(rows, largest))
    texts = [prompt(scene) for scene in scenes]
    names = [f"images/{i:06d}.jpg" for i in range(rows)]
    jobs = [(scenes[i], IMAGE_SIZE, folder / name) for i, name in enumerate(names)]

    test_rng = np.random.default_rng([0, *b"scale test"])
    test_names = [f"test/images/{i:06d}.png" for i in range(TEST_SCENES)]
    jobs += [(compose(test_rng), IMAGE_SIZE, folder / name) for name in test_names]

    for part in ("images", "test/images"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
    workers = len(os.sched_getaffinity(0))
    start = time.perf_counter()
    drawn = 0
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for count in pool.map(draw_chunk, chunks):
            drawn += count
            print(f"drawn {drawn:,} in {time.perf_counter() - start:.0f} s", flush=True)

    text = folder / "text.txt"
    if not text.exists():
        others = other_prompts(np.random.default_rng([0, *b"text"]), TEXT_PROMPTS, set(texts))
        text.write_text("\n".join(others) + "\n", encoding="utf-8")
    if not (folder / "clip").exists():
        write_clip(folder / "clip", CLIP_SIZE)

    # whole families stand together: in random order, as in a real set
    order = np.random.default_rng([0, *b"order"]).permutation(rows)
    pairs = pl.DataFrame({"file_name": names, "prompt": texts[:rows]})
    pairs[order].write_csv(table)


# --- a stage, and what it takes ---


class MemoryOfTree:
    """The most memory that a process and all its descendants hold at once, sampled in a thread."""

    def __init__(self, pid: int):
        self.pid = pid
        self.held = 0  # bytes, anonymous and shared
        self.mapped = 0  # bytes, with mapped files
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.done.wait(INTERVAL):
            held, mapped = self._sample()
            self.held = max(self.held, held)
            self.mapped = max(self.mapped, mapped)

    def _sample(self) -> tuple[int, int]:
        held = 0
        mapped = 0
        try:
            root = psutil.Process(self.pid)
            processes = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0, 0
        for process in processes:
            try:
                # each page counts once, however many processes share it
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            except OSError:  # a worker may end at any moment
                continue
            lines = dict(line.split(":") for line in text.splitlines()[1:])
            kib = {name: int(value.split()[0]) for name, value in lines.items()}
            held += 1024 * (kib["Pss_Anon"] + kib["Pss_Shmem"])
            mapped += 1024 * kib["Pss"]
        return held, mapped

    def stop(self) -> None:
        self.done.set()
        self.thread.join()


def run_stage(parameters: Path, stage: str) -> None:
    """Execute the notebook of a stage in this process's own kernel."""
    from src.runner import execute
    from src.runner.plan import Pipeline, make_plan

    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    plan = make_plan(Pipeline(), str(parameters), [])
    with execute.logged(plan.output):
        execute.run_stage(plan, stage)


def measured(parameters: Path, stage: str) -> dict:
    """Run a stage in a process of its own: wall and CPU seconds, memory, and its longest cells."""
    command = [sys.executable, __file__, "--stage", stage, "--parameters", str(parameters)]
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT)
    memory = MemoryOfTree(process.pid)

    # the rusage of wait4 counts the process and all its descendants that were waited for
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    memory.stop()
    if status:
        raise SystemExit(f"{stage} failed at {parameters}")

    executed = json.loads((parameters.parent / f"output/executed/{stage}.ipynb").read_text())
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "held_gib": memory.held / GIB,
        "mapped_gib": memory.mapped / GIB,
        "cells": longest_cells(executed),
        "threads": len(os.sched_getaffinity(0)),
    }


def longest_cells(executed: dict, share: float = 0.04) -> list[tuple[str, float]]:
    """(first line of code, seconds) of each cell that takes more than `share` of the notebook."""
    cells = []
    for cell in executed["cells"]:
        duration = cell["metadata"].get("papermill", {}).get("duration")
        if cell["cell_type"] == "code" and duration:
            source = "".join(cell["source"])
            cells.append((source.strip().splitlines()[0][:70], duration))
    total = sum(seconds for _, seconds in cells)
    return [(source, seconds) for source, seconds in cells if seconds > share * total]


def run_size(folder: Path, rows: int, last: str) -> None:
    """Draw what is missing, and run the stages up to `last` that have not been measured yet."""
    draw(folder / "drawn", rows)
    own = folder / f"rows-{rows}"
    own.mkdir(exist_ok=True)
    parameters = own / "scale.yaml"
    text = PARAMETERS.format(drawn=folder / "drawn", folder=own, rows=rows)
    parameters.write_text(text, encoding="utf-8")

    results = own / "scale.json"
    done = json.loads(results.read_text()) if results.exists() else {}
    for stage in STAGES:
        if stage in done or stage[:2] > last:
            continue
        print(f"\n{rows:,} rows, {stage}", flush=True)
        done[stage] = measured(parameters, stage)
        done["rows"] = kept_rows(own)
        results.write_text(json.dumps(done, indent=1))
        print({name: value for name, value in done[stage].items() if name != "cells"}, flush=True)


def kept_rows(own: Path) -> dict[str, int]:
    """Rows in all, and those that filters 1 and 2 keep."""
    meta = json.loads((own / "output/01_dedup/meta.json").read_text())
    return {name: meta[name] for name in ("rows", "filter1", "filter2")}


# --- what is printed ---


def load(folder: Path, sizes: list[int]) -> dict[int, dict]:
    """What has been measured, by size."""
    files = {rows: folder / f"rows-{rows}" / "scale.json" for rows in sizes}
    return {rows: json.loads(file.read_text()) for rows, file in files.items() if file.exists()}


def report(results: dict[int, dict]) -> None:
    """Print the stages against rows, and the cells that take most of each stage."""
    for rows, done in results.items():
        kept = done["rows"]
        print(f"{rows:,} pairs: filter 1 keeps {kept['filter1']:,}, filter 2 {kept['filter2']:,}")

    columns = f"{'seconds':>9} {'CPU s':>9} {'held GiB':>9} {'mapped GiB':>11} {'CPU s, rows^':>13}"
    print(f"\n{'stage':22} {'pairs':>8} {columns}")
    for stage in STAGES:
        before: tuple[int, float] | None = None
        for rows, done in results.items():
            if stage not in done:
                continue
            cost = done[stage]
            power = ""
            if before:
                power = f"{growth(*before, rows, cost['cpu_seconds']):.2f}"
            before = (rows, cost["cpu_seconds"])
            numbers = f"{cost['seconds']:9.0f} {cost['cpu_seconds']:9.0f} {cost['held_gib']:9.2f}"
            print(f"{stage:22} {rows:8,} {numbers} {cost['mapped_gib']:11.2f} {power:>13}")

    print("\ncells with more than 4 % of their notebook, in seconds")
    for stage in STAGES:
        for rows, done in results.items():
            for source, seconds in done.get(stage, {}).get("cells", []):
                print(f"{stage[:2]} {rows:8,} {seconds:9.1f}  {source}")


def growth(few: int, short: float, many: int, long: float) -> float:
    """The power of the rows with which the time grows between two sizes."""
    return float(np.log(long / short) / np.log(many / few))


def plot(results: dict[int, dict], file: Path) -> None:
    """CPU seconds and held memory of each stage against rows, on logarithmic axes."""
    import matplotlib.pyplot as plt

    from src import plots

    figure, (time_axes, memory_axes) = plt.subplots(1, 2, figsize=(8, 3))
    panels: list[tuple[plt.Axes, str, Callable]] = [
        (time_axes, "cpu_seconds", time_axes.loglog),
        (memory_axes, "held_gib", memory_axes.semilogx),
    ]
    for axes, what, draw_line in panels:
        for stage in STAGES:
            points = [(rows, done[stage][what]) for rows, done in results.items() if stage in done]
            if not points:
                continue
            draw_line(*zip(*points, strict=True), "o-", label=stage[:2], markersize=3)
        axes.set(xlabel="pairs")
        axes.set_xticks(list(results), [f"{rows:,}" for rows in results])
        axes.minorticks_off()
    time_axes.set(title="CPU seconds of each notebook")
    memory_axes.set(title="peak memory held, GiB", ylim=(0, None))
    memory_axes.legend()
    plots.save(figure, file)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=list(SIZES), help="pairs")
    parser.add_argument("--folder", type=Path, default=ROOT / "output" / "scale")
    parser.add_argument("--report", action="store_true", help="print what has been measured")
    parser.add_argument("--draw", action="store_true", help="draw the images only")
    parser.add_argument("--last", default="05", metavar="03", help="stop after this notebook")
    parser.add_argument("--plot", type=Path, help="draw the figure into this PNG")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--parameters", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        run_stage(options.parameters, options.stage)
        sys.exit()

    folder = options.folder.resolve()
    if not options.report:
        for rows in options.rows:
            if options.draw:
                draw(folder / "drawn", rows)
            else:
                run_size(folder, rows, options.last)
    results = load(folder, options.rows)
    if results:
        report(results)
    if options.plot:
        plot(results, options.plot)
