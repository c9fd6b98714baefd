"""The demo: same seed, same bytes; the right layout; no leak from training to test; a CLIP that loads where it was moved."""

import csv
import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src import demo
from src.demo import alignment as clip
from src.demo import choice as population
from src.demo import grammar, renderer
from src.demo.folder import save_scene
from src.paths import ROOT

SIZES = {
    "train_scenes": 90,
    "test_scenes": 6,
    "text_prompts": 40,
    "align_scenes": 24,
    "align_epochs": 1,
    "train_size": 96,
    "test_size": 128,
    "clip_size": 64,
    "seed": 5,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("input") / "demo"
    demo.write(folder, **SIZES, workers=2)
    return folder


def rows(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_layout_and_counts(folder: Path) -> None:
    train = rows(folder / "train/metadata.csv")
    assert [*train[0]] == ["file_name", "prompt", "subject", "style"] and len(train) == 90
    assert all(Image.open(folder / "train" / row["file_name"]).size == (96, 96) for row in train)
    images = sorted((folder / "test/images").iterdir())
    assert [p.stem for p in images] == [row["imgId"] for row in rows(folder / "truth/prompts.csv")]
    assert {Image.open(p).size for p in images} == {(128, 128)} and len(images) == 6
    assert all(len(p.stem) == 9 and int(p.stem, 16) >= 0 for p in images)
    texts = (folder / "text/prompts.txt").read_text().splitlines()
    assert len(set(texts)) == len(texts) == 40


def test_sample_submission_is_in_the_competition_s_form(folder: Path) -> None:
    sample = rows(folder / "test/sample_submission.csv")
    ids = [row["imgId"] for row in rows(folder / "truth/prompts.csv")]
    assert [row["imgId_eId"] for row in sample] == [
        f"{i}_{e}" for i in sorted(ids) for e in range(384)
    ]
    assert {row["val"] for row in sample} == {"0.0"}


def test_test_prompts_are_far_from_everything_else(folder: Path) -> None:
    asked = population.embed([row["prompt"] for row in rows(folder / "truth/prompts.csv")])
    known = [row["prompt"] for row in rows(folder / "train/metadata.csv")] + (
        folder / "text/prompts.txt"
    ).read_text().splitlines()
    assert (asked @ population.embed(known).T).max() <= population.NEAR


def test_a_third_of_training_are_near_duplicates() -> None:
    prompts = [
        grammar.prompt(scene)
        for scene in population.plan(3, 600, "train", taken=set(), duplicates=0.335)
    ]
    x = population.embed(prompts)
    kept: list[int] = []
    for i in range(len(x)):
        if not kept or (x[kept] @ x[i]).max() <= population.NEAR:
            kept.append(i)
    assert 0.6 < len(kept) / len(x) < 0.78
    assert 1 < sum(n - 1 for n in Counter(prompts).values()) < 60


def test_same_seed_same_bytes_whatever_the_workers(tmp_path: Path, folder: Path) -> None:
    scenes = population.plan(5, 90, "train", taken=set(), duplicates=0.335)
    assert [grammar.prompt(s) for s in scenes] == [
        row["prompt"] for row in rows(folder / "train/metadata.csv")
    ]
    for i in (0, 41, 89):
        save_scene((scenes[i], 96, str(tmp_path / "one.jpg")))
        assert (tmp_path / "one.jpg").read_bytes() == (
            folder / f"train/images/{i:06d}.jpg"
        ).read_bytes()
    assert (
        population.extra_prompts(5, 20)
        == population.extra_prompts(5, 20)
        != population.extra_prompts(6, 20)
    )


def test_every_drawing_is_there() -> None:
    for code, noun in grammar.drawings():
        assert max(renderer.drawing(code, 64).size) > 30, noun


def test_every_part_of_the_grammar_changes_the_image() -> None:
    fox = next(code for code, noun in grammar.drawings() if noun == "fox")
    scene = grammar.Scene((grammar.Subject(fox, "fox"),), "beach", "photo", "", (0, 0, 0, 0), (), 7)
    changes = [
        *({"style": s} for s in grammar.STYLES),
        *({"light": v} for v in grammar.LIGHTS if v),
        *({"setting": s} for s in grammar.SETTINGS if s != "beach"),
        {"subjects": (grammar.Subject(fox, "fox", 3),)},
        {"subjects": (grammar.Subject(fox, "fox", 1, "tiny"),)},
        {"subjects": (grammar.Subject(fox, "fox", 1, "", "blue"),)},
    ]
    images = [renderer.render(replace(scene, **change), 64).tobytes() for change in changes]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize(
    ("noun", "several"),
    [
        ("wolf", "wolves"),
        ("cup of tea", "cups of tea"),
        ("cherry", "cherries"),
        ("ox", "oxen"),
        ("tropical fish", "tropical fish"),
        ("torch", "torches"),
        ("house with a garden", "houses with a garden"),
        ("tomato", "tomatoes"),
    ],
)
def test_plurals(noun: str, several: str) -> None:
    assert grammar.plural(noun) == several


def test_clip_loads_after_being_moved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip
    import torch

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    there = tmp_path / "elsewhere"
    shutil.copytree(folder / "clip", there)
    config = json.loads((there / "open_clip_config.json").read_text())
    assert str(folder) not in json.dumps(config) and str(ROOT) not in json.dumps(config)
    text = {
        **config["model_cfg"]["text_cfg"],
        "hf_model_name": str(there),
        "hf_model_pretrained": False,
    }
    model, _, preprocess = open_clip.create_model_and_transforms(
        f"local-dir:{there}", text_cfg=text
    )
    tokens = open_clip.get_tokenizer(f"local-dir:{there}")(["two foxes on a beach", "a rocket"])
    image = preprocess(Image.open(next((folder / "test/images").iterdir())))
    with torch.inference_mode():
        assert model.eval().encode_image(image[None]).shape == (1, 384) and model.encode_text(
            tokens
        ).shape == (2, 384)
    assert image.shape == (3, 64, 64) and list(model.visual.image_mean) == [0.5, 0.5, 0.5]


def test_imagenet_weights_know_a_drawn_animal() -> None:
    """A shuffled or misnamed tensor leaves features in which drawings of one thing are not alike."""
    model, _ = clip.build_clip(96)
    drawn = []
    for noun in ("zebra", "banana", "guitar"):
        code = next(code for code, name in grammar.drawings() if name == noun)
        scenes = [
            grammar.Scene((grammar.Subject(code, noun),), where, "photo", "", (0, 0, 0, 0), (), 1)
            for where in ("beach", "road")
        ]
        drawn += [np.asarray(renderer.render(scene, 96)) for scene in scenes]
    x = clip.image_features(model, np.stack(drawn))
    x -= x.mean(axis=0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    similarity = x @ x.T - 2 * np.eye(6)
    assert similarity.argmax(axis=1).tolist() == [1, 0, 3, 2, 5, 4]


def test_stamp(folder: Path, tmp_path: Path) -> None:
    assert demo.is_current(folder, **SIZES) and demo.is_current(folder, **SIZES, workers=1)
    assert not demo.is_current(folder, **{**SIZES, "seed": 6}) and not demo.is_current(
        tmp_path, **SIZES
    )
    for lost in (
        next((folder / "train" / "images").iterdir()),
        folder / "truth" / "prompts.csv",
        folder / "clip" / "vocab.txt",
    ):
        content = lost.read_bytes()
        lost.unlink()
        assert not demo.is_current(folder, **SIZES), lost
        lost.write_bytes(content)
    assert demo.is_current(folder, **SIZES)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.jpg").write_text("mine")
    with pytest.raises(FileExistsError, match="left alone"):
        demo.write(tmp_path, **SIZES)
    assert (tmp_path / "train" / "mine.jpg").exists()


def test_import_is_light() -> None:
    code = "import sys, src.demo; print(sorted({'torch', 'open_clip', 'transformers', 'polars'} & set(sys.modules)))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
