"""Each kind of fault that people's tables have: the right pairs, or a row refused by its reason."""

import csv
import gzip
import json
import unicodedata
from pathlib import Path

import polars as pl
import pytest

from src.data import layouts, sources
from src.data.layouts import separated
from tests.helpers.colored_images import read, save_image


def write_csv(file: Path, *rows: list[str], delimiter: str = ",", encoding: str = "utf-8") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding=encoding) as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)


def write_jsonl(file: Path, *rows: dict, encoding: str = "utf-8") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines), encoding=encoding)


FOX = ("a fox", "red")
OWL = ("an owl", "lime")


# --- position instead of key ---


@pytest.mark.parametrize("column", ["id", "imgId", "index", ""])
def test_numbered_images_are_matched_by_the_id_column(tmp_path, column):
    write_csv(
        tmp_path / "prompts.csv",
        [column, "prompt"],
        ["3", "the sea"],
        ["1", "a fox"],
        ["2", "an owl"],
    )
    for name, color in (("1", "red"), ("2", "lime"), ("3", "blue")):
        save_image(tmp_path / "images" / f"{name}.png", color)
    pairs, reasons = read(tmp_path)
    assert (sorted(pairs), reasons) == ([FOX, OWL, ("the sea", "blue")], [])


def test_ids_with_leading_zeros_and_names_are_keys_too(tmp_path):
    write_csv(tmp_path / "a" / "list.csv", ["id", "text"], ["0002", "an owl"], ["0001", "a fox"])
    write_csv(tmp_path / "b" / "list.csv", ["id", "text"], ["owl", "an owl"], ["fox", "a fox"])
    for folder, fox, owl in (("a", "1", "2"), ("b", "fox", "owl")):
        save_image(tmp_path / folder / f"{fox}.png", "red")
        save_image(tmp_path / folder / f"{owl}.png", "lime")
        assert sorted(read(tmp_path / folder)[0]) == [FOX, OWL]


def test_an_id_that_names_no_image_leaves_the_row_number(tmp_path):
    write_csv(tmp_path / "list.csv", ["id", "prompt"], ["x7f", "a fox"], ["c31", "an owl"])
    save_image(tmp_path / "0.png", "red")
    save_image(tmp_path / "1.png", "lime")
    assert read(tmp_path) == ([FOX, OWL], [])


def test_ids_and_row_numbers_that_both_fit_are_refused(tmp_path):
    write_csv(tmp_path / "list.csv", ["id", "prompt"], ["1", "a fox"], ["2", "an owl"])
    save_image(tmp_path / "0.png", "red")
    save_image(tmp_path / "1.png", "lime")
    with pytest.raises(ValueError, match=r"1 of 2 ids and 2 row numbers name images.*file_name"):
        sources.read_pairs(tmp_path)


# --- a path taken as a pattern ---


def test_brackets_and_stars_in_names_are_letters(tmp_path):
    for folder, color in (("set [v2]", "red"), ("set v", "lime")):
        save_image(tmp_path / folder / "x[1].png", color)
        save_image(tmp_path / folder / "x1.png", "white")
        table = pl.DataFrame({"file_name": ["x[1].png"], "prompt": [color]})
        table.write_parquet(tmp_path / folder / "t[1].parquet")
        pl.DataFrame({"other": [1]}).write_parquet(tmp_path / folder / "t1.parquet")
    assert read(tmp_path / "set [v2]") == ([("red", "red")], [])
    assert read(tmp_path / "set [v2]" / "t[1].parquet") == ([("red", "red")], [])

    texts = tmp_path / "texts [a-b]*"
    texts.mkdir()
    pl.DataFrame({"text": ["right"]}).write_parquet(texts / "p[1].parquet")
    pl.DataFrame({"text": ["wrong"]}).write_parquet(tmp_path / "p1.parquet")
    (texts / "q?.txt").write_text("a line\n")
    assert sources.read_text(str(texts))["prompt"].to_list() == ["right", "a line"]


