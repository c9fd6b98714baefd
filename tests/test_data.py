"""Readers and decoding: every layout that is read here, and every bad row with its reason."""

import io
import json

import numpy as np
import polars as pl
import pytest
from PIL import Image

from src.data import images, sources


def image(path, colour="red", size=(8, 6), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    for name in ("fox", "owl"):
        image(tmp_path / "set" / "images" / f"{name}.png")
    (tmp_path / "set" / "metadata.csv").write_text(
        'file_name,prompt\nimages/fox.png,"a ""red"" fox, sitting"\n'
        "images/owl.png,\nimages/gone.png,a cat\n"
    )
    return tmp_path / "set"


def test_an_image_folder_is_read_and_bad_rows_are_set_aside_with_a_reason(folder):
    pairs, rejected = sources.read_pairs(folder)
    assert pairs.select("id", "prompt", "source").rows() == [
        ("set/images/fox", 'a "red" fox, sitting', "set")
    ]
    reasons = rejected.select("id", "reason").rows()
    assert reasons == [
        ("set/images/owl", "empty prompt"),
        ("set/images/gone", "no such image"),
    ]


def test_a_jsonl_table_with_other_column_names(folder):
    (folder / "metadata.csv").unlink()
    rows = [
        {"image_path": "images/fox.png", "caption": "a fox"},
        {"image_path": "images/owl.png", "caption": "an owl"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert sources.read_pairs(folder)[0]["prompt"].to_list() == ["a fox", "an owl"]


def test_the_competition_layout_keeps_the_images_ids(tmp_path):
    image(tmp_path / "images" / "20057f34d.png")
    (tmp_path / "prompts.csv").write_text("imgId,prompt\n20057f34d,hyper realistic photo\n")
    assert sources.read_pairs(tmp_path)[0]["id"].to_list() == ["20057f34d"]


def test_several_sources_and_an_id_that_occurs_twice(folder):
    pairs, rejected = sources.read_all([str(folder), {"path": str(folder), "layout": "table"}])
    assert len(pairs) == 1 and rejected["reason"].to_list().count("id occurs twice") == 1


def test_what_is_not_there_is_named(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="nowhere.*set common.train"):
        sources.read_pairs(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither prompts.csv"):
        sources.read_pairs(folder / "images")
    with pytest.raises(ValueError, match="no text column words"):
        sources.read_pairs(folder, text_column="words")
    with pytest.raises(ValueError, match="layout 'tar'"):
        sources.read_pairs(folder, layout="tar")


def test_a_sample_submission_with_an_id_that_has_no_image(tmp_path):
    image(tmp_path / "images" / "aaa.png")
    rows = [f"{i}_{e},0.0" for i in ("aaa", "bbb") for e in range(384)]
    (tmp_path / "sample_submission.csv").write_text("imgId_eId,val\n" + "\n".join(rows))
    with pytest.raises(ValueError, match=r"1 of 2 ids have no image .*'bbb'"):
        sources.read_test(tmp_path)


def test_text_only_prompts_from_files_of_several_kinds(tmp_path):
    (tmp_path / "list.txt").write_text("a fox\n\n an owl\n")
    pl.DataFrame({"id": [1], "text": ["a cat, sleeping"]}).write_csv(tmp_path / "table.csv")
    assert sources.read_text(str(tmp_path)).rows() == [
        ("a fox", "list"),
        (" an owl", "list"),
        ("a cat, sleeping", "table"),
    ]
    assert sources.read_text(None).is_empty()
    with pytest.raises(FileNotFoundError, match="set common.text_only"):
        sources.read_text(str(tmp_path / "gone.txt"))


def test_decoding_turns_everything_into_upright_rgb(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("CMYK", (4, 4)).save(tmp_path / "print.jpg")
    Image.fromarray(np.full((4, 4), 65535, np.uint16)).save(tmp_path / "deep.png")
    Image.new("RGB", (4, 4), "red").quantize().save(tmp_path / "palette.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    image(tmp_path / "turned.jpg", size=(8, 4), exif=turned)
    assert np.asarray(images.decode(tmp_path / "clear.png")).min() == 255, "transparency is white"
    assert np.asarray(images.decode(tmp_path / "deep.png")).min() == 255, (
        "16 bits are scaled, not cut"
    )
    assert images.decode(tmp_path / "turned.jpg").size == (4, 8)
    assert {images.decode(tmp_path / n).mode for n in ("print.jpg", "palette.png")} == {"RGB"}


def test_images_whose_longer_side_counts_are_resized_by_pillow():
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 8:] = 255
    content = io.BytesIO()
    Image.fromarray(wide).save(content, "PNG")
    geometry = images.ImagePreprocess(8, resize_mode="longest")
    found = images.from_bytes(content.getvalue(), geometry)
    np.testing.assert_array_equal(found, images.resized(Image.fromarray(wide), geometry))
    assert found.shape == (8, 8, 3) and found[4].max() == 255


def test_only_as_many_examples_as_asked_for(tmp_path):
    for name in ("ant", "bee", "cat"):
        Image.new("RGB", (9, 9)).save(tmp_path / f"{name}.png")
    rows = pl.DataFrame(
        {"image": [str(tmp_path / f"{name}.png") for name in ("ant", "gone", "bee", "cat")]}
    )
    assert [row["image"][-7:] for _, row in images.examples(rows, 2)] == ["ant.png", "bee.png"]


def test_the_truth_s_ids_stay_text_and_two_images_of_one_id_are_refused(tmp_path):
    pl.DataFrame({"imgId": ["007", "010"], "prompt": ["a cat", "12"]}).write_csv(
        tmp_path / "truth.csv"
    )
    pl.DataFrame({"imgId": [7, 10], "prompt": ["a cat", "12"]}).write_parquet(
        tmp_path / "truth.parquet"
    )
    assert sources.read_truth(tmp_path / "truth.csv").rows() == [("007", "a cat"), ("010", "12")]
    assert sources.read_truth(tmp_path / "truth.parquet").rows() == [("7", "a cat"), ("10", "12")]
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(b"an image")
    with pytest.raises(
        ValueError, match=r"have one id, e\.g\. .*a\.jpg.*a\.png.*take one of them out"
    ):
        sources.read_test(tmp_path)
