"""Training and encoding with a ViT-L/14 of random weights at 224 px, against bare loops.

    python benchmarks/gpu_model.py train     steps a second: 12 of 24 blocks, and the whole tower
    python benchmarks/gpu_model.py encode    images and prompts a second of the encoder

The bare loop repeats forward, backward and step on one batch that is already on the device. Ratios
are of times taken in one run, in turns. About a minute on an H100; `--tiny` runs a small ViT on
any machine, to try the script.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
from timing import compare, machine, measure_parser
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from recipes import default_recipe

from src.data.images import ImagePreprocess
from src.encoder import (
    Encoder,
    autocast,
    choose_device,
    embed_images,
    embed_texts,
    encode_tokens,
    trimmed,
)
from src.metrics import l2_normalize
from src.model_a.fitted import FittedModel
from src.model_a.head import N_OUT, Head
from src.model_a.recipe import Recipe
from src.model_a.tower import make_tower
from src.model_a.training import Trainer, losses, tower_inputs
from src.model_a.training_set import TrainingSet

TINY = {"vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 4}}
TINY |= {"text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "layers": 1}}
TINY["vision_cfg"]["head_width"] = 32
TINY["text_cfg"]["heads"] = 2


def random_encoder(name: str, device: str = "auto") -> Encoder:
    """open_clip's model of this name, or `tiny`, with random weights."""
    torch.manual_seed(0)
    if name == "tiny":
        model = open_clip.model.CLIP(embed_dim=24, **TINY)
        tokenizer = open_clip.SimpleTokenizer(context_length=16)
    else:
        model = open_clip.create_model(name)
        tokenizer = open_clip.get_tokenizer(name)
    size = model.visual.image_size[0]
    chosen = choose_device(device)
    model = model.to(chosen).eval().requires_grad_(False)
    return Encoder(
        model=model,
        tokenizer=tokenizer,
        geometry=ImagePreprocess(size),
        mean=open_clip.OPENAI_DATASET_MEAN,
        std=open_clip.OPENAI_DATASET_STD,
        device=chosen,
        fingerprint="random",
        name="random",
    )


def random_set(encoder: Encoder, recipe: Recipe, n: int) -> TrainingSet:
    """`n` images of noise; activations of noise too, where the tower is cut: only time counts."""
    rng = np.random.default_rng(0)
    size = encoder.geometry.size
    pixels = rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    width = embed_images(encoder, pixels[:2]).shape[1]

    activations = None
    tower = make_tower(encoder, recipe)
    if tower.splits:
        with autocast(encoder.device):
            shape = tower.frozen(encoder.normalize(pixels[:2])).shape[1:]
        activations = rng.standard_normal((n, *shape), dtype=np.float32).astype(np.float16)
    return TrainingSet(
        ids=[f"p{i}" for i in range(n)],
        pixels=pixels,
        embeddings=l2_normalize(rng.standard_normal((n, width)).astype(np.float32)),
        targets=l2_normalize(rng.standard_normal((n, N_OUT)).astype(np.float32))[None],
        group=np.arange(n),
        activations=activations,
    )


def new_trainer(encoder: Encoder, data: TrainingSet, recipe: Recipe) -> Trainer:
    head = Head(data.embeddings.shape[1]).to(encoder.device)
    fitted = FittedModel(make_tower(encoder, recipe), head)
    return Trainer(fitted, encoder, data, np.arange(len(data.ids)), recipe=recipe, seed=0)


def bare_steps(trainer: Trainer) -> Callable[[], None]:
    """As many steps as an epoch has, on one batch."""
    rows = trainer.rows[: trainer.recipe.batch_size]
    x = tower_inputs(trainer.fitted, trainer.encoder, trainer.data, rows)
    target = torch.from_numpy(trainer.data.targets[0, rows]).to(trainer.encoder.device)

    def run() -> None:
        trainer.fitted.head.train()
        for _ in range(trainer.n_batches):
            losses(trainer.fitted.forward(x), target, trainer.recipe).mean().backward()
            trainer.optimizer.step()
            trainer.optimizer.zero_grad(set_to_none=True)

    return run


def an_epoch(trainer: Trainer) -> Callable[[], None]:
    def run() -> None:
        trainer.epoch += 1
        trainer.batch = 0
        for _ in trainer.steps():
            pass

    return run


def train(arguments: argparse.Namespace) -> None:
    encoder = random_encoder("tiny" if arguments.tiny else "ViT-L-14")
    n_blocks = 2 if arguments.tiny else 12
    batch_size = 8 if arguments.tiny else 64
    for title, blocks in ((f"the last {n_blocks} blocks", n_blocks), ("the whole tower", -1)):
        recipe = default_recipe(
            epochs=1, batch_size=batch_size, trainable_blocks=blocks, lr_vision=1e-5, ema=0.999
        )
        data = random_set(encoder, recipe, batch_size * arguments.batches)
        functions = {
            "bare step": bare_steps(new_trainer(encoder, data, recipe)),
            "training loop": an_epoch(new_trainer(encoder, data, recipe)),
        }
        print(f"\n{title}, batches of {batch_size}", flush=True)
        seconds = compare(functions, arguments.repeats, "bare step")
        for name, times in seconds.items():
            print(f"{name:>24} {arguments.batches / min(times):9.2f} steps a second")
        del functions, data
        if encoder.device.type == "cuda":
            torch.cuda.empty_cache()


def encode(arguments: argparse.Namespace) -> None:
    encoder = random_encoder("tiny" if arguments.tiny else "ViT-L-14")
    n = encoder.batch * arguments.batches
    rng = np.random.default_rng(0)
    size = encoder.geometry.size
    pixels = rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    words = [f"word{i}" for i in range(2000)]
    prompts = [" ".join(rng.choice(words, size=8)) + f" {i}" for i in range(2 * n)]

    x = encoder.normalize(pixels[: encoder.batch])
    # cut at the batch's longest prompt, as ours are
    tokens = trimmed(encoder, encoder.tokenizer(prompts[: 2 * encoder.batch])).to(encoder.device)

    @torch.inference_mode()
    def bare(embed: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> None:
        with autocast(encoder.device):
            for _ in range(arguments.batches):
                F.normalize(embed(batch).float(), dim=-1)

    competitors = {
        "images": (n, encoder.model.encode_image, x, lambda: embed_images(encoder, pixels)),
        "prompts": (
            2 * n,
            partial(encode_tokens, encoder),
            tokens,
            lambda: embed_texts(encoder, prompts),
        ),
    }
    for what, (count, embed, batch, ours) in competitors.items():
        functions = {
            "bare forward": lambda embed=embed, batch=batch: bare(embed, batch),
            "ours": ours,
        }
        print(f"\n{count:,} {what}", flush=True)
        seconds = compare(functions, arguments.repeats, "bare forward")
        for name, times in seconds.items():
            print(f"{name:>24} {count / min(times):9.0f} {what} a second")


def main() -> None:
    measures = {"train": train, "encode": encode}
    parser = measure_parser(__doc__, measures)
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a small ViT, on any machine")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA GPU; --tiny tries the script without one")
    print(torch.cuda.get_device_name() if torch.cuda.is_available() else machine(), flush=True)
    measures[arguments.measure](arguments)


if __name__ == "__main__":
    main()