# --- a lenient parser swallows structure ---


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ('1.png,"a sign', separated.UNCLOSED),
        ('1.png,"a sign, red', separated.UNCLOSED),
        ("1.png,a sign, red", separated.SURPLUS),
    ],
)
@pytest.mark.parametrize("after", ["2.png,a fox", '2.png,"a fox"', '"2.png","a fox"'])
def test_a_broken_row_costs_itself_alone(tmp_path, broken, reason, after):
    for name, color in (("1", "white"), ("2", "red"), ("3", "lime")):
        save_image(tmp_path / f"{name}.png", color)
    text = f"file_name,prompt\n{broken}\n{after}\n3.png,an owl\n"
    (tmp_path / "metadata.csv").write_text(text)
    pairs, rejected = sources.read_pairs(tmp_path)
    assert read(tmp_path)[0] == [FOX, OWL]
    assert rejected["reason"].to_list() == [reason]
    assert rejected["id"].str.ends_with("/1").all(), "the row is named"
    assert sources.bad_share(len(pairs), rejected) == 1 / 3


@pytest.mark.parametrize(
    ("cell", "prompt"),
    [
        (r'"a \"red\" fox"', 'a "red" fox'),
        (r'"a fox, \"red\", small"', 'a fox, "red", small'),
        (r'"\"red\""', '"red"'),
        ('"a "red" fox"', 'a "red" fox'),
        ('"a ""red"" fox"', 'a "red" fox'),
        ('"red" fox', '"red" fox'),
        ('"a fox\\"', "a fox\\"),
        ('a 5" fox', 'a 5" fox'),
        ('"a 5" fox"', 'a 5" fox'),
        ('"a fox\nin ""snow"", red"', 'a fox\nin "snow", red'),
    ],
)
def test_quotes_inside_a_cell(tmp_path, cell, prompt):
    save_image(tmp_path / "1.png")
    save_image(tmp_path / "2.png", "lime")
    text = f"file_name,prompt\n1.png,{cell}\n2.png,an owl\n"
    (tmp_path / "metadata.csv").write_text(text)
    assert read(tmp_path) == ([(prompt, "red"), OWL], [])
    (tmp_path / "prompts.csv").write_text(f"prompt\n{cell}\nan owl\n")
    prompts = sources.read_text(str(tmp_path / "prompts.csv"))["prompt"].to_list()
    assert prompts[-1] == "an owl" and ("," in cell or prompts == [prompt, "an owl"])


@pytest.mark.parametrize("cell", ['"a sign', 'a "red" sign', '"red" sign', 'sign"', '"'])
def test_quotes_in_a_tsv_are_characters(tmp_path, cell):
    for name, color in (("1", "white"), ("2", "red"), ("3", "lime")):
        save_image(tmp_path / f"{name}.png", color)
    text = f"file_name\tprompt\n1.png\t{cell}\n2.png\ta fox\n3.png\tan owl\n"
    (tmp_path / "metadata.tsv").write_text(text)
    assert read(tmp_path) == ([(cell, "white"), FOX, OWL], [])


@pytest.mark.parametrize("broken", ['"a sign', r'"a \"sign'])
def test_a_quote_that_stays_open_for_thousands_of_lines(tmp_path, broken):
    fine = [f"an owl, number {n}".replace(",", "") for n in range(3 * separated.LONGEST)]
    (tmp_path / "a.csv").write_text("\n".join(["prompt", broken, *fine]))
    assert sources.read_text(str(tmp_path / "a.csv"))["prompt"].to_list() == fine


def test_broken_rows_of_a_text_source_are_counted(tmp_path, capsys):
    (tmp_path / "a.csv").write_text('n,prompt\n1,"a sign\n2,a fox\n3,"an owl"\n4,a cat, black\n')
    assert sources.read_text(str(tmp_path / "a.csv"))["prompt"].to_list() == ["a fox", "an owl"]
    assert "2 rows left out" in capsys.readouterr().out


# --- structure turned into text ---


