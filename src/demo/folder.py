"""The demo's folder: train, test, truth, text-only prompts and CLIP, and whether it is current."""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from src.demo.grammar import PACKAGE, Scene, prompt
from src.demo.population import choose, prompts_of, text_only
from src.demo.renderer import decode, photograph
from src.demo.weights import EMBED_DIM, SHIPPED, WEIGHTS, write_clip

STAMP = "demo.json"
LICENSE = "LICENSE-OpenMoji.txt"
OURS = ("train", "test", "truth", "text", "clip", LICENSE, STAMP)
FILES = 13  # that a whole demo has beside its images
TRAINING = {
    "clip.py",
    "contrastive.py",
    "recipe.py",
    "card.txt",
}  # of this package, no part of what is written here


def save_jpeg(job: tuple[Scene, int, Path]) -> None:
    """Render a scene at a size and save it under a path, as training images are."""
    scene, size, path = job
    path.write_bytes(photograph(scene, size))


def save_png(job: tuple[Scene, int, Path]) -> None:
    """The very pixels that `save_jpeg` would save, in the competition's format."""
    scene, size, path = job
    decode(photograph(scene, size)).save(path, compress_level=1)


def _stamp(sizes: dict[str, int]) -> dict:
    code = hashlib.sha256()
    for path in sorted(PACKAGE.iterdir()):
        if path.suffix in (".py", ".txt") and path.name not in TRAINING:
            code.update(path.name.encode() + path.read_bytes())
    weights = SHIPPED / WEIGHTS
    clip = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else None
    return {"sizes": dict(sorted(sizes.items())), "code": code.hexdigest(), "clip": clip}


def is_current(folder: Path, *, workers: int | None = None, **sizes: int) -> bool:
    """Whether `folder` holds the whole demo of these sizes, written by this very code.

    `workers` does not matter.
    """
    folder = Path(folder)
    if not all((folder / name).exists() for name in OURS):
        return False
    if json.loads((folder / STAMP).read_text(encoding="utf-8")) != _stamp(sizes):
        return False

    files = sum(file.is_file() for file in folder.rglob("*"))
    return files >= sizes["train_scenes"] + sizes["test_scenes"] + FILES


def write(
    folder: Path,
    *,
    train_scenes: int,
    test_scenes: int,
    text_prompts: int,
    image_size: int,
    clip_size: int,
    seed: int,
    workers: int | None = None,
) -> None:
    """Write the demo into `folder`: train, test, truth, text and clip; the stamp comes last.

    Sizes are in scenes and pixels. Only what an earlier demo wrote is replaced; FileExistsError
    when such a name is there without a mark of ours.
    """
    sizes = {
        "train_scenes": train_scenes,
        "test_scenes": test_scenes,
        "text_prompts": text_prompts,
        "image_size": image_size,
        "clip_size": clip_size,
        "seed": seed,
    }
    folder = Path(folder)
    deal = choose(seed, train_scenes, test_scenes)
    own = set(prompts_of(deal.train + deal.test))
    text = text_only(seed, text_prompts, deal.embeddings, own=own)
    _clear(folder)

    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        _write_train(folder, deal.train, image_size, pool)
        _write_test(folder, deal.test, image_size, seed, pool)
    (folder / "text").mkdir()
    (folder / "text" / "prompts.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
    write_clip(folder / "clip", clip_size)
    (folder / STAMP).write_text(json.dumps(_stamp(sizes), indent=2) + "\n", encoding="utf-8")


def _clear(folder: Path) -> None:
    """Remove what an earlier demo wrote; the license, written first, marks a folder as ours."""
    mark = folder / LICENSE
    there = [name for name in OURS if (folder / name).exists()]
    if there and not mark.exists():
        raise FileExistsError(
            f"{folder} holds {there} but no {LICENSE}: not written by the demo, so it is left alone"
        )

    (folder / STAMP).unlink(missing_ok=True)
    for name in ("train", "test", "truth", "text", "clip"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(PACKAGE / LICENSE, mark)


def _progress(pool: ProcessPoolExecutor, work: Callable, jobs: Sequence, what: str) -> list:
    from tqdm.auto import tqdm

    chunk = max(1, min(32, len(jobs) // 8))
    results = pool.map(work, jobs, chunksize=chunk)
    return list(tqdm(results, total=len(jobs), desc=what, unit="scene"))


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _columns(scene: Scene) -> tuple[str, str, str]:
    """Prompt, subject and style, as in the tables of train and truth."""
    subjects = " + ".join(subject.noun for subject in scene.subjects)
    return prompt(scene), subjects, scene.style


def _write_train(
    folder: Path, scenes: Sequence[Scene], size: int, pool: ProcessPoolExecutor
) -> None:
    images = folder / "train" / "images"
    images.mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(len(scenes))]
    pairs = list(zip(scenes, names, strict=True))

    jobs = [(scene, size, images / name) for scene, name in pairs]
    _progress(pool, save_jpeg, jobs, "training scenes")

    header = ("file_name", "prompt", "subject", "style")
    rows = ((f"images/{name}", *_columns(scene)) for scene, name in pairs)
    _write_csv(folder / "train" / "metadata.csv", header, rows)


def _write_test(
    folder: Path, scenes: Sequence[Scene], size: int, seed: int, pool: ProcessPoolExecutor
) -> None:
    images = folder / "test" / "images"
    images.mkdir(parents=True)
    hashes = (hashlib.sha256(f"{seed} {i}".encode()).hexdigest() for i in range(len(scenes)))
    ids = sorted(digest[:9] for digest in hashes)
    pairs = list(zip(scenes, ids, strict=True))

    jobs = [(scene, size, images / f"{image_id}.png") for scene, image_id in pairs]
    _progress(pool, save_png, jobs, "test scenes")

    sample = ((f"{image_id}_{e}", 0.0) for image_id in ids for e in range(EMBED_DIM))
    _write_csv(folder / "test" / "sample_submission.csv", ("imgId_eId", "val"), sample)

    header = ("imgId", "prompt", "subject", "style")
    rows = ((image_id, *_columns(scene)) for scene, image_id in pairs)
    _write_csv(folder / "truth" / "prompts.csv", header, rows)
