"""Each kind of fault that shards, Parquet files and folders have: the right pairs, or a reason."""

import gzip
import io
import json
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from src.data import layouts, sources
from src.data.layouts import rows
from tests.helpers.colored_images import encoded, read, save_image

FOX = ("a fox", "red")
OWL = ("an owl", "lime")
RED = encoded("red")
LIME = encoded("lime")
WHITE = encoded("white")


def write_shard(file: Path, *samples: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(file)) as writer:
        for sample in samples:
            writer.write(sample)


def write_tar(file: Path, *members: tuple[str, bytes | str]) -> None:
    """A tar of (name, content); a text is the name that a hard link links to."""
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            if isinstance(content, str):
                header.type = tarfile.LNKTYPE
                header.linkname = content
                tar.addfile(header)
            else:
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))


def ids_of(path: Path) -> list[str]:
    return sources.read_pairs(path)[0]["id"].str.strip_prefix(f"{path.name}/").to_list()


# --- one container convention ---


def test_keys_with_dots_neither_merge_nor_vanish(tmp_path):
    write_shard(
        tmp_path / "0.tar",
        {"__key__": "fox_v1.5_a", "jpg": encoded("red", "JPEG"), "txt": "a fox"},
        {"__key__": "fox_v1.5_b", "png": LIME, "json": {"caption": "an owl"}},
        {"__key__": "fox_v2.0", "png": WHITE, "txt": "snow"},
    )
    assert read(tmp_path) == ([FOX, OWL, ("snow", "white")], [])
    assert ids_of(tmp_path) == ["0/fox_v1.5_a", "0/fox_v1.5_b", "0/fox_v2"]


def test_several_extensions_are_one_sample(tmp_path):
    write_shard(
        tmp_path / "0.tar",
        {"__key__": "sample0", "input.jpg": encoded("red", "JPEG"), "outputs.txt": "a fox"},
        {"__key__": "sample1", "jpg": encoded("lime", "JPEG"), "mask.png": WHITE, "txt": "an owl"},
        {"__key__": "sample2", "png": LIME, "seg.npy": np.zeros(3), "txt": "an owl too"},
    )
    assert read(tmp_path) == ([FOX, OWL, ("an owl too", "lime")], [])
    assert ids_of(tmp_path) == ["0/sample0", "0/sample1", "0/sample2"]


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ({"left.jpg": RED, "right.jpg": LIME, "txt": "which?"}, rows.SEVERAL_IMAGES),
        ({"jpg": RED, "png": LIME, "txt": "which?"}, rows.SEVERAL_IMAGES),
        ({"jpg": RED, "short.txt": "which?", "long.txt": "which?"}, rows.SEVERAL_TEXTS),
    ],
)
def test_a_sample_of_two_images_or_texts_is_refused(tmp_path, sample, reason):
    names = {
        name: value.encode() if name.endswith("txt") else value for name, value in sample.items()
    }
    write_tar(tmp_path / "0.tar", *((f"a.{name}", value) for name, value in names.items()))
    assert read(tmp_path) == ([], [reason])


def test_an_unsorted_shard(tmp_path):
    write_tar(
        tmp_path / "0.tar",
        ("x/a.png", RED),
        ("x/b.png", LIME),
        ("y/a.png", WHITE),
        ("x/b.txt", b"an owl"),
        ("y/a.txt", b"snow"),
        ("x/a.txt", b"a fox"),
    )
    assert read(tmp_path) == ([FOX, OWL, ("snow", "white")], [])


def test_hard_links_lead_to_their_file(tmp_path):
    write_tar(
        tmp_path / "0.tar",
        ("./a.png", RED),
        ("./a.txt", b"a fox"),
        ("./b.png", "a.png"),
        ("./b.txt", b"a fox again"),
        ("./c.png", LIME),
        ("./c.txt", "./a.txt"),
    )
    assert read(tmp_path) == ([FOX, ("a fox again", "red"), ("a fox", "lime")], [])


