"""Real models, small and hardly trained: what the stages wrote is what new images get."""

import runpy
import shlex
import shutil
import subprocess
import sys

import faiss
import nbformat
import numpy as np
import polars as pl
import pytest

from src import artifacts, encoder, errors, paths
from src.ensemble.blending import combine
from src.ensemble.members import load_members
from src.paths import ROOT
from src.submit import batch, kaggle, pack, submission
from src.submit import predictor as predictor_module
from src.submit.predictor import Predictor, stack
from tests.helpers import random_clips


@pytest.fixture(scope="module")
def packed(trained, tmp_path_factory):
    return pack.write(trained / "output", tmp_path_factory.mktemp("packed"))


def expected(output):
    """The blend of the test predictions that the stages left."""
    ids = artifacts.load_table(output / paths.TEST_IMAGES)["id"].to_list()
    members = load_members(output, ids, "test")
    return ids, combine(members, artifacts.load_json(output / paths.BLEND)["weights"])


def test_new_images_get_what_the_test_images_got(trained):
    output = trained / "output"
    ids, blend = expected(output)
    found = Predictor(output, device="cpu")([trained / "test" / f"{i}.png" for i in ids])
    np.testing.assert_allclose(found.embedding, blend, atol=1e-5)
    assert all(len(prompts) == len(set(prompts)) == 5 for prompts in found.prompts)
    assert found.similarity.shape == (len(ids), 5)


def test_model_b_predicts_by_two_clips(trained, packed):
    """The shares of the routes are fixed, so the tests around this one predict by both, too."""
    predictor = Predictor(trained / "output", device="cpu")
    assert set(predictor.clips_b) == {"clip", "clip2"}
    assert [clip.geometry.size for clip in clips_of(predictor)] == [64, 48]
    assert [part.share for part in predictor.model_b.parts] == [0.6, 0.4]

    # each CLIP counts: what the second one gives changes the prediction
    images = sorted((trained / "test").glob("*.png"))[:6]
    pixels = stack([predictor.decode(image) for image in images])
    queries = predictor.encode(pixels).by_clip
    by_column = {column: queries[clip] for column, clip in predictor.clips_b.items()}
    explained = predictor.model_b.explain(by_column)
    assert (np.diff(explained.weight) <= 0).all(), "the prompts with the most weight come first"
    wrong = {**by_column, "clip2": by_column["clip2"][::-1]}
    apart = predictor.model_b.explain(wrong).prediction - explained.prediction
    assert np.abs(apart).max() > 1e-2

    _, packed_clips = predictor_module.clip_names(packed / "output")
    assert packed_clips == {"clip": "local-dir:clip/0", "clip2": "local-dir:clip/1"}
    assert sorted(folder.name for folder in (packed / "clip").iterdir()) == ["0", "1"]


def clips_of(predictor):
    return [predictor.ensembles[name].clip for name in predictor.clips_b.values()]


def test_in_batches_and_parts_of_any_size_the_prediction_is_the_same(trained, monkeypatch):
    files = sorted((trained / "test").glob("*.png"))
    predictor = Predictor(trained / "output", device="cpu")
    whole = predictor(files)
    monkeypatch.setattr(predictor_module, "PART_SIZE", 7)
    parts = predictor(files, batch_size=3)
    np.testing.assert_allclose(parts.embedding, whole.embedding, atol=1e-5)
    np.testing.assert_allclose(parts.confidence, whole.confidence, atol=1e-5)
    assert parts.prompts == whole.prompts and predictor([]).embedding.shape == (0, 384)