def test_a_list_of_captions_is_a_row_each_and_an_object_is_refused(tmp_path):
    for name in ("1", "2", "3"):
        save_image(tmp_path / f"{name}.png")
    write_jsonl(
        tmp_path / "metadata.jsonl",
        {"file_name": "1.png", "caption": ["a cat", "a small cat"]},
        {"file_name": "2.png", "caption": {"en": "a cat"}},
        {"file_name": "3.png", "caption": [{"text": "a cat"}]},
    )
    pairs, rejected = sources.read_pairs(tmp_path)
    assert pairs.select("id", "prompt").rows() == [
        (f"{tmp_path.name}/1", "a cat"),
        (f"{tmp_path.name}/1#2", "a small cat"),
    ]
    assert pairs["image"].n_unique() == 1, "one image, so one group"
    assert rejected["reason"].to_list() == [
        "its prompt is a JSON object",
        "its prompt is a list of JSON objects",
    ]


def test_lists_of_captions_in_a_text_source(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", {"text": ["a cat", "a fox"]}, {"text": {"en": "a cat"}})
    pl.DataFrame({"text": [["an owl", "a dog"]]}).write_parquet(tmp_path / "b.parquet")
    prompts = sources.read_text(str(tmp_path))["prompt"].to_list()
    assert prompts == ["a cat", "a fox", "an owl", "a dog"]


# --- exact-name look-up ---


NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("listed", "on_disk"),
    [
        (r"images\1.png", "images/1.png"),
        (r".\images\1.png", "images/1.png"),
        ("images/1", "images/1.png"),
        ("images/1", "images/1.JPG"),
        ("images/1.PNG", "images/1.png"),
        ("images/1.png", "Images/1.png"),
        (f"{NFC}/{NFC}.png", f"{NFD}/{NFD}.png"),
        (f"{NFD}.png", f"{NFC}.png"),
        (r"D:\sets\Images\1.png", "images/1.png"),
        ("/kaggle/input/Images/1.png", "images/1.png"),
        ("fox_v1.5", "fox_v1.5.png"),
    ],
)
def test_a_name_is_found_however_it_is_spelt(tmp_path, listed, on_disk):
    save_image(tmp_path / on_disk)
    save_image(tmp_path / "other.png", "white")
    write_csv(tmp_path / "metadata.csv", ["file_name", "prompt"], [listed, "a fox"])
    assert read(tmp_path) == ([FOX], [])


def test_a_name_that_several_files_fit_is_refused_and_an_exact_one_is_not(tmp_path):
    for name, color in (("fox.JPG", "white"), ("fox.jpg", "red"), ("owl.png", "lime")):
        save_image(tmp_path / name, color)
    save_image(tmp_path / "owl.webp", "white")
    write_csv(
        tmp_path / "metadata.csv",
        ["file_name", "prompt"],
        ["fox.jpg", "a fox"],
        ["FOX.jpg", "which fox"],
        ["owl", "which owl"],
        ["owl.png", "an owl"],
    )
    assert read(tmp_path) == ([FOX, OWL], [layouts.AMBIGUOUS] * 2)


def test_the_same_image_spelt_in_two_ways_is_one_image(tmp_path):
    save_image(tmp_path / "images" / "1.png")
    rows = ["images/1.png", "a fox"], [r"images\1.png", "a red fox"]
    write_csv(tmp_path / "metadata.csv", ["file_name", "prompt"], *rows)
    pairs, rejected = sources.read_pairs(tmp_path)
    assert pairs["image"].n_unique() == 1 and len(pairs) == 2 and rejected.is_empty()


def test_the_competitions_images_in_other_spellings(tmp_path):
    for name, color in (("0012.JPG", "red"), ("7.png", "lime"), ("007.png", "white")):
        save_image(tmp_path / "Images" / name, color)
    rows = ["0012", "a fox"], ["7", "an owl"], ["007", "snow"]
    write_csv(tmp_path / "prompts.csv", ["imgId", "prompt"], *rows)
    assert read(tmp_path) == ([FOX, OWL, ("snow", "white")], [])
    assert sources.read_pairs(tmp_path)[0]["id"].to_list() == ["0012", "7", "007"]
    assert sorted(sources.read_test(tmp_path)[0]["id"]) == ["0012", "007", "7"]