@pytest.mark.parametrize("name", ["0.TAR", "0.PARQUET"])
def test_containers_in_capitals(tmp_path, name):
    if name.endswith("TAR"):
        write_tar(tmp_path / name, ("a.PNG", RED), ("a.TXT", b"a fox"))
    else:
        table = pa.table({"image": images_of(RED), "text": ["a fox"]})
        pq.write_table(table, tmp_path / name)
    assert read(tmp_path) == ([FOX], [])


def test_shards_of_one_name_in_two_folders_keep_apart(tmp_path):
    for folder, color in (("a", "red"), ("b", "lime")):
        sample = {"__key__": "0", "png": encoded(color), "txt": color}
        write_shard(tmp_path / folder / "00000.tar", sample)
    assert read(tmp_path) == ([("red", "red"), ("lime", "lime")], [])
    assert ids_of(tmp_path) == ["a/00000/0", "b/00000/0"]


# --- sidecar files ---


def test_what_a_mac_leaves_in_an_archive_is_counted(tmp_path, capsys):
    junk = b"\0\5\x16\7Mac OS X"
    write_tar(
        tmp_path / "0.tar",
        ("._a.png", junk),
        ("a.png", RED),
        ("._a.txt", junk),
        ("a.txt", b"a fox"),
        (".DS_Store", junk),
        ("__MACOSX/._b.png", junk),
        ("b.png", LIME),
        ("b.txt", b"an owl"),
    )
    (tmp_path / "._0.tar").write_bytes(junk)
    (tmp_path / "1.tar.gz").write_bytes(junk)
    assert read(tmp_path) == ([FOX, OWL], [layouts.SIDECAR] * 4)
    assert "1 compressed tars are not read: 1.tar.gz" in capsys.readouterr().out
    pairs, rejected = sources.read_pairs(tmp_path)
    assert sources.bad_share(len(pairs), rejected) == 0


@pytest.mark.parametrize("layout", ["files", "table"])
def test_what_a_system_leaves_in_a_folder_is_counted(tmp_path, layout, capsys):
    junk = b"\0\5\x16\7Mac OS X"
    for name, (prompt, color) in (("a", FOX), ("b", OWL)):
        save_image(tmp_path / f"{name}.png", color)
        (tmp_path / f"._{name}.png").write_bytes(junk)
        (tmp_path / f"._{name}.txt").write_bytes(junk)
        if layout == "files":
            (tmp_path / f"{name}.txt").write_text(prompt)
    if layout == "table":
        table = pl.DataFrame({"file_name": ["a.png", "b.png"], "text": [FOX[0], OWL[0]]})
        table.write_csv(tmp_path / "metadata.csv")
        (tmp_path / "._metadata.csv").write_bytes(junk)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).write_bytes(junk)
    (tmp_path / "__MACOSX").mkdir()
    pairs, reasons = read(tmp_path)
    assert pairs == [FOX, OWL] and set(reasons) == {layouts.SIDECAR}
    assert len(reasons) == (8 if layout == "files" else 9)
    assert sources.read_test(tmp_path)[0]["id"].to_list() == ["a", "b"]


def test_test_images_beside_a_systems_files(tmp_path, capsys):
    save_image(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "._a.png").write_bytes(b"junk")
    assert sources.read_test(tmp_path)[0]["id"].to_list() == ["a"]
    assert "1 files are not test images: ._a.png" in capsys.readouterr().out


# --- silent selection in text folders ---


