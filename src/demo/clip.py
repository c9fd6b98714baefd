"""Train the demo's CLIP from nothing and write its weights with a card.

    python -m src.demo.clip            # an hour or two on two cores, minutes on a GPU

The recipe: EfficientNet-lite0 from ImageNet, all of it trained, beside a frozen MiniLM with one
linear layer; CLIP's loss on 65,536 scenes that are near no prompt of the demo. A batch consists of
sets of scenes of one setting, style and light, which tell nothing about whose prompt it is then:
only the things in a scene do.

How strong the CLIP is follows from a rule that was written down before any score of the pipeline
with such a CLIP was looked at. Training ends after the first epoch in which, for 500 held-out
scenes,

- the own prompt is first among the 500 for nine in ten (R@1 of .9), and
- of the three nearest among 24,000 other prompts, as many as the gallery shows, one names a subject
  of the scene for half of them. By the sentence embedding of the true prompt it is .70.

Everything is resumed when the command is started again: rendering by chunks, training by epochs.
"""

import argparse
import hashlib
import json
import os
import pickle
import platform
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from src.demo.grammar import PACKAGE, Scene
from src.demo.population import embed, far_from, pool, pool_rows, prompts_of
from src.demo.recipe import SIZE_SHARES, ClipRecipe
from src.demo.renderer import decode, photograph
from src.demo.weights import (
    CARD,
    EMBED_DIM,
    FACTS,
    SHIPPED,
    WEIGHTS,
    load_weights,
    shrink,
)
from src.paths import ROOT

if TYPE_CHECKING:
    from src.demo.contrastive import ClipTrainer, Strength, TrainedClip

# the rule above: training ends when a score is at least this in both
TARGET = {"recall_at_1": 0.9, "names_subject": 0.5}
# The demos whose prompts it never sees: sizes of a parameters file, and seeds
KEPT_AWAY = {"params/demo.yaml": (42, 43, 44), "params/smoke.yaml": (1,)}
# files of this package that decide what a scene looks like and what it is called
DRAWN_BY = (
    "canvas.py",
    "drawings.txt",
    "grammar.py",
    "irregular_plurals.txt",
    "lighting.py",
    "modifiers.txt",
    "population.py",
    "renderer.py",
    "scenery.py",
    "styles.py",
)
CHUNK = 256  # scenes that a process renders at a time


# the scenes -------------------------------------------------------------------


def kept_away(demos: dict[str, tuple[int, ...]]) -> list[str]:
    """The prompts of the demos that the CLIP must not come near: {parameters file: seeds}."""
    import yaml

    prompts = []
    for file, seeds in demos.items():
        settings = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["demo"]
        rows = pool_rows(settings["train_scenes"], settings["test_scenes"])
        for seed in seeds:
            prompts += prompts_of(pool(seed, rows))
    return prompts


def choose_scenes(
    recipe: ClipRecipe, away: list[str], *, device: str
) -> tuple[list[Scene], np.ndarray]:
    """The training scenes, then the held-out ones, and their prompts' embeddings, (n, 384).

    No training or held-out prompt is above NEAR with one of `away`, no training prompt with a
    held-out one.
    """
    rng = np.random.default_rng([recipe.seed, *b"clip"])
    near = np.empty((0, EMBED_DIM), dtype=np.float32)
    if away:
        near = embed(away, device=device, exact=False)
    held_out, held_out_texts = far_from(rng, recipe.held_out, near, device=device)
    near = np.concatenate([near, held_out_texts])

    # what is held out must be new to the model too: the training scenes keep away from it
    own = set(prompts_of(held_out))
    scenes, texts = far_from(rng, recipe.scenes, near, own=own, device=device)
    return scenes + held_out, np.concatenate([texts, held_out_texts])


def _render_chunk(job: tuple[Path, int, list[Scene], int, int]) -> int:
    """Render scenes into the rows of a memory map from `start` on; returns `start`."""
    path, start, scenes, image_size, clip_size = job
    pixels = np.load(path, mmap_mode="r+")
    for row, scene in enumerate(scenes, start):
        image = decode(photograph(scene, image_size))
        pixels[row] = image.resize((clip_size, clip_size), Image.Resampling.BICUBIC)
    pixels.flush()
    return start