def test_the_command_line_gives_the_same(trained, tmp_path):
    output = trained / "output"
    out = tmp_path / "found.parquet"
    assert (
        batch.main(
            [
                "--images",
                str(trained / "test"),
                "--out",
                str(out),
                "--output",
                str(output),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    found = pl.read_parquet(out)
    ids, blend = expected(output)
    assert [name.removesuffix(".png") for name in found["id"]] == ids
    np.testing.assert_allclose(found["embedding"].to_numpy(), blend, atol=1e-5)


def test_a_member_of_weight_zero_is_not_loaded(trained, tmp_path):
    output = tmp_path / "output"
    shutil.copytree(trained / "output", output)
    blend = artifacts.load_json(output / paths.BLEND)
    artifacts.save_json(
        output / paths.MEMBERS_A,
        {**artifacts.load_json(output / paths.MEMBERS_A), "members": ["model_a", "gone"]},
    )
    artifacts.save_json(
        output / paths.BLEND, {**blend, "weights": {**blend["weights"], "gone": 0.0}}
    )
    found = Predictor(output, device="cpu")([trained / "test" / "red_flag.png"])
    ids, whole = expected(trained / "output")
    np.testing.assert_allclose(found.embedding[0], whole[ids.index("red_flag")], atol=1e-5)


def test_on_a_hosted_image_the_pack_writes_the_same_submission(trained, packed, tmp_path):
    ids, blend = expected(trained / "output")
    submission.write(ids, blend, tmp_path / "sample_submission")
    command = [
        sys.executable,
        str(ROOT / "tests" / "helpers" / "hosted_image.py"),
        str(packed),
        "--images",
        str(trained / "test"),
        "--sample",
        str(tmp_path / "sample_submission.csv"),
        "--out",
        str(tmp_path / "submission.csv"),
        "--device",
        "cpu",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ids)} images, checked" in done.stdout
    table = pl.read_parquet(tmp_path / "submission.parquet")
    places = artifacts.indices_of_ids(ids, table["id"].to_list(), "ids")
    np.testing.assert_allclose(table["embedding"].to_numpy(), blend[places], atol=1e-5)
    assert table["confidence"].is_between(0, 1).all()


def test_the_pack_says_what_it_is(packed):
    told = (packed / "README.md").read_text(encoding="utf-8")
    assert "python run.py --images FOLDER --sample" in told and "open_clip 3" in told


def test_the_stand_in_for_faiss_gives_what_faiss_gives(packed):
    stand_in = runpy.run_path(str(packed / "fallback" / "faiss.py"))
    x = np.random.default_rng(0).standard_normal((50, 8), dtype=np.float32)
    metric = stand_in["METRIC_INNER_PRODUCT"]
    similarity, index = stand_in["knn"](x[:7], x, 5, metric)
    expected, expected_index = faiss.knn(x[:7], x, 5, metric=faiss.METRIC_INNER_PRODUCT)
    np.testing.assert_allclose(similarity, expected, atol=1e-6)
    np.testing.assert_array_equal(index, expected_index)


DATASET_FIELDS = {"title", "id", "licenses"}
KERNEL_FIELDS = {
    *("id", "title", "code_file", "language", "kernel_type", "is_private", "enable_gpu"),
    *("enable_internet", "dataset_sources", "competition_sources", "kernel_sources"),
    "model_sources",
}


def test_the_commands_for_kaggle_can_be_pasted_whatever_the_folder_is_called(tmp_path):
    folder = tmp_path / "it's a pack [1]"
    folder.mkdir()
    commands = kaggle.write(folder, user="ada", name="fox-finder")
    places = [shlex.split(command)[4] for command in commands]
    assert places == [str(folder), str(folder / "kernel")]


def test_the_files_for_kaggle_have_the_documented_fields(tmp_path):
    commands = kaggle.write(tmp_path, user="ada", name="fox-finder")
    assert commands == [
        f"kaggle datasets create -p {tmp_path} --dir-mode zip --keep-tabular",
        f"kaggle kernels push -p {tmp_path}/kernel",
    ]
    dataset = artifacts.load_json(tmp_path / "dataset-metadata.json")
    assert dataset.keys() == DATASET_FIELDS
    assert 6 <= len(dataset["title"]) <= 50 and dataset["id"] == "ada/fox-finder"
    assert len(dataset["licenses"]) == 1

    kernel = artifacts.load_json(tmp_path / "kernel" / "kernel-metadata.json")
    assert kernel.keys() == KERNEL_FIELDS
    assert kernel["id"] == "ada/" + kernel["title"].lower().replace(" ", "-")
    assert (tmp_path / "kernel" / kernel["code_file"]).is_file()
    assert kernel["dataset_sources"] == [dataset["id"]]
    assert kernel["language"] == "python" and kernel["kernel_type"] == "notebook"
    assert kernel["enable_internet"] == "false"


@pytest.mark.parametrize(
    ("user", "name", "message"),
    [
        ("ada lovelace", "fox-finder", "'ada lovelace' is not a user name"),
        ("ada", "Fox Finder", "must be 6 to 50 small letters"),
        ("ada", "fox", "must be 6 to 50 small letters"),
        ("ada", "x" * 51, "must be 6 to 50 small letters"),
        ("ada", "fox--finder", "must be 6 to 50 small letters"),
    ],
)
def test_a_name_that_kaggle_would_refuse_is_refused(tmp_path, user, name, message):
    with pytest.raises(errors.UserError, match=message):
        kaggle.write(tmp_path, user=user, name=name)
    assert not list(tmp_path.iterdir())


def test_the_notebook_for_kaggle_writes_the_submission(trained, packed, tmp_path):
    attached = tmp_path / "input"
    shutil.copytree(packed, attached / "fox-finder")
    ids, blend = expected(trained / "output")
    submission.write(ids, blend, attached / "competition" / "sample_submission")
    shutil.copytree(trained / "test", attached / "competition" / "images")
    (tmp_path / "working").mkdir()

    notebook = nbformat.read(pack.PACKED / kaggle.NOTEBOOK, as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    names = {}
    for source in cells:
        exec(source.replace("/kaggle/", f"{tmp_path}/"), names)
    submission.check(
        tmp_path / "working" / "submission.csv", attached / "competition" / "sample_submission.csv"
    )


def test_a_local_tower_of_timm_is_packed_too(trained, tmp_path):
    tower = random_clips.write_timm_tower("test_vit", tmp_path / "tower")
    clip = f"local-dir:{trained / 'clip'}"
    for file in (paths.MEMBERS_A, paths.MEMBERS_B, paths.BLEND):
        (tmp_path / "pack" / "output" / file).parent.mkdir(parents=True, exist_ok=True)
        content = {"members": ["model_a", "small"]}
        artifacts.save_json(tmp_path / "pack" / "output" / file, content)

    pack._pack_clips(tmp_path / "pack", {"model_a": clip, "small": tower}, {"model_b": clip})
    named = artifacts.load_json(tmp_path / "pack" / "output" / paths.MEMBERS_A)["clip"]
    assert named == {"model_a": "local-dir:clip/0", "small": "timm:local-dir:clip/1"}
    copied = encoder.load(f"timm:local-dir:{tmp_path / 'pack' / 'clip' / '1'}", device="cpu")
    assert copied.fingerprint == encoder.load(tower, device="cpu").fingerprint


def test_a_pack_needs_an_empty_folder_and_a_local_clip(trained, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("x")
    assert pack.main([str(tmp_path), "--output", str(trained / "output")]) == 2
    assert "is not empty" in capsys.readouterr().err
    output = tmp_path / "output"
    shutil.copytree(trained / "output", output)
    members = artifacts.load_json(output / paths.MEMBERS_A)
    artifacts.save_json(
        output / paths.MEMBERS_A, {**members, "clip": {"model_a": "ViT-L-14/openai"}}
    )
    assert pack.main([str(tmp_path / "pack"), "--output", str(output)]) == 2
    assert "'ViT-L-14/openai' is read from a hub" in capsys.readouterr().err