def test_every_text_file_of_a_folder_is_read_or_named(tmp_path, capsys):
    texts = tmp_path / "texts"
    (texts / "deep" / "deeper").mkdir(parents=True)
    (texts / "A.TXT").write_text("one\n")
    (texts / "b.csv.gz").write_bytes(gzip.compress(b"prompt\ntwo\n"))
    (texts / "c.txt.gz").write_bytes(gzip.compress("three\n".encode("utf-16")))
    (texts / "d.JSONL").write_text('{"text": "four"}')
    (texts / "deep" / "deeper" / "e.txt").write_text("five\n")
    pl.DataFrame({"prompt": ["six"]}).write_parquet(texts / "f.PARQUET")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "g.txt").write_text("seven\n")
    (texts / "linked").symlink_to(tmp_path / "elsewhere")
    (texts / "circle").symlink_to(texts)
    (texts / "._A.TXT").write_bytes(b"\0\5junk")
    (texts / ".DS_Store").write_bytes(b"\0\5junk")
    (texts / "notes.docx").write_bytes(b"PK")
    prompts = sources.read_text(str(texts))
    expected = ["five", "four", "one", "seven", "six", "three", "two"]
    assert sorted(prompts["prompt"]) == expected
    assert set(prompts["source"]) == {"A", "b", "c", "d", "e", "f", "g"}
    assert "3 files are not text: .DS_Store, ._A.TXT, notes.docx" in capsys.readouterr().out


# --- knowledge in one reader only ---


def img2dataset_table() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "url": ["x", "y", "z"],
            "key": ["000", "001", "002"],
            "status": ["success", "failed_to_download", "success"],
            "caption": ["a fox", "lost", "an owl"],
            "jpg": [encoded("red", "JPEG"), None, encoded("lime", "JPEG")],
        }
    )


def test_img2datasets_parquet_with_failed_rows(tmp_path):
    img2dataset_table().write_parquet(tmp_path / "00000.parquet")
    assert read(tmp_path) == ([FOX, OWL], [f"{layouts.NOT_DELIVERED}: failed_to_download"])
    pairs, rejected = sources.read_pairs(tmp_path)
    assert sources.bad_share(len(pairs), rejected) == 0


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.jsonl"])
def test_the_status_in_a_table_of_files(tmp_path, name):
    save_image(tmp_path / "0.jpg", "red")
    save_image(tmp_path / "2.jpg", "lime")
    table = (
        img2dataset_table()
        .drop("jpg")
        .with_columns(file_name=pl.Series(["0.jpg", "1.jpg", "2.jpg"]))
    )
    suffix = name.split(".")[1]
    write = {"csv": table.write_csv, "parquet": table.write_parquet, "jsonl": table.write_ndjson}
    write[suffix](tmp_path / name)
    assert read(tmp_path) == ([FOX, OWL], [f"{layouts.NOT_DELIVERED}: failed_to_download"])


IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_parquet_that_names_its_images_by_path(tmp_path):
    save_image(tmp_path / "data" / "images" / "1.png", "red")
    cells = [
        {"bytes": None, "path": "images/1.png"},
        {"bytes": LIME, "path": "2.png"},
        {"bytes": None, "path": "/other/machine/images/1.png"},
        {"bytes": None, "path": "images/gone.png"},
        {"bytes": None, "path": None},
        None,
    ]
    texts = ["a fox", "an owl", "a fox again", "gone", "neither", "null"]
    table = pa.table({"image": pa.array(cells, IMAGE_TYPE), "text": texts})
    pq.write_table(table, tmp_path / "data" / "train-00000.parquet", row_group_size=2)
    assert read(tmp_path) == ([FOX, OWL, ("a fox again", "red")], [layouts.NO_IMAGE] * 3)


# --- the first column that looks right wins ---


def images_of(*content: bytes) -> pa.Array:
    return pa.array([{"bytes": image, "path": None} for image in content], IMAGE_TYPE)


@pytest.mark.parametrize(
    "columns",
    [
        {"conditioning_image": images_of(WHITE), "image": images_of(RED), "text": ["a fox"]},
        {"text": [b"a fox"], "image": images_of(RED)},
        {"text": [b"BM a fox"], "picture": [RED]},
        {"mask": [WHITE], "jpg": [RED], "caption": ["a fox"]},
        {"embedding": [b"\1\2\3"], "photo": images_of(RED), "caption": ["a fox"]},
    ],
    ids=["conditioning", "text as bytes", "text like a bitmap", "mask", "one of unknown name"],
)
def test_the_image_column_is_known_by_name_and_content(tmp_path, columns):
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    pairs, reasons = read(tmp_path)
    assert [color for _, color in pairs] == ["red"] and reasons == []
    assert pairs[0][0].endswith("a fox")


