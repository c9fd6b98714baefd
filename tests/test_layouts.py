"""Every layout on a small real sample, written by the format's own library."""

import csv
import json

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from src.data import images, layouts, locators, sources
from tests.helpers.colored_images import colors_of, encoded, save_image


def prompts_and_colors(pairs) -> list[tuple[str, str]]:
    return list(zip(pairs["prompt"], colors_of(pairs["image"]), strict=True))


def shard(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)


def test_diffusiondb_with_its_parts_and_blurred_images(tmp_path):
    names = [f"{n}0a1b2c3-0000-4000-8000-00000000000{n}.png" for n in range(3)]
    for name, colour in zip(names, ("red", "lime", "blue"), strict=True):
        save_image(tmp_path / "images" / "part-000001" / name, colour)
    texts = ("a fox", "an owl", "nude")
    prompts = {
        n: {"p": p, "se": 1, "c": 7.0, "st": 50, "sa": "k_lms"}
        for n, p in zip(names, texts, strict=True)
    }
    (tmp_path / "images" / "part-000001" / "part-000001.json").write_text(json.dumps(prompts))
    pl.DataFrame(
        {
            "image_name": names,
            "prompt": ["a fox", "an owl", "nude"],
            "part_id": [1, 1, 1],
            "image_nsfw": [0.1, 0.2, 2.0],
        }
    ).write_parquet(tmp_path / "metadata.parquet")
    assert layouts.recognize(tmp_path) == "diffusiondb"
    pairs, rejected = sources.read_pairs(tmp_path)
    assert prompts_and_colors(pairs) == [("a fox", "red"), ("an owl", "lime")]
    assert rejected.select("prompt", "reason").rows() == [("nude", layouts.BLURRED)]
    (tmp_path / "images" / "part-000001" / "part-000001.json").unlink()
    assert prompts_and_colors(sources.read_pairs(tmp_path)[0]) == [
        ("a fox", "red"),
        ("an owl", "lime"),
    ], "by the table alone"


def test_diffusiondb_with_the_json_beside_its_folder_and_webp(tmp_path):
    save_image(tmp_path / "part-000002" / "ab.webp", "blue")
    (tmp_path / "part-000002.json").write_text(
        json.dumps({"ab.webp": {"p": "the sea"}, "gone.webp": {"p": "the sky"}})
    )
    (tmp_path / "part-000003.json").write_text("{cut")
    pairs, rejected = sources.read_pairs(tmp_path)
    assert prompts_and_colors(pairs) == [("the sea", "blue")]
    assert rejected["reason"].str.head(16).to_list() == ["no such image", "part is not JSON"]


