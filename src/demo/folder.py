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

import numpy as np
from PIL import Image

from src.demo.alignment import EMBED_DIM, write_clip
from src.demo.choice import choose, prompts_of
from src.demo.grammar import PACKAGE, Scene, prompt
from src.demo.renderer import render

STAMP = "demo.json"
LICENSE = "LICENSE-OpenMoji.txt"
OURS = ("train", "test", "truth", "text", "clip", LICENSE, STAMP)
FILES = 13  # that a whole demo has beside its images


def save_scene(job: tuple[Scene, int, str]) -> None:
    """Render a scene at a size and save it under a path; for a process pool."""
    scene, size, path = job
    render(scene, size).save(path, quality=90, compress_level=1)


def _pixels(job: tuple[Scene, int, int]) -> np.ndarray:
    scene, size, small = job
    return np.asarray(render(scene, size).resize((small, small), Image.Resampling.BICUBIC))


def code_files() -> list[Path]:
    """The files of this package, whose content decides what a demo looks like."""
    return sorted(path for path in PACKAGE.iterdir() if path.suffix in (".py", ".txt"))


def _stamp(sizes: dict[str, int]) -> dict:
    code = hashlib.sha256()
    for path in code_files():
        code.update(path.name.encode() + path.read_bytes())
    return {"sizes": dict(sorted(sizes.items())), "code": code.hexdigest()}


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
    align_scenes: int,
    align_epochs: int,
    train_size: int,
    test_size: int,
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
        "align_scenes": align_scenes,
        "align_epochs": align_epochs,
        "train_size": train_size,
        "test_size": test_size,
        "clip_size": clip_size,
        "seed": seed,
    }
    folder = Path(folder)
    train, test, align, text = choose(seed, train_scenes, test_scenes, align_scenes, text_prompts)
    _clear(folder)

    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        _write_pairs(folder, train, train_size, pool)
        _write_test(folder, test, test_size, seed, pool)
        jobs = [(scene, train_size, clip_size) for scene in align]
        pixels = np.stack(_progress(pool, _pixels, jobs, "alignment scenes"))

    (folder / "text").mkdir()
    (folder / "text" / "prompts.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
    write_clip(folder / "clip", pixels, prompts_of(align), epochs=align_epochs, seed=seed)
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


def _write_pairs(
    folder: Path, scenes: Sequence[Scene], size: int, pool: ProcessPoolExecutor
) -> None:
    images = folder / "train" / "images"
    images.mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(len(scenes))]
    pairs = list(zip(scenes, names, strict=True))

    jobs = [(scene, size, str(images / name)) for scene, name in pairs]
    _progress(pool, save_scene, jobs, "training scenes")

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

    jobs = [(scene, size, str(images / f"{image_id}.png")) for scene, image_id in pairs]
    _progress(pool, save_scene, jobs, "test scenes")

    sample = ((f"{image_id}_{e}", 0.0) for image_id in ids for e in range(EMBED_DIM))
    _write_csv(folder / "test" / "sample_submission.csv", ("imgId_eId", "val"), sample)

    header = ("imgId", "prompt", "subject", "style")
    rows = ((image_id, *_columns(scene)) for scene, image_id in pairs)
    _write_csv(folder / "truth" / "prompts.csv", header, rows)
