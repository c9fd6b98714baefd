"""What the benchmarks share: competitors timed in turns, the table of their ratios, command lines,
the machine's name, peak memory.

Ratios are of times taken in one run, in turns, so that a busy machine weighs on both sides alike.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def in_turns(
    functions: dict[str, Callable], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each function, called one after the other, `repeats` times over."""
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = clock()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # a GPU goes on after the call that started it
            seconds[name].append(clock() - start)
    return seconds


def table(seconds: dict[str, list[float]], base: str) -> None:
    """Print median seconds of each competitor and its ratio to `base`, turn by turn."""
    print(
        f"{'':>24} {'median s':>9} {'lowest - highest':>18} "
        f"{'ratio, median':>14} {'lowest - highest':>18} {'of the lowest':>14}"
    )
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds[base], strict=True)]
        print(
            f"{name:>24} {statistics.median(times):9.2f} {min(times):9.2f} - {max(times):6.2f} "
            f"{statistics.median(ratios):14.3f} {min(ratios):9.3f} - {max(ratios):6.3f} "
            f"{min(times) / min(seconds[base]):14.3f}",
            flush=True,
        )


def compare(
    functions: dict[str, Callable],
    repeats: int,
    base: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """`in_turns` after a turn that loads libraries and takes memory, with its table."""
    in_turns(functions, 1)
    seconds = in_turns(functions, repeats, clock)
    table(seconds, base)
    return seconds


def measure_parser(description: str | None, measures: Iterable[str]) -> argparse.ArgumentParser:
    """A command line that begins with which of a script's `measures` to take."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measure", choices=measures)
    return parser


def machine() -> str:
    """The processor, the threads that torch uses, and torch's version."""
    processor = next(
        (
            line.split(": ")[1].strip()
            for line in open("/proc/cpuinfo")
            if line.startswith("model name")
        ),
        "?",
    )
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def reset_peak() -> float:
    """Let `peak_mib` count anew from the memory held now, which is returned in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mib()


def peak_mib() -> float:
    """The most memory this process has held, from the kernel.

    getrusage would count what its parent held when it started.
    """
    return (
        next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
        / 1024
    )