def test_a_set_with_train_and_eval_tables_of_another_machines_paths(tmp_path):
    for split, colour in (("train", "red"), ("eval", "blue")):
        save_image(tmp_path / f"{split}_images" / "00000000.jpg", colour)
        with open(tmp_path / f"{split}.csv", "w", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(["Prompt", "image_path"])
            rows.writerow(
                [f'{split}, "quoted" fox', f"/kaggle/input/sd2/{split}_images/00000000.jpg"]
            )
            rows.writerow(["gone", f"C:\\\\data\\\\{split}_images\\\\1.jpg"])
    pairs, rejected = sources.read_pairs(tmp_path)
    assert sorted(prompts_and_colors(pairs)) == [
        ('eval, "quoted" fox', "blue"),
        ('train, "quoted" fox', "red"),
    ]
    assert rejected["reason"].to_list() == ["no such image"] * 2


@pytest.mark.parametrize("first", [0, 1])
def test_images_named_by_row_number(tmp_path, first):
    (tmp_path / "hardcoded.csv").write_text("prompt\na fox\nan owl\n")
    for row, colour in enumerate(("red", "lime")):
        save_image(tmp_path / "images" / f"{row + first}.png", colour)
    assert layouts.recognize(tmp_path) == "numbered"
    assert prompts_and_colors(sources.read_pairs(tmp_path)[0]) == [
        ("a fox", "red"),
        ("an owl", "lime"),
    ]
    assert prompts_and_colors(sources.read_pairs(tmp_path / "hardcoded.csv", "numbered")[0]) == [
        ("a fox", "red"),
        ("an owl", "lime"),
    ]


def test_webdataset_shards_with_img2datasets_table(tmp_path):
    shard(
        tmp_path / "00000.tar",
        [
            {
                "__key__": "000000000",
                "jpg": encoded("red", "JPEG"),
                "txt": "a fox",
                "json": {"status": "success"},
            },
            {
                "__key__": "000000002",
                "webp": encoded("lime", "WEBP"),
                "json": {"caption": "an owl"},
                "npy": np.zeros(3),
            },
            {"__key__": "000000003", "txt": "no image"},
            {"__key__": "000000004", "png": encoded("blue")},
        ],
    )
    pl.DataFrame(
        {
            "key": ["000000000", "000000001"],
            "status": ["success", "failed_to_download"],
            "caption": ["a fox", "lost"],
        }
    ).write_parquet(tmp_path / "00000.parquet")
    assert layouts.recognize(tmp_path) == "webdataset"
    pairs, rejected = sources.read_pairs(tmp_path)
    assert prompts_and_colors(pairs) == [("a fox", "red"), ("an owl", "lime")]
    assert pairs["id"].to_list() == [f"{tmp_path.name}/00000/00000000{n}" for n in (0, 2)]
    assert rejected["reason"].to_list() == [
        layouts.NO_IMAGE,
        "empty prompt",
        f"{layouts.NOT_DELIVERED}: failed_to_download",
    ]
    assert sources.bad_share(len(pairs), rejected) == 2 / 4, (
        "what was never downloaded is no sign of a bad set"
    )
    assert list(tmp_path.glob("*.jpg")) == [], "nothing is unpacked"


def test_a_cut_shard_gives_what_is_whole(tmp_path):
    shard(
        tmp_path / "00000.tar",
        [{"__key__": f"{n:04}", "png": encoded(), "txt": f"fox {n}"} for n in range(5)],
    )
    whole = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "00001.tar").write_bytes(b"no tar at all" * 100)
    pairs, rejected = sources.read_pairs(tmp_path)
    assert 0 < len(pairs) < 5 and any(
        "shard cannot be read on" in reason for reason in rejected["reason"]
    )
    pixels, bad = images.cache(
        pairs, tmp_path / "cache", geometry=images.ImagePreprocess(8), name="test"
    )
    assert len(pixels.ids) + len(bad) == len(pairs)


def test_img2datasets_files(tmp_path):
    save_image(tmp_path / "00000" / "000000000.jpg", "red")
    (tmp_path / "00000" / "000000000.txt").write_text("a fox")
    (tmp_path / "00000" / "000000000.json").write_text(
        json.dumps({"status": "success", "caption": "a fox"})
    )
    save_image(tmp_path / "00000" / "000000001.jpg", "blue")
    (tmp_path / "00000" / "000000001.json").write_text(json.dumps({"caption": "the sea"}))
    (tmp_path / "00000_stats.json").write_text("{}")
    pl.DataFrame({"key": ["000000002"], "status": ["failed_to_resize"]}).write_parquet(
        tmp_path / "00000.parquet"
    )
    pairs, rejected = sources.read_pairs(tmp_path)
    assert prompts_and_colors(pairs) == [("a fox", "red"), ("the sea", "blue")]
    assert rejected["reason"].to_list() == [f"{layouts.NOT_DELIVERED}: failed_to_resize"]


