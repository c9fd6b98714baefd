"""The training loop and prediction as shares of the bare model's rate on a batch in memory.

    python benchmarks/train.py loop       the loop against a bare forward, backward and step
    python benchmarks/train.py predict    of prediction over a bare forward
    python benchmarks/train.py rows       cost of an epoch against rows

Needs the demo and its 01 (./run_all.sh --only 01). Twice each: `cut` trains the last three blocks
on kept activations, the default; `whole` trains the tower from the pixels on.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from timing import in_turns, machine, measure_parser, peak_mib, table
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from recipes import default_recipe

from src import artifacts, encoder, paths
from src.encoder import autocast
from src.model_a import fit
from src.model_a.training import Trainer, losses, tower_inputs
from src.model_a.training_set import training_set

DEFAULT = default_recipe(epochs=1)
RECIPES = {"cut": DEFAULT, "whole": replace(DEFAULT, trainable_blocks=-1, lr_vision=1e-4)}


class Bench:
    """The demo's pairs as a recipe's training set, and a start for it."""

    def __init__(self, output: Path, clip: str, kind: str):
        self.recipe = RECIPES[kind]
        self.encoder = encoder.load(clip)
        self.output = output
        self.pairs = artifacts.load_table(output / paths.PAIRS)
        _, targets = artifacts.load_embeddings(output / paths.TARGETS, self.pairs["id"].to_list())
        self.data = training_set(
            self.encoder,
            self.pairs,
            output,
            name=f"pairs.{self.encoder.tag}",
            recipe=self.recipe,
            targets=targets[None],
        )
        self.kept = np.flatnonzero(self.pairs["filter2"])

    def trainer(self, rows: np.ndarray) -> Trainer:
        """A training at its start: probe, optimizer, schedule."""
        inner, held_out = fit.inner_split(self.data.group, rows, 0)
        fitted, _ = fit.init_model(self.encoder, self.data, inner, held_out, self.recipe, 0)
        return Trainer(fitted, self.encoder, self.data, inner, recipe=self.recipe, seed=0)

    def epoch(self, trainer: Trainer, batches: int) -> Callable[[], None]:
        """The engine's own loop over `batches` of one epoch."""

        def through() -> None:
            trainer.epoch += 1
            trainer.batch = trainer.n_batches - batches
            for _ in trainer.steps():
                pass

        return through

    def bare(self, trainer: Trainer, batches: int) -> Callable[[], None]:
        """Forward, backward and step, over and over on one batch of the same size."""
        rows = trainer.rows[: self.recipe.batch_size]
        x = tower_inputs(trainer.fitted, self.encoder, self.data, rows)
        target = torch.from_numpy(self.data.targets[0, rows]).to(self.encoder.device)

        def through() -> None:
            trainer.fitted.head.train()
            for _ in range(batches):
                losses(trainer.fitted.forward(x), target, self.recipe).mean().backward()
                trainer.optimizer.step()
                trainer.optimizer.zero_grad(set_to_none=True)

        return through


def loop(bench: Bench, arguments: argparse.Namespace) -> None:
    batches = arguments.batches
    trainer = bench.trainer(bench.kept)
    other = bench.trainer(bench.kept)
    functions = {
        "bare step": bench.bare(other, batches),
        "training loop": bench.epoch(trainer, batches),
    }
    table(in_turns(functions, arguments.repeats), "bare step")
    print(
        f"{batches} batches of {bench.recipe.batch_size}; "
        f"peak memory of the process {peak_mib():.0f} MiB"
    )


def predict(bench: Bench, arguments: argparse.Namespace) -> None:
    fitted = bench.trainer(bench.kept).fitted
    n = 128 * (len(bench.kept) // 128)
    pixels = np.ascontiguousarray(bench.data.pixels[np.arange(128)])
    x = bench.encoder.normalize(pixels)
    few = arguments.batches * bench.recipe.batch_size // 128 * 128

    @torch.inference_mode()
    def bare(forward: Callable, batch: torch.Tensor, rows: int) -> None:
        fitted.head.eval()
        with autocast(bench.encoder.device):
            for _ in range(rows // 128):
                F.normalize(fitted.head(forward(batch)), dim=-1)

    functions = {
        "bare, from pixels": lambda: bare(lambda b: fitted.tower(fitted.tower.frozen(b)), x, few),
        "predict_pixels": lambda: fit.predict_pixels(
            fitted, bench.encoder, bench.data.pixels[np.arange(few)]
        ),
    }
    table(in_turns(functions, arguments.repeats), "bare, from pixels")
    if bench.data.activations is not None:
        kept = tower_inputs(fitted, bench.encoder, bench.data, np.arange(128))
        functions = {
            "bare, from activations": lambda: bare(fitted.tower, kept, n),
            "predict": lambda: fit.predict(fitted, bench.encoder, bench.data, bench.kept[:n]),
        }
        table(in_turns(functions, arguments.repeats), "bare, from activations")
    print(f"peak memory of the process {peak_mib():.0f} MiB")


def cost(bench: Bench, arguments: argparse.Namespace) -> None:
    print(f"{'rows':>6} {'s an epoch, lowest of ' + str(arguments.repeats):>26} {'ms a row':>9}")
    for n in (1000, 2000, 3000, 4000, 6000):
        trainer = bench.trainer(np.arange(n))
        through = bench.epoch(trainer, trainer.n_batches)
        times = []
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            through()
            times.append(time.perf_counter() - start)
        n_rows = len(trainer.rows)
        print(f"{n_rows:6,} {min(times):26.2f} {1000 * min(times) / n_rows:9.2f}", flush=True)


def main() -> None:
    measures = {"loop": loop, "predict": predict, "rows": cost}
    parser = measure_parser(__doc__, measures)
    parser.add_argument("--towers", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--output", type=Path, default=Path("output"))
    parser.add_argument("--clip", default="local-dir:input/demo/clip")
    parser.add_argument("--batches", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    for kind in arguments.towers:
        print(f"\n{kind}: {machine()}", flush=True)
        measures[arguments.measure](
            Bench(paths.resolve(arguments.output), arguments.clip, kind), arguments
        )


if __name__ == "__main__":
    main()
