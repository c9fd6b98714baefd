"""The demo's folder: same seed, same bytes; the right layout; a CLIP that can be moved."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from src import demo
from src.demo import grammar, population
from src.demo.grammar import Scene, Subject
from src.demo.renderer import decode, drawing, photograph, render
from src.paths import ROOT

SIZES = {
    "train_scenes": 90,
    "test_scenes": 6,
    "text_prompts": 40,
    "image_size": 96,
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
    assert {Image.open(p).size for p in images} == {(96, 96)} and len(images) == 6
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
    asked = demo.embed([row["prompt"] for row in rows(folder / "truth/prompts.csv")])
    known = [row["prompt"] for row in rows(folder / "train/metadata.csv")]
    texts = (folder / "text/prompts.txt").read_text().splitlines()
    assert (asked @ demo.embed(known).T).max() <= population.NEAR
    assert (asked @ demo.embed(texts).T).max() <= population.NEAR
    assert (demo.embed(known) @ demo.embed(texts).T).max() <= population.NEAR


def test_same_seed_same_bytes_whatever_the_workers(folder: Path) -> None:
    deal = demo.choose(5, 90, 6)
    train = rows(folder / "train/metadata.csv")
    test = rows(folder / "truth/prompts.csv")
    assert population.prompts_of(deal.train) == [row["prompt"] for row in train]
    assert population.prompts_of(deal.test) == [row["prompt"] for row in test]
    for i in (0, 41, 89):
        assert photograph(deal.train[i], 96) == (folder / f"train/images/{i:06d}.jpg").read_bytes()


def test_test_images_are_made_as_training_images_are(folder: Path) -> None:
    """A test image holds the pixels of the JPEG that a training image would be."""
    scenes = demo.choose(5, 90, 6).test
    for scene, row in zip(scenes, rows(folder / "truth/prompts.csv"), strict=True):
        saved = Image.open(folder / "test/images" / f"{row['imgId']}.png")
        assert saved.tobytes() == decode(photograph(scene, 96)).tobytes()
        assert saved.tobytes() != render(scene, 96).tobytes()


def test_every_drawing_is_there() -> None:
    for code, noun in grammar.drawings():
        assert max(drawing(code, 64).size) > 30, noun


def test_every_part_of_the_grammar_changes_the_image() -> None:
    fox = next(code for code, noun in grammar.drawings() if noun == "fox")
    scene = Scene((Subject(fox, "fox"),), "beach", "photo", "", (0, 0, 0, 0), (), 7)
    changes = [
        *({"style": s} for s in grammar.STYLES),
        *({"light": v} for v in grammar.LIGHTS if v),
        *({"setting": s} for s in grammar.SETTINGS if s != "beach"),
        {"subjects": (Subject(fox, "fox", 3),)},
        {"subjects": (Subject(fox, "fox", 1, "tiny"),)},
        {"subjects": (Subject(fox, "fox", 1, "", "blue"),)},
    ]
    images = [render(replace(scene, **change), 64).tobytes() for change in changes]
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
        assert model.eval().encode_image(image[None]).shape == (1, 384)
        assert model.encode_text(tokens).shape == (2, 384)
    assert image.shape == (3, 64, 64) and list(model.visual.image_mean) == [0.5, 0.5, 0.5]


def test_stamp(folder: Path, tmp_path: Path) -> None:
    assert demo.is_current(folder, **SIZES) and demo.is_current(folder, **SIZES, workers=1)
    assert not demo.is_current(folder, **{**SIZES, "seed": 6})
    assert not demo.is_current(tmp_path, **SIZES)
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
    heavy = {"torch", "open_clip", "transformers", "polars", "scipy"}
    code = f"import sys, src.demo.clip; print(sorted({heavy} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
