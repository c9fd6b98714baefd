"""`./run_all.sh predict`: any number of images, part by part, as the notebooks predict them."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
from PIL import Image

from src import artifacts, errors, paths
from src.data import sample_submission
from src.paths import ROOT
from src.submit import batch, pack, submission
from src.submit import predictor as predictor_module
from src.submit.folder import read_folder
from src.submit.parts import Parts, parts_folder
from src.submit.vectors import vectors_file
from tests.helpers.arithmetic_predictor import Toy, write_images

COUNT = 40


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder, COUNT)
    return folder


def predicted(images, out, **options):
    options = {"batch_size": 4, "part_size": 8, **options}
    good, rejected = batch.predict_folder(Toy(out.parent), read_folder(images), out, **options)
    return good, len(rejected)


def test_every_image_in_order_of_its_path_and_the_broken_ones_listed(images, tmp_path):
    assert predicted(images, tmp_path / "found.parquet") == (COUNT - 1, 2)
    table = pl.read_parquet(tmp_path / "found.parquet")
    assert table["id"].to_list() == sorted(
        set(read_folder(images).images) - {"a/0001.jpg", "a/=cmd.png"}
    )
    assert table.schema["embedding"] == pl.Array(pl.Float32, 384)
    np.testing.assert_allclose(np.linalg.norm(table["embedding"].to_numpy(), axis=1), 1, atol=1e-6)
    assert table["prompts"].list.len().unique().to_list() == [2]
    vectors = np.load(vectors_file(tmp_path / "found.parquet"))
    np.testing.assert_allclose(vectors, table["embedding"].to_numpy(), atol=1e-6)
    rejected = pl.read_csv(tmp_path / "found.parquet.rejected.csv")
    assert rejected["id"].to_list() == ["a/0001.jpg", "a/=cmd.png"]
    assert (
        "UnidentifiedImageError: its 12 bytes are not an image in any of PNG, JPEG"
        in rejected["reason"][0]
    )
    assert not parts_folder(tmp_path / "found.parquet").exists()


def test_batches_and_parts_change_nothing(images, tmp_path):
    predicted(images, tmp_path / "small.parquet")
    predicted(images, tmp_path / "large.parquet", batch_size=64, part_size=1000)
    assert pl.read_parquet(tmp_path / "small.parquet").equals(
        pl.read_parquet(tmp_path / "large.parquet")
    )
    table = pl.read_parquet(tmp_path / "small.parquet")
    again = Toy(tmp_path)([images / name for name in table["id"][:5]])
    np.testing.assert_array_equal(again.embedding, table["embedding"][:5].to_numpy())
    opened = Toy(tmp_path)([Image.open(images / table["id"][0])])
    np.testing.assert_array_equal(opened.embedding[0], again.embedding[0])


def test_an_opened_image_gives_what_its_file_gives(tmp_path):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (30, 50, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "transparent.png")
    Image.fromarray(pixels[..., :3]).convert("P").save(tmp_path / "palette.png")
    Image.fromarray((pixels[..., 0] * 256.0).astype(np.uint16)).save(tmp_path / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(pixels[..., :3]).save(tmp_path / "turned.png", exif=exif)

    predictor = Toy(tmp_path)
    for file in sorted(tmp_path.glob("*.png")):
        with Image.open(file) as image:
            opened = predictor.decode(image)
            assert image.size == (50, 30), "the user's image was changed"
        for preprocess, expected in predictor.decode(file).items():
            np.testing.assert_array_equal(opened[preprocess], expected, err_msg=file.name)


def test_csv_and_npy_hold_the_same_numbers(images, tmp_path):
    for suffix in batch.FORMATS:
        predicted(images, tmp_path / f"found{suffix}")
    x = pl.read_parquet(tmp_path / "found.parquet")["embedding"].to_numpy()
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), x)
    assert pl.read_parquet(tmp_path / "found.ids.parquet").columns == [
        "id",
        "confidence",
        "prompts",
        "similarity",
    ]
    table = pl.read_csv(
        tmp_path / "found.csv", schema_overrides={f"e{i}": pl.Float32 for i in range(384)}
    )
    np.testing.assert_array_equal(table.select(f"e{i}" for i in range(384)).to_numpy(), x)


def test_a_csv_shows_no_formula_and_keeps_every_id(tmp_path):
    folder = tmp_path / "images"
    write_images(folder, COUNT)
    (folder / "@sum.png").write_bytes((folder / "a" / "0009.png").read_bytes())
    predicted(folder, tmp_path / "found.csv")

    table = pl.read_csv(tmp_path / "found.csv", infer_schema_length=10)
    rejected = pl.read_csv(tmp_path / "found.csv.rejected.csv")
    for shown in (table["prompt"], rejected["reason"]):
        assert not any(cell[0] in "=+-@" for cell in shown)
    assert table["prompt"].str.starts_with("'=").any(), "nothing here would have been a formula"
    assert "@sum.png" in table["id"] and "a/=cmd.png" in rejected["id"]
    assert {*table["id"], *rejected["id"]} == set(read_folder(folder).images)


def test_killed_half_way_it_ends_with_the_same_file(images, tmp_path):
    predicted(images, tmp_path / "undisturbed.parquet")
    out = tmp_path / "found.parquet"
    command = [sys.executable, "-m", "tests.helpers.arithmetic_predictor", str(images)]
    process = subprocess.Popen([*command, str(out)], cwd=ROOT, stderr=subprocess.DEVNULL)
    parts = parts_folder(out)
    deadline = time.monotonic() + 300
    while len(list(parts.glob("[0-9]*[0-9].parquet"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    kept = [pl.read_parquet(file).height for file in parts.glob("[0-9]*[0-9].parquet")]
    assert 2 <= len(kept) < 5 and not out.exists()
    predictor = Toy(tmp_path)
    batch.predict_folder(predictor, read_folder(images), out, batch_size=4, part_size=8)
    assert predictor.count == COUNT - 1 - sum(kept), "finished parts were predicted again"
    assert out.read_bytes() == (tmp_path / "undisturbed.parquet").read_bytes()


def test_parts_of_other_images_are_not_taken(images, tmp_path):
    out = tmp_path / "found.parquet"
    parts = Parts(out, {"images": "others"}, 5).folder
    (parts / "000000.parquet").write_bytes(b"of other images")
    assert predicted(images, out) == (COUNT - 1, 2)
    parts.mkdir()
    (parts / "diary.txt").write_text("mine")
    with pytest.raises(errors.UserError, match="it is not parts of a prediction"):
        predicted(images, out)
    assert (parts / "diary.txt").exists()


def test_a_submission_in_the_samples_order_with_the_broken_image_filled(images, tmp_path):
    ids = ["0008", "0001", "0000"]
    submission.write(ids, np.eye(3, 384, dtype=np.float32) + 0.01, tmp_path / "any")
    order = sample_submission.sample_ids(tmp_path / "any.csv")
    assert batch.predict_submission(
        Toy(tmp_path),
        read_folder(images),
        tmp_path / "any.csv",
        tmp_path / "submission.csv",
        batch_size=4,
    ) == (2, 1)
    table = pl.read_parquet(tmp_path / "submission.parquet")
    assert table["id"].to_list() == order and table.filter(pl.col("id") == "0001")[
        "confidence"
    ].to_list() == [0]
    submission.write([*ids, "9999"], np.eye(4, 384, dtype=np.float32) + 0.01, tmp_path / "more")
    with pytest.raises(errors.UserError, match=r"1 of 4 ids have no image in .*'9999'"):
        batch.predict_submission(
            Toy(tmp_path), read_folder(images), tmp_path / "more.csv", tmp_path / "submission.csv"
        )


def test_two_images_of_one_id_are_refused(tmp_path):
    for file in ("fox.png", "fox.jpg"):
        Image.new("RGB", (20, 20)).save(tmp_path / file)
    submission.write(["fox"], np.ones((1, 384), np.float32), tmp_path / "any")
    with pytest.raises(errors.UserError, match="1 ids have more than one image, e.g. .'fox'"):
        batch.predict_submission(
            Toy(tmp_path), read_folder(tmp_path), tmp_path / "any.csv", tmp_path / "submission.csv"
        )


def test_odd_names_and_links_to_nowhere(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    good = folder / "fox.png"
    Image.new("RGB", (20, 20)).save(good)
    shutil.copyfile(good, os.fsencode(folder) + b"/caf\xe9.png")
    shutil.copyfile(good, folder / "a#b::c, d.PNG")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    assert predicted(folder, tmp_path / "found.csv") == (3, 1)
    assert pl.read_csv(tmp_path / "found.csv")["id"].to_list() == [
        "a#b::c, d.PNG",
        "caf\\udce9.png",
        "fox.png",
    ]
    assert pl.read_csv(tmp_path / "found.csv.rejected.csv")["reason"][0].startswith(
        "FileNotFoundError"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "x"], "the following arguments are required: --out"),
        (["--images", "x", "--out", "y.json"], "--out must end in .parquet, .csv, .npy"),
        (["--images", "x", "--out", "y.npy", "--sample", "s.csv"], "(with --sample: .csv)"),
        (
            ["--images", "x", "--out", "y.csv", "--batch-size", "0"],
            "--batch-size must be at least 1",
        ),
    ],
)
def test_wrong_arguments_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit):
        batch.main(arguments)
    assert message in capsys.readouterr().err


def test_what_is_missing_is_named(tmp_path, capsys):
    assert batch.main(["--images", str(tmp_path / "nowhere"), "--out", "y.csv"]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("x")
    assert batch.main(["--images", str(tmp_path), "--out", "y.csv"]) == 2
    assert "no image (.png" in capsys.readouterr().err
    Image.new("RGB", (4, 4)).save(tmp_path / "fox.png")
    assert batch.main(["--images", str(tmp_path), "--out", "y.csv", "--output", str(tmp_path)]) == 2
    assert "blend.json does not exist" in capsys.readouterr().err


def test_an_output_of_an_earlier_version_names_the_stage_to_run(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "trained")
    blend = artifacts.load_json(folder / "output" / paths.BLEND)
    artifacts.save_json(
        folder / "output" / paths.BLEND, {k: v for k, v in blend.items() if k != "confidence"}
    )
    for main, wanted in (
        (batch.main, ["--images", str(folder / "test"), "--out", str(tmp_path / "found.npy")]),
        (pack.main, [str(tmp_path / "pack")]),
    ):
        assert main([*wanted, "--output", str(folder / "output")]) == 2
        assert (
            "blend.json was written by an earlier version: run ./run_all.sh --from 04 first"
            in capsys.readouterr().err
        )
    assert not (tmp_path / "pack").exists()


def test_a_clip_that_cannot_be_loaded_is_a_problem_that_names_it(trained, tmp_path, capsys):
    folder = shutil.copytree(trained, tmp_path / "trained")
    members = artifacts.load_json(folder / "output" / paths.MEMBERS_A)
    members["clip"] = {"model_a": f"local-dir:{folder / 'clip'}"}
    artifacts.save_json(folder / "output" / paths.MEMBERS_A, members)
    weights = folder / "clip" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for main, wanted in (
        (batch.main, ["--images", str(folder / "test"), "--out", str(tmp_path / "found.npy")]),
        (pack.main, [str(tmp_path / "pack")]),
    ):
        assert main([*wanted, "--output", str(folder / "output")]) == 2
        said = capsys.readouterr().err
        assert f"clip: 'local-dir:{folder / 'clip'}' could not be loaded (SafetensorError" in said
        assert "copy its files there again" in said and "without internet" not in said
    assert not (tmp_path / "pack").exists()


def test_every_file_of_a_folder_is_predicted_rejected_or_skipped_by_name(tmp_path):
    folder = tmp_path / "set [v2]"
    deeper = folder / "one" / "two" / "three"
    deeper.mkdir(parents=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))
    for name, kind in (
        ("fox.jfif", "JPEG"),
        ("fox.avif", "AVIF"),
        ("fox.jp2", "JPEG2000"),
        ("one/two/three/FOX.PNG", "PNG"),
    ):
        image.save(folder / name, format=kind)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    image.save(elsewhere / "owl.png")
    (folder / "linked.png").symlink_to(elsewhere / "owl.png")
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(folder)  # a circle of links ends
    (folder / "fox.heic").write_bytes(b"\0\0\0\x18ftypheic")
    for name in ("notes.txt", "._fox.jpg", "fox"):
        (folder / name).write_text("no image")

    source = read_folder(folder)
    out = tmp_path / "o [1].parquet"
    _, rejected = batch.predict_folder(Toy(tmp_path), source, out)
    assert pl.read_parquet(out, glob=False)["id"].to_list() == [
        "fox.avif",
        "fox.jfif",
        "fox.jp2",
        "linked.png",
        "linked/owl.png",
        "one/two/three/FOX.PNG",
    ]
    assert rejected["id"].to_list() == ["fox.heic"]
    assert source.summary() == (
        "skipped: 1 .txt (notes.txt); 1 hidden (._fox.jpg); 1 without an ending (fox)"
    )


@pytest.mark.parametrize("suffix", batch.FORMATS)
def test_brackets_in_a_name_are_letters(tmp_path, suffix):
    folder = tmp_path / "set [v2]"
    folder.mkdir()
    Image.new("RGB", (20, 20)).save(folder / "a[1].png")
    Image.new("RGB", (20, 20), "white").save(folder / "a1.png")
    (tmp_path / "o 1.parquet").write_bytes(b"another file")
    assert predicted(folder, tmp_path / f"o [1]{suffix}", part_size=1) == (2, 0)


def test_the_id_of_an_unreadable_image_may_look_like_a_formula(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("=good.png", "@user_1.png"):
        Image.new("RGB", (20, 20), "white").save(folder / name)
    (folder / "-bad1.png").write_bytes(b"no image")
    ids = ["-bad1", "@user_1", "=good"]
    submission.write(ids, np.eye(3, 384, dtype=np.float32) + 0.01, tmp_path / "any")
    assert batch.predict_submission(
        Toy(tmp_path), read_folder(folder), tmp_path / "any.csv", tmp_path / "submission.csv"
    ) == (2, 1)
    table = pl.read_parquet(tmp_path / "submission.parquet")
    assert sorted(table["id"]) == sorted(ids)
    assert table.filter(pl.col("confidence") == 0)["id"].to_list() == ["-bad1"]


def test_only_broken_images_are_a_problem_that_names_the_list(tmp_path):
    (tmp_path / "fox.png").write_bytes(b"")
    with pytest.raises(errors.UserError, match="none of the 1 images.*found.parquet.rejected.csv"):
        batch.predict_folder(Toy(tmp_path), read_folder(tmp_path), tmp_path / "found.parquet")


def test_the_command_writes_a_submission_and_says_how_many_were_filled(
    images, tmp_path, capsys, monkeypatch
):
    submission.write(["0000", "0001"], np.eye(2, 384, dtype=np.float32) + 0.01, tmp_path / "any")
    monkeypatch.setattr(batch, "Predictor", lambda output, **_: Toy(tmp_path))
    command = [
        "--images",
        str(images),
        "--sample",
        str(tmp_path / "any.csv"),
        "--out",
        str(tmp_path / "submission.csv"),
    ]
    assert batch.main(command) == 0
    assert (
        "submission.csv: 1 images, checked; 1 unreadable ones have the mean prediction"
        in capsys.readouterr().out
    )

    def stopped(output, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "Predictor", stopped)
    assert batch.main(command) == 130
    assert "the same command continues from here" in capsys.readouterr().err


def test_a_member_without_folds_names_the_stage_to_run(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no trained fold of model_a: run ./run_all.sh --only 02 first"
    ):
        predictor_module.fold_bases(tmp_path, "model_a")
