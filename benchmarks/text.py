"""Prompts a second of the text encoders, as shares of their bare forward on full batches.

    python benchmarks/text.py [--prompts 4000]

The bare forward finds its batches tokenized, sorted by length and on the device. The CLIP is the
demo's, whose text tower is the sentence encoder: there its keys come from the sentence embeddings.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from timing import compare, machine
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


def bare_tower(texts: list[str], clip: encoder.Encoder) -> Callable[[], None]:
    """The CLIP's text tower on batches that are ready."""
    ordered = sorted(texts, key=len)
    size = 2 * clip.batch
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    batches = [encoder.trimmed(clip, clip.tokenizer(part)).to(clip.device) for part in parts]

    @torch.inference_mode()
    def run() -> None:
        with encoder.autocast(clip.device):
            read_together(clip.model.encode_text(tokens).float() for tokens in batches)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=4000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    device = encoder.choose_device(arguments.device).type
    texts = distinct_prompts(arguments.prompts)
    print(f"{machine()}; {len(texts):,} prompts on {device}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        write_clip(Path(folder) / "clip", 128)
        clip = encoder.load(f"local-dir:{folder}/clip", device=device)
    values = prompts.encode(texts, device=device)
    model = prompts.sentence_model(prompts.EMBEDDED, device)
    measures = {
        "sentence encoder": {
            "bare forward": bare_sentences(texts, device),
            "prompts.encode": lambda: prompts.encode(texts, device=device),
            "the library's encode": lambda: model.encode(texts, batch_size=64),
        },
        "CLIP's text tower": {
            "bare forward": bare_tower(texts, clip),
            "embed_texts": lambda: encoder.embed_texts(clip, texts),
            "keys behind the values": lambda: encoder.embed_sentences(
                clip, texts, lambda _: values
            ),
        },
    }
    for title, functions in measures.items():
        print(f"\n{title}", flush=True)
        seconds = compare(functions, arguments.repeats, "bare forward")
        for name, times in seconds.items():
            print(f"{name:>24} {len(texts) / statistics.median(times):9.0f} prompts a second")


if __name__ == "__main__":
    main()