def test_attributes_name_images_as_tables_do(tmp_path):
    save_image(tmp_path / "Images" / "1.png")
    write_csv(tmp_path / "facts.csv", ["file_name", "style"], [r"images\1", "oil"])
    images = pl.Series([str(tmp_path / "Images" / "1.png")])
    facts = sources.read_attributes(tmp_path / "facts.csv", ["style"], images)
    assert facts.rows() == [("oil", images[0])]


# --- a key too coarse ---


def test_five_captions_of_an_image_are_five_rows_and_one_image(tmp_path):
    save_image(tmp_path / "1.png")
    save_image(tmp_path / "2.png", "lime")
    captions = [["1.png", f"caption {n}"] for n in range(5)]
    rows = [*captions, ["2.png", "an owl"], ["1.png", "caption 3"]]
    write_csv(tmp_path / "captions.csv", ["image", "caption"], *rows)
    pairs, rejected = sources.read_pairs(tmp_path)
    ids = [f"captions/1{'' if n == 1 else f'#{n}'}" for n in range(1, 6)]
    source = tmp_path.name
    assert pairs["id"].to_list() == [i.replace("captions", source) for i in ids] + [f"{source}/2"]
    assert pairs["image"].n_unique() == 2
    assert rejected.select("prompt", "reason").rows() == [("caption 3", "id occurs twice")]


def test_images_that_differ_in_their_ending_alone_keep_apart(tmp_path):
    save_image(tmp_path / "cat.png", "red")
    save_image(tmp_path / "cat.jpg", "lime")
    rows = ["cat.png", "a fox"], ["cat.jpg", "an owl"]
    write_csv(tmp_path / "metadata.csv", ["file_name", "prompt"], *rows)
    assert read(tmp_path) == ([FOX, OWL], [])
    assert sources.read_pairs(tmp_path)[0]["id"].str.slice(-7).to_list() == ["cat.png", "cat.jpg"]


# --- encoding known at one door ---

ACCENTED = "a café, naïve “fox” – 5 €"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_a_table_in_each_encoding(tmp_path, encoding):
    save_image(tmp_path / "a" / "1.png")
    save_image(tmp_path / "b" / "1.png")
    save_image(tmp_path / "c" / "1.png")
    row = {"file_name": "1.png", "prompt": ACCENTED}
    write_csv(tmp_path / "a" / "t.csv", list(row), list(row.values()), encoding=encoding)
    write_csv(
        tmp_path / "b" / "t.tsv", list(row), list(row.values()), delimiter="\t", encoding=encoding
    )
    write_jsonl(tmp_path / "c" / "t.jsonl", row, encoding=encoding)
    for folder in "abc":
        assert read(tmp_path / folder) == ([(ACCENTED, "red")], []), folder
    content = (tmp_path / "a" / "t.csv").read_bytes()
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(content))
    assert sources.read_text(str(tmp_path / "t.csv.gz"))["prompt"].to_list() == [ACCENTED]
    (tmp_path / "t.csv.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"t.csv.gz cannot be read: Not a gzipped file"):
        sources.read_text(str(tmp_path / "t.csv.gz"))


@pytest.mark.parametrize(
    "prompt",
    ["лиса".encode("cp1251"), "狐".encode("gbk"), "狐".encode("shift-jis"), "café".encode()[:-1]],
    ids=["cyrillic", "chinese", "japanese", "cut"],
)
def test_undecodable_bytes_are_a_bad_row_with_a_reason(tmp_path, prompt):
    save_image(tmp_path / "1.png", "white")
    save_image(tmp_path / "2.png", "red")
    row = b'{"file_name": "1.png", "prompt": "' + prompt.replace(b"\\", b"\\\\") + b'"}\n'
    write_jsonl(tmp_path / "metadata.jsonl", {"file_name": "2.png", "prompt": "a fox"})
    (tmp_path / "metadata.jsonl").write_bytes(row + (tmp_path / "metadata.jsonl").read_bytes())
    assert read(tmp_path) == ([FOX], ["its text is neither UTF-8, UTF-16 nor Windows-1252"])
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "t.csv").write_bytes(b"file_name,prompt\n1.png," + prompt + b"\n2.png,a fox\n")
    assert read(tmp_path) == ([FOX], ["its text is neither UTF-8, UTF-16 nor Windows-1252"])