def render_all(path: Path, scenes: list[Scene], recipe: ClipRecipe, *, workers: int) -> np.ndarray:
    """(n, s, s, 3) uint8, memory-mapped: every scene as the CLIP's input; chunks done are kept."""
    from tqdm.auto import tqdm

    # a chunk counts as done once its number is in the list, which is written after its pixels
    done_path = path.with_name("rendered.json")
    done = set(json.loads(done_path.read_text())) if done_path.exists() else set()
    if not path.exists():
        shape = (len(scenes), recipe.clip_size, recipe.clip_size, 3)
        np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape).flush()
        done = set()

    starts = [start for start in range(0, len(scenes), CHUNK) if start not in done]
    with (
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes,
        tqdm(total=len(scenes), desc="scenes", unit="scene") as bar,
    ):
        bar.update(sum(min(CHUNK, len(scenes) - start) for start in done))
        sizes = (recipe.image_size, recipe.clip_size)
        jobs = [(path, start, scenes[start : start + CHUNK], *sizes) for start in starts]
        for future in as_completed([processes.submit(_render_chunk, job) for job in jobs]):
            done.add(future.result())
            done_path.write_text(json.dumps(sorted(done)))
            bar.update(min(CHUNK, len(scenes) - future.result()))
    return np.load(path, mmap_mode="r")


# what is written --------------------------------------------------------------


def enough(score: "Strength") -> bool:
    """Whether a score meets TARGET."""
    return all(getattr(score, name) >= least for name, least in TARGET.items())


