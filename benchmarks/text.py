"""Prompts a second of the text encoders, as shares of their bare forward on full batches.

    python benchmarks/text.py [--prompts 1024] [--full-size-prompts 256] [--clock cpu]

The bare forward finds its batches tokenized, sorted by length and on the device, without padding
that changes nothing. The first CLIP is
the demo's, whose text tower is the sentence encoder: there its keys come from the sentence
embeddings. The second is one of open_clip's in full size, with random weights. --clock cpu counts
the processor's time, for one thread on a shared core.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gpu_model import random_encoder
from timing import CLOCKS, compare, machine
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from src import encoder
from src.batches import read_together
from src.data import prompts
from src.demo.grammar import compose, prompt
from src.demo.weights import write_clip


def distinct_prompts(n: int) -> list[str]:
    """`n` different prompts of the demo's grammar."""
    rng = np.random.default_rng(0)
    texts: dict[str, None] = {}
    while len(texts) < n:
        texts[prompt(compose(rng))] = None
    return list(texts)


def bare_sentences(texts: list[str], device: str) -> Callable[[], None]:
    """The sentence encoder's forward on batches that are ready."""
    model = prompts.sentence_model(prompts.EMBEDDED, device)
    size = prompts.GPU_BATCH if model.device.type == "cuda" else prompts.CPU_BATCH
    ordered = sorted(texts, key=len)
    batches = []
    for start in range(0, len(ordered), size):
        features = model.preprocess(ordered[start : start + size])
        tensors = {k: v.to(model.device) for k, v in features.items() if torch.is_tensor(v)}
        batches.append(features | tensors)

    @torch.inference_mode()
    def run() -> None:
        read_together(F.normalize(model(dict(x))["sentence_embedding"], dim=1) for x in batches)

    return run


def bare_tower(texts: list[str], clip: encoder.Encoder, *, whole: bool = False) -> Callable:
    """The CLIP's text tower on batches that are ready; `whole`: with all their padding."""
    ordered = sorted(texts, key=len)
    size = 2 * clip.batch
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    batches = [clip.tokenizer(part).to(clip.device) for part in parts]
    if not whole:
        batches = [encoder.trimmed(clip, tokens) for tokens in batches]

    @torch.inference_mode()
    def run() -> None:
        with encoder.autocast(clip.device):
            read_together(encoder.encode_tokens(clip, tokens).float() for tokens in batches)

    return run


def report(
    title: str, functions: dict[str, Callable], count: int, arguments: argparse.Namespace
) -> None:
    """Print the table of `functions`, each of which embeds `count` prompts."""
    print(f"\n{title}, {count:,} prompts", flush=True)
    seconds = compare(functions, arguments.repeats, "bare forward", CLOCKS[arguments.clock])
    for name, times in seconds.items():
        print(f"{name:>24} {count / statistics.median(times):9.0f} prompts a second", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=1024)
    parser.add_argument("--full-size", default="ViT-B-32", help="a model of open_clip")
    parser.add_argument("--full-size-prompts", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    arguments = parser.parse_args()
    device = encoder.choose_device(arguments.device).type
    print(f"{machine()}; on {device}, {arguments.clock} time", flush=True)

    texts = distinct_prompts(arguments.prompts)
    values = prompts.encode(texts, device=device)
    model = prompts.sentence_model(prompts.EMBEDDED, device)
    sentences = {
        "bare forward": bare_sentences(texts, device),
        "prompts.encode": lambda: prompts.encode(texts, device=device),
        "the library's encode": lambda: model.encode(texts, batch_size=64),
    }
    report("sentence encoder", sentences, len(texts), arguments)

    with tempfile.TemporaryDirectory() as folder:
        write_clip(Path(folder) / "clip", 128)
        demo = encoder.load(f"local-dir:{folder}/clip", device=device)
    tower = {
        "bare forward": bare_tower(texts, demo),
        "embed_texts": lambda: encoder.embed_texts(demo, texts),
        "keys behind the values": lambda: encoder.embed_sentences(demo, texts, lambda _: values),
    }
    report("text tower of the demo's CLIP", tower, len(texts), arguments)

    few = texts[: arguments.full_size_prompts]
    full_size = random_encoder(arguments.full_size, device)
    tower = {
        "bare forward": bare_tower(few, full_size),
        "embed_texts": lambda: encoder.embed_texts(full_size, few),
        "bare, all padding": bare_tower(few, full_size, whole=True),
    }
    report(f"text tower of {arguments.full_size}", tower, len(few), arguments)


if __name__ == "__main__":
    main()