def test_images_inside_parquet(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [
        {"bytes": encoded(colour), "path": f"{colour}.png"} for colour in ("red", "lime", "blue")
    ]
    cells.append({"bytes": None, "path": "x"})
    table = pa.table(
        {"image": pa.array(cells, kind), "text": ["a fox", "an owl", "the sea", "nothing"]}
    )
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet", row_group_size=2)
    pq.write_table(table, tmp_path / "data" / "test-00000-of-00001.parquet")
    assert layouts.recognize(tmp_path) == "parquet"
    pairs, rejected = sources.read_pairs(tmp_path)
    assert prompts_and_colors(pairs) == [("a fox", "red"), ("an owl", "lime"), ("the sea", "blue")]
    assert rejected.select("prompt", "reason").rows() == [("nothing", layouts.NO_IMAGE)]
    pq.write_table(
        pa.table({"png": [encoded("lime")], "caption": ["bytes alone"]}), tmp_path / "plain.parquet"
    )
    assert prompts_and_colors(sources.read_pairs(tmp_path / "plain.parquet")[0]) == [
        ("bytes alone", "lime")
    ]
    with pytest.raises(OSError, match="row 9 is not there"):
        locators.read(locators.in_table(tmp_path / "plain.parquet", "png", 9))


def test_journeydb(tmp_path):
    save_image(tmp_path / "imgs" / "000" / "a.jpg", "red")
    save_image(tmp_path / "imgs" / "000" / "b.jpg", "blue")
    rows = [
        {
            "img_path": "./000/a.jpg",
            "prompt": "a fox --ar 16:9 --v 4",
            "Task2": {"Caption": "A fox sits."},
        },
        {
            "img_path": "./000/b.jpg",
            "prompt": "https://s.mj.run/x --v 4",
            "Task2": {"Caption": "Blue."},
        },
    ]
    (tmp_path / "train_anno.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{cut\n")
    assert layouts.recognize(tmp_path) == "journeydb"
    pairs, rejected = sources.read_pairs(tmp_path)
    assert prompts_and_colors(pairs) == [("a fox", "red")] and rejected["reason"].to_list() == [
        "empty prompt",
        "its line is not a JSON object",
    ]
    assert prompts_and_colors(sources.read_pairs(tmp_path, text_column="Task2.Caption")[0]) == [
        ("A fox sits.", "red"),
        ("Blue.", "blue"),
    ]


def test_coco_captions_give_a_row_each_and_share_their_image(tmp_path):
    save_image(tmp_path / "val2017" / "000000000139.jpg", "lime")
    content = {
        "images": [{"id": 139, "file_name": "000000000139.jpg"}],
        "annotations": [{"id": n, "image_id": 139, "caption": f"caption {n}"} for n in range(5)]
        + [{"id": 9, "image_id": 7, "caption": "of nothing"}],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2017.json").write_text(json.dumps(content))
    pairs, rejected = sources.read_pairs(tmp_path)
    assert prompts_and_colors(pairs) == [(f"caption {n}", "lime") for n in range(5)]
    assert pairs["id"].is_unique().all() and pairs["image"].n_unique() == 1
    assert rejected["reason"].to_list() == ["its image is not listed"]
    assert prompts_and_colors(
        sources.read_pairs(tmp_path / "annotations" / "captions_val2017.json")[0]
    )[0] == (
        "caption 0",
        "lime",
    )


def test_layouts_mix_and_sources_of_one_name_are_told_apart(tmp_path):
    for place, colour in (("a", "red"), ("b", "blue")):
        save_image(tmp_path / place / "train" / "0.png", colour)
        (tmp_path / place / "train" / "metadata.jsonl").write_text(
            json.dumps({"file_name": "0.png", "text": f"{colour} fox"})
        )
    shard(
        tmp_path / "shards" / "0.tar",
        [{"__key__": "0", "jpg": encoded("lime", "JPEG"), "json": {"alt": "an owl"}}],
    )
    pairs, rejected = sources.read_all(
        [
            str(tmp_path / "a" / "train"),
            {"path": str(tmp_path / "b" / "train"), "layout": "table"},
            {"path": str(tmp_path / "shards"), "text_column": "alt"},
        ]
    )
    assert (
        prompts_and_colors(pairs) == [("red fox", "red"), ("blue fox", "blue"), ("an owl", "lime")]
        and rejected.is_empty()
    )
    assert (
        pairs["source"].to_list() == ["train", "b/train", "shards"]
        and pairs["id"][1] == "b/train/0"
    )
    with pytest.raises(ValueError, match="must be a path or"):
        sources.read_all([{"path": "x", "text": "prompt"}])


def test_a_precomputed_store_is_paired_shard_by_shard(tmp_path):
    for n in range(2):
        np.save(tmp_path / f"clip_{n}.npy", np.zeros((5 + n, 1024), np.float16))
        np.save(tmp_path / f"minilm_{n}.npy", np.zeros((5 + n, 384), np.float16))
        (tmp_path / f"._clip_{n}.npy").write_bytes(b"a system's own")
    assert [(k.name, v.name) for k, v in sources.read_store(tmp_path)] == [
        (f"clip_{n}.npy", f"minilm_{n}.npy") for n in range(2)
    ]
    np.save(tmp_path / "minilm_1.npy", np.zeros((4, 384), np.float16))
    with pytest.raises(ValueError, match="clip_1.npy has 6 rows, .*minilm_1.npy 4"):
        sources.read_store(tmp_path)


def test_an_unknown_layout_says_what_is_there(tmp_path):
    (tmp_path / "notes.md").write_text("nothing")
    with pytest.raises(ValueError, match="it holds \\['notes.md'\\]"):
        sources.read_pairs(tmp_path)


BAD_PROMPTS = [
    "",
    "   ",
    "x" * 9000,
    "赤い狐",
    "рыжая лиса",
    "a\0 fox",
    "a fox",
    "a fox",
    'say "fox", twice',
]


def test_bad_prompts_are_set_aside_or_cleaned(tmp_path):
    rows = [{"file_name": f"{n}.png", "prompt": prompt} for n, prompt in enumerate(BAD_PROMPTS)]
    rows += [
        {"file_name": "0.png", "prompt": "twice"},
        {"file_name": "1.png", "prompt": "x"},
        {"file_name": "2.png", "prompt": "again"},
        {"file_name": "gone.png", "prompt": "a cat"},
        {"file_name": None, "prompt": "no name"},
    ]
    for n in range(len(BAD_PROMPTS)):
        save_image(tmp_path / f"{n}.png")
    save_image(tmp_path / "extra.png")
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\nno json\n")
    pairs, rejected = sources.read_pairs(tmp_path)
    assert pairs["prompt"].to_list() == [
        *BAD_PROMPTS[2:5],
        "a fox",
        "a fox",
        "a fox",
        BAD_PROMPTS[8],
        "twice",
        "x",
        "again",
    ]
    assert pairs["id"].to_list()[-3:] == [f"{tmp_path.name}/{n}" for n in ("0", "1", "2#2")]
    reasons = rejected.select(pl.col("id").str.split("/").list.last(), "reason").rows()
    assert reasons == [
        ("0", "empty prompt"),
        ("1", "empty prompt"),
        ("gone", "no such image"),
        ("", "no such image"),
        ("", "its line is not a JSON object"),
        ("extra", sources.UNLISTED),
    ]
    assert len(pairs) + len(rejected) == len(rows) + 2, "no row vanishes"
    assert sources.reason_counts(rejected)["rows"].sum() == len(rejected)


def test_layouts_named_for_what_is_not_theirs_say_what_is_there(tmp_path):
    save_image(tmp_path / "images" / "0.png")
    (tmp_path / "prompts.csv").write_text("id,text\n0,a fox\n")
    (tmp_path / "note.xlsx").write_text("a fox")
    pl.DataFrame({"prompt": ["a fox"]}).write_parquet(tmp_path / "texts.parquet")
    (tmp_path / "empty").mkdir()
    for layout, path, message in (
        ("competition", "", r"prompts.csv: columns are \['id', 'text'\], wanted imgId and prompt"),
        ("table", "note.xlsx", "note.xlsx: a table must be one of .csv"),
        (
            "numbered",
            "empty",
            "no table with a text column beside a folder of images named by row number",
        ),
        ("parquet", "texts.parquet", r"no column of encoded images among \['prompt'\]"),
        ("parquet", "empty", "no .parquet file in it"),
    ):
        with pytest.raises(ValueError, match=message):
            layouts.read(tmp_path / path, layout, None)


def test_a_text_file_is_no_layout_and_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("a fox")
    with pytest.raises(ValueError, match=r"it holds \['notes.txt'\]"):
        layouts.read(tmp_path / "notes.txt", None, None)


def test_a_caption_that_is_no_json_is_an_empty_prompt(tmp_path):
    for name in ("a", "b", "c"):
        save_image(tmp_path / f"{name}.png")
    cells = ['{"Caption": "a fox"}', "{a fox", "[1]"]
    lines = [
        json.dumps({"img_path": f"{name}.png", "Task2": cell})
        for name, cell in zip("abc", cells, strict=True)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    pairs, rejected = sources.read_pairs(tmp_path, "journeydb", "Task2.Caption")
    assert (
        pairs["prompt"].to_list() == ["a fox"]
        and rejected["reason"].to_list() == ["empty prompt"] * 2
    )


def test_a_shard_that_ends_inside_an_image(tmp_path):
    (tmp_path / "cut.tar").write_bytes(b"0123456789")
    with pytest.raises(OSError, match="the shard ends after 4 of the image's 9 bytes"):
        locators.read(locators.in_tar(tmp_path / "cut.tar", "a.png", offset=6, size=9))