def write_weights(out: Path, trainer: "ClipTrainer", model: "TrainedClip", away: dict) -> dict:
    """Write weights, facts and card into `out`; the score is that of the weights as written."""
    import torch
    from safetensors.torch import save_file

    from src.demo.contrastive import TrainedClip, strength

    out.mkdir(parents=True, exist_ok=True)
    state = {name: t.detach().cpu() for name, t in model.state_dict().items()}
    save_file(shrink(state), out / WEIGHTS)

    # fp16 changes the weights a little, so the score is measured on the file that is shipped
    shipped = TrainedClip()
    shipped.load_state_dict(load_weights(out))
    shipped = shipped.to(trainer.device)
    score = strength(shipped, trainer.held_out, trainer.store, trainer.device)

    device = "CPU" if trainer.device.type == "cpu" else torch.cuda.get_device_name()
    facts = {
        "file": WEIGHTS,
        "sha256": hashlib.sha256((out / WEIGHTS).read_bytes()).hexdigest(),
        "bytes": (out / WEIGHTS).stat().st_size,
        "recipe": asdict(trainer.recipe),
        "epochs": len(trainer.scores),
        "target": TARGET,
        "store": len(trainer.store.scenes),
        "score": asdict(score),
        "score_by_epoch": [asdict(score) for score in trainer.scores],
        "kept_away": {file: list(seeds) for file, seeds in away.items()},
        "seconds_training": round(trainer.seconds, 1),
        "device": device,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    (out / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    template = (PACKAGE / "card.txt").read_text(encoding="utf-8")
    (out / CARD).write_text(template.format(**_for_card(facts)), encoding="utf-8")
    return facts


def _for_card(facts: dict) -> dict:
    """The facts as the card's text shows them."""
    from src.demo.contrastive import Strength

    recipe = facts["recipe"]
    epochs = [
        f"| {n} | {score['recall_at_1']:.3f} | {score['names_subject']:.3f} |"
        for n, score in enumerate(facts["score_by_epoch"], start=1)
    ]
    away = [
        f"`{file}` at seeds {', '.join(map(str, seeds))}"
        for file, seeds in facts["kept_away"].items()
    ]
    met = enough(Strength(**facts["score_by_epoch"][-1]))
    return {
        **facts,
        **recipe,
        "scenes": f"{recipe['scenes']:,}",
        "store": f"{facts['store']:,}",
        "megabytes": f"{facts['bytes'] / 1e6:.1f}",
        "small_size": round(recipe["clip_size"] * min(SIZE_SHARES)),
        "epoch_rows": "\n".join(epochs),
        "away": "; ".join(away) or "no demo",
        "recall_target": facts["target"]["recall_at_1"],
        "subject_target": facts["target"]["names_subject"],
        "recall": f"{facts['score']['recall_at_1']:.3f}",
        "subject": f"{facts['score']['names_subject']:.3f}",
        "met": "met after" if met else "not met within",
        "torch": facts["versions"]["torch"],
        "python": facts["versions"]["python"],
    }


def _key(recipe: ClipRecipe, prompts: list[str]) -> str:
    """Changes with whatever the pixels, the prompts or the training depend on."""
    digest = hashlib.sha256(json.dumps([asdict(recipe), prompts]).encode())
    for name in DRAWN_BY:
        digest.update((PACKAGE / name).read_bytes())
    return digest.hexdigest()[:12]


def _chosen(
    file: Path, recipe: ClipRecipe, prompts: list[str], *, device: str
) -> tuple[list[Scene], np.ndarray]:
    """`choose_scenes`, kept in a file of the work folder."""
    # choosing embeds every prompt that is composed, also those that turn out too near
    if not file.exists():
        temporary = file.with_suffix(".tmp")
        temporary.write_bytes(pickle.dumps(choose_scenes(recipe, prompts, device=device)))
        os.replace(temporary, file)
    return pickle.loads(file.read_bytes())


def train(
    recipe: ClipRecipe,
    *,
    out: Path,
    work: Path,
    away: dict[str, tuple[int, ...]],
    max_epochs: int,
    device: str,
    workers: int,
) -> dict:
    """Scenes, pixels, epochs, card; returns the facts. What `work` holds already is used."""
    from src.demo.contrastive import ClipTrainer, Scenes, Strength

    # another recipe or another look of the scenes is another folder, so nothing stale is used
    prompts = kept_away(away)
    work = work / _key(recipe, prompts)
    work.mkdir(parents=True, exist_ok=True)

    clock = time.perf_counter()
    print(f"choosing {recipe.scenes:,} scenes away from {len(prompts):,} prompts", flush=True)
    scenes, texts = _chosen(work / "scenes.pkl", recipe, prompts, device=device)
    print(f"chosen in {time.perf_counter() - clock:.0f} s, rendering with {workers} processes")
    pixels = render_all(work / "pixels.npy", scenes, recipe, workers=workers)
    print(f"rendered at {time.perf_counter() - clock:.0f} s, training on {device}", flush=True)

    everything = Scenes(scenes, pixels, texts)
    trainer = ClipTrainer(
        recipe,
        everything.first(recipe.scenes),
        everything.after(recipe.scenes),
        work=work,
        device=device,
    )
    model = trainer.run(enough, max_epochs)
    facts = write_weights(out, trainer, model, away)
    print(
        f"{out}: {facts['bytes']:,} bytes, {Strength(**facts['score'])},"
        f" {time.perf_counter() - clock:.0f} s in all"
    )
    return facts


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m src.demo.clip",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = ClipRecipe()
    parser.add_argument("--out", type=Path, default=SHIPPED, help="folder of weights and card")
    parser.add_argument(
        "--work",
        type=Path,
        default=ROOT / "output" / "demo-clip",
        help="folder of pixels (3 GB) and checkpoints; may be deleted afterwards",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="rendering processes")
    parser.add_argument(
        "--max-epochs", type=int, default=12, help="epochs after which it ends anyhow"
    )
    parser.add_argument("--scenes", type=int, default=default.scenes)
    parser.add_argument("--held-out", type=int, default=default.held_out)
    parser.add_argument("--image-size", type=int, default=default.image_size)
    parser.add_argument("--clip-size", type=int, default=default.clip_size)
    parser.add_argument("--batch", type=int, default=default.batch)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument(
        "--keep-away",
        nargs="*",
        metavar="FILE:SEED,SEED",
        help="demos whose prompts it must not come near; default: "
        + " ".join(f"{f}:{','.join(map(str, s))}" for f, s in KEPT_AWAY.items()),
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict:
    """The command; returns the facts it wrote."""
    # torch reads it with its first tensor: large memory pages, with which a step on two cores
    # takes 5.9 s in place of 8.5
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from src.encoder import choose_device

    options = parse(arguments)
    away = KEPT_AWAY
    if options.keep_away is not None:
        pairs = (demo.rsplit(":", 1) for demo in options.keep_away)
        away = {file: tuple(int(seed) for seed in seeds.split(",")) for file, seeds in pairs}
    recipe = ClipRecipe(
        scenes=options.scenes,
        held_out=options.held_out,
        image_size=options.image_size,
        clip_size=options.clip_size,
        batch=options.batch,
        seed=options.seed,
    )
    if recipe.scenes < recipe.batch:
        raise SystemExit(f"--scenes {recipe.scenes} is less than --batch {recipe.batch}")
    return train(
        recipe,
        out=options.out,
        work=options.work,
        away=away,
        max_epochs=options.max_epochs,
        device=choose_device(options.device).type,
        workers=options.workers,
    )


if __name__ == "__main__":
    main()