@pytest.mark.parametrize("names", [("before", "after"), ("image", "jpg")])
def test_two_columns_of_images_are_refused_by_name(tmp_path, names):
    table = pa.table({names[0]: [RED], names[1]: [LIME], "text": ["which?"]})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=f"columns {names[0]} and {names[1]} all hold images"):
        sources.read_pairs(tmp_path)


def test_binary_columns_without_an_image_are_no_images(tmp_path):
    save_image(tmp_path / "1.png")
    pq.write_table(
        pa.table({"digest": [b"\1\2"], "file_name": ["1.png"], "prompt": [b"a fox"]}),
        tmp_path / "t.parquet",
    )
    assert read(tmp_path) == ([FOX], [])


# --- structure turned into text ---


def test_lists_of_captions_in_shards_files_and_parquet(tmp_path):
    two = {"caption": ["a fox", "a red fox"]}
    expected = [FOX, ("a red fox", "red")]
    write_shard(tmp_path / "tar" / "0.tar", {"__key__": "0", "png": RED, "json": two})
    save_image(tmp_path / "files" / "0.png")
    (tmp_path / "files" / "0.json").write_text(json.dumps(two))
    table = pa.table({"image": images_of(RED), "caption": [["a fox", "a red fox"]]})
    (tmp_path / "parquet").mkdir()
    pq.write_table(table, tmp_path / "parquet" / "train.parquet")
    for folder in ("tar", "files", "parquet"):
        assert read(tmp_path / folder) == (expected, []), folder
        pairs = sources.read_pairs(tmp_path / folder)[0]
        assert pairs["image"].n_unique() == 1 and pairs["id"][1] == pairs["id"][0] + "#2"

    one = {"__key__": "0", "png": RED, "json": {"caption": {"en": "a fox"}}}
    write_shard(tmp_path / "object" / "0.tar", one)
    assert read(tmp_path / "object") == ([], ["its prompt is a JSON object"])


# --- encoding known at one door ---

ACCENTED = "a café, naïve “fox” – 5 €"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_captions_in_each_encoding(tmp_path, encoding):
    text = ACCENTED.encode(encoding)
    values = json.dumps({"caption": ACCENTED}, ensure_ascii=False).encode(encoding)
    write_tar(
        tmp_path / "0.tar", ("a.png", RED), ("a.txt", text), ("b.png", RED), ("b.json", values)
    )
    for name in ("txt", "caption", "json"):
        save_image(tmp_path / "files" / f"{name}.png")
        (tmp_path / "files" / f"{name}.{name}").write_bytes(values if name == "json" else text)
    (tmp_path / "lines.txt").write_bytes(text)
    assert read(tmp_path / "0.tar") == ([(ACCENTED, "red")] * 2, [])
    assert read(tmp_path / "files") == ([(ACCENTED, "red")] * 3, [])
    assert sources.read_text(str(tmp_path / "lines.txt"))["prompt"].to_list() == [ACCENTED]

    captions = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"image_id": 1, "caption": ACCENTED}],
    }
    save_image(tmp_path / "coco" / "a.png")
    text = json.dumps(captions, ensure_ascii=False).encode(encoding)
    (tmp_path / "coco" / "captions_train.json").write_bytes(text)
    assert read(tmp_path / "coco") == ([(ACCENTED, "red")], [])

    save_image(tmp_path / "db" / "part-000001" / "a.png")
    part = json.dumps({"a.png": {"p": ACCENTED}}, ensure_ascii=False).encode(encoding)
    (tmp_path / "db" / "part-000001" / "part-000001.json").write_bytes(part)
    assert read(tmp_path / "db") == ([(ACCENTED, "red")], [])


