"""What a GPU takes over, as multiples of the bare operation on the same GPU and beside the CPU. Needs a CUDA GPU.

    python benchmarks/gpu.py search     cuML behind knn.search against torch's product and topk, and faiss; K = 100
    python benchmarks/gpu.py filter     the one pass of filter 2 and the groups, by precision, against the full product
    python benchmarks/gpu.py text       the text store's rules on cuDF against polars, 1,000,000 prompts
    python benchmarks/gpu.py towers     embedding pictures, and training, with a ViT-L/14 of random weights at 224 pixels

Ratios are of times taken in one run, in turns. Transfers to and from the GPU count on our side; the bare operation finds its
inputs there.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from timing import in_turns, machine, table

from dedup import LINK, THRESHOLD, clustered
from knn import K, rows

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src import dedup, encoder, knn, model_a, similarity
from src.encoder import autocast
from src.images import Geometry
from src.training import Run, inputs, losses


def finished(function: Callable[[], object]) -> Callable[[], None]:
    """`function` until the GPU has done what it started."""
    def through() -> None:
        function()
        torch.cuda.synchronize()

    return through


def measured(title: str, functions: dict[str, Callable], repeats: int, base: str) -> None:
    print(f"\n{title}", flush=True)
    functions = {name: finished(function) for name, function in functions.items()}
    in_turns(functions, 1)  # libraries loaded, kernels chosen, memory taken
    table(in_turns(functions, repeats), base)


def search(arguments: argparse.Namespace) -> None:
    print(knn.describe("cuml"))
    for n, dim in ((60_000, 1024), (1_000_000, 768)):
        search_one(n, dim, arguments.repeats)


def search_one(n: int, dim: int, repeats: int) -> None:
    store, queries = rows(n, dim, 0), rows(6000, dim, 1)
    x, q = torch.from_numpy(store).cuda(), torch.from_numpy(queries).cuda()
    functions = {"product": lambda: [block @ x.T for block in q.split(1000)],
                 "torch product and topk": lambda: [torch.topk(block @ x.T, K) for block in q.split(1000)],
                 "knn.search, cuML": lambda: knn.search(store, queries, K, "cuml")}
    if n < 100_000:
        functions["knn.search, faiss"] = lambda: knn.search(store, queries, K, "faiss")
    measured(f"{n:,} x {dim} store, 6,000 queries, K = {K}", functions, repeats, "product")
    found, index = knn.search(store, queries[:200], K, "cuml")
    best, where = (part.cpu().numpy() for part in torch.topk(q[:200].double() @ x.T.double(), K))
    same = np.mean([len(set(a) & set(b)) / K for a, b in zip(index, where, strict=True)])
    print(f"against float64: similarities within {np.abs(best - found).max():.1g}, {same:.5f} of the neighbours the same")


def product(x: torch.Tensor, block: int = 8192) -> None:
    """The full n x n product in float32, nothing looked at."""
    for start in range(0, len(x), block):
        x[start:start + block] @ x.T


def filter2(arguments: argparse.Namespace) -> None:
    for n in (60_000, 300_000):
        rows = clustered(n)
        x = torch.from_numpy(rows).cuda()

        def one_pass(device: str, precision: str, rows: np.ndarray = rows) -> similarity.Pass:
            return similarity.one_pass(rows, THRESHOLD, curve=dedup.CURVE, link=LINK, device=device, precision=precision)

        functions = {"product": lambda x=x: product(x)}
        functions |= {precision: lambda p=precision, f=one_pass: f("cuda", p) for precision in ("float32", "tf32", "bfloat16")}
        if n < 100_000:
            functions["float32 on the CPU"] = lambda f=one_pass: f("cpu", "float32")
        measured(f"{n:,} x 384 float32", functions, arguments.repeats, "product")


def text(arguments: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    words = np.array([f"word{n}" for n in range(5000)])
    prompts = pl.DataFrame({"prompt": [" ".join(words[rng.integers(5000, size=12)]) for _ in range(1_000_000)], "source": "list"})
    batches = [prompts[start:start + 100_000] for start in range(0, len(prompts), 100_000)]
    with tempfile.TemporaryDirectory() as folder:
        functions = {engine: lambda e=engine: dedup.text_store(batches, Path(folder) / f"{e}.parquet", engine=e)
                     for engine in ("polars", "cudf")}
        measured("1,000,000 prompts of 12 words", functions, arguments.repeats, "polars")


def towers(arguments: argparse.Namespace) -> None:
    import open_clip

    rng = np.random.default_rng(0)
    model = open_clip.create_model("ViT-L-14", device="cuda").eval().requires_grad_(False)
    clip = encoder.Encoder(model, None, Geometry(224, "bicubic", "shortest"), (0.48, 0.46, 0.41), (0.27, 0.26, 0.28),
                           torch.device("cuda"), "random", "ViT-L-14")
    pixels = rng.integers(0, 256, (2048, 224, 224, 3), dtype=np.uint8)
    x = clip.normalise(pixels[:clip.batch])

    @torch.inference_mode()
    def bare() -> None:
        with autocast(clip.device):
            for _ in range(len(pixels) // clip.batch):
                clip.model.encode_image(x)

    measured(f"{len(pixels):,} pictures through a ViT-L/14, batches of {clip.batch}",
             {"bare forward": bare, "embed_images": lambda: encoder.embed_images(clip, pixels)}, arguments.repeats, "bare forward")
    targets = rng.standard_normal((1, len(pixels), 384)).astype(np.float32)
    targets /= np.linalg.norm(targets, axis=2, keepdims=True)
    embeddings = encoder.embed_images(clip, pixels)
    data = model_a.TrainingSet([str(n) for n in range(len(pixels))], pixels, embeddings, targets, np.arange(len(pixels)))
    for blocks in (12, -1):
        recipe = replace(model_a.Recipe(epochs=1, batch_size=64), trainable_blocks=blocks)
        inner, held_out = model_a.inner_split(data.group, np.arange(len(pixels)), 0)
        one, other = (Run(model_a.begin(clip, data, inner, held_out, recipe, 0)[0], clip, data, inner, recipe=recipe, seed=0)
                      for _ in range(2))
        batch = inputs(other.fitted, clip, data, other.rows[:recipe.batch_size])
        target = torch.from_numpy(data.targets[0, other.rows[:recipe.batch_size]]).cuda()

        def step(run: Run = other, batch: torch.Tensor = batch, target: torch.Tensor = target) -> None:
            run.fitted.head.train()
            for _ in range(run.n_batches):
                losses(run.fitted.forward(batch), target, run.recipe).mean().backward()
                run.optimiser.step()
                run.optimiser.zero_grad(set_to_none=True)

        def epoch(run: Run = one) -> None:
            run.epoch, run.batch = run.epoch + 1, 0
            for _ in run.steps():
                pass

        title = f"an epoch of {len(one.rows):,} pictures, batches of {recipe.batch_size}, {blocks} blocks trained (-1: all)"
        measured(title, {"bare step": step, "training loop": epoch}, arguments.repeats, "bare step")
        print(f"most memory on the GPU: {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


if __name__ == "__main__":
    measures = {"search": search, "filter": filter2, "text": text, "towers": towers}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=measures)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch sees no CUDA GPU")
    print(f"{torch.cuda.get_device_name()}; {machine()}", flush=True)
    measures[options.measure](options)