# --- recognition narrower than reading ---


def test_metadata_below_the_folder_given(tmp_path, capsys):
    for split, color, prompt in (("train", "red", "a fox"), ("test", "white", "of the test")):
        save_image(tmp_path / split / "1.png", color)
        write_jsonl(tmp_path / split / "metadata.jsonl", {"file_name": "1.png", "text": prompt})
    assert read(tmp_path) == ([FOX], [])
    assert "1 folders with metadata are not read: test" in capsys.readouterr().out
    assert sources.read_pairs(tmp_path)[0]["id"].to_list() == ["train/1"]


def test_tables_and_their_columns_in_other_letters(tmp_path):
    save_image(tmp_path / "1.png")
    write_csv(tmp_path / "METADATA.CSV", ["file_name", "prompt"], ["1.png", "a fox"])
    assert read(tmp_path) == ([FOX], [])


# --- the first column that looks right ---


def test_of_two_image_columns_the_one_that_names_files_counts(tmp_path):
    save_image(tmp_path / "files" / "1.png")
    write_csv(
        tmp_path / "t.csv",
        ["image", "file_name", "prompt"],
        ["https://x.y/z.png", "files/1.png", "a fox"],
    )
    assert read(tmp_path) == ([FOX], [])


def test_two_columns_that_name_different_images_are_refused(tmp_path):
    save_image(tmp_path / "1.png")
    save_image(tmp_path / "2.png", "white")
    header = ["image", "file_name", "prompt"]
    write_csv(tmp_path / "t.csv", header, ["1.png", "2.png", "a fox"])
    with pytest.raises(ValueError, match="columns image and file_name both name images; keep one"):
        sources.read_pairs(tmp_path)


# --- an unanchored pattern ---


@pytest.mark.parametrize(
    ("prompt", "clean"),
    [
        ("a fox --ar 16:9 --v 4", "a fox"),
        ("https://s.mj.run/abc a fox, oil --no text, frame --q 2", "a fox, oil"),
        ("<https://x.y/z.png> a fox —ar 9:16 --niji", "a fox"),
        ("a well-known fox -- and an owl", "a well-known fox -- and an owl"),
        ("a fox --style raw --stylize 1000 --tile", "a fox"),
        ("--v 5", ""),
        ("half cat--half dog", "half cat--half dog"),
        (
            "a warrior—tall and grim—stands alone --ar 3:2",
            "a warrior—tall and grim—stands alone",
        ),
        ("a fox --stylize 1000 --style raw --v 5.2", "a fox"),
        ("a fox --sref https://x.y/z.png --cw 100", "a fox"),
        ("a fox --seed 123 --chaos 20 --q .5 --iw 2", "a fox"),
        ("a fox --no red, green --ar 16:9", "a fox"),
        ("a fox --ar 16:9 --no cars -- or trees", "a fox"),
        ("x --v 5, a fox", "x --v 5, a fox"),
        ("a fox –ar 16:9 —v 4", "a fox"),
        ("pixel--art --video", "pixel--art"),
        ("fish--raw", "fish--raw"),
        ("a fox—no cars", "a fox—no cars"),
        ("she said --wait for me", "she said --wait for me"),
        ("a fox --w 1920 --h 1080 --test --creative", "a fox"),
    ],
)
def test_midjourneys_urls_and_parameters_leave_at_the_ends_alone(prompt, clean):
    assert layouts.without_flags(prompt) == clean