def test_undecodable_captions_have_a_reason(tmp_path, capsys):
    bad = "лиса".encode("cp1251")
    write_tar(
        tmp_path / "0.tar", ("a.png", RED), ("a.txt", bad), ("b.png", RED), ("b.txt", b"a fox")
    )
    reason = "its text is neither UTF-8, UTF-16 nor Windows-1252"
    assert read(tmp_path) == ([FOX], [reason])
    table = pa.table({"image": images_of(RED, RED), "text": [bad, b"a fox"]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == ([FOX], [reason])
    (tmp_path / "a.txt").write_bytes(bad + b"\na fox\n")
    assert sources.read_text(str(tmp_path / "a.txt"))["prompt"].to_list() == ["a fox"]
    assert "1 rows left out" in capsys.readouterr().out


# --- recognition narrower than reading, and exact names ---


@pytest.mark.parametrize(
    ("image", "text"), [("a.JPG", "a.txt"), ("a.png", "a.caption"), ("a.jfif", "a.TXT")]
)
@pytest.mark.parametrize("below", ["", "train", "a/b/c"])
def test_images_beside_captions_are_recognized(tmp_path, image, text, below):
    save_image(tmp_path / below / image)
    (tmp_path / below / text).write_text("a fox")
    assert layouts.recognize(tmp_path) == "files"
    assert read(tmp_path) == ([FOX], [])


def test_two_images_of_one_stem_share_their_caption(tmp_path):
    save_image(tmp_path / "cat.png", "red")
    save_image(tmp_path / "cat.jpg", "lime")
    (tmp_path / "cat.txt").write_text("a cat")
    assert sorted(read(tmp_path)[0]) == [("a cat", "lime"), ("a cat", "red")]
    assert sorted(ids_of(tmp_path)) == ["cat.jpg", "cat.png"]


def test_names_in_coco_journeydb_and_diffusiondb_are_found_however_they_are_spelt(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    save_image(tmp_path / "coco" / "Train" / decomposed)
    captions = {
        "images": [{"id": 1, "file_name": rf"Train\{composed}"}],
        "annotations": [{"image_id": 1, "caption": "a fox"}],
    }
    (tmp_path / "coco" / "captions_all.json").write_text(json.dumps(captions))
    save_image(tmp_path / "journey" / "imgs" / "000" / "a.JPG")
    line = {"img_path": "./000/a.jpg", "prompt": "a fox --ar 3:2", "Task2": {"Caption": "x"}}
    (tmp_path / "journey" / "train.jsonl").write_text(json.dumps(line))
    save_image(tmp_path / "db" / "part-000001" / "A.PNG")
    (tmp_path / "db" / "part-000001.json").write_text(json.dumps({"a.png": {"p": "a fox"}}))
    for folder in ("coco", "journey", "db"):
        assert read(tmp_path / folder) == ([FOX], []), folder


# --- refusals ---


def test_a_refusal_shows_a_row_and_where_its_image_was_looked_for(tmp_path):
    save_image(tmp_path / "1.png")
    table = pl.DataFrame({"file_name": ["1.png", "img/2.png"], "prompt": ["a fox", "an owl"]})
    table.write_csv(tmp_path / "metadata.csv")
    pairs, rejected = sources.read_pairs(tmp_path)
    assert sources.refusal(pairs, rejected, 0.5, file=tmp_path / "r.parquet") is None
    message = sources.refusal(pairs, rejected, 0.4, file=tmp_path / "r.parquet")
    assert "1 rows can be used and 1 cannot, 50.0% are bad (max_rejected = 0.4, " in message
    assert f"all of them in {tmp_path}/r.parquet" in message
    assert f"'{tmp_path.name}/img/2' at {tmp_path}/img/2.png: no such image" in message
