"""Tables, text sources, samples and fold files: every row accounted for, or the file refused."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from src.data import sources
from src.dedup import folds
from tests.helpers.bad_files import (
    BOTH,
    EMPTY,
    NO_OBJECT,
    NOT_TEXT,
    ONE,
    RED,
    SURPLUS,
    assert_rows,
    deep,
    encoded,
    outcome,
    parquet,
    row,
)

FOX = b"fox.png,a red fox\n"
HEADER = b"file_name,prompt\n"
NO_FOX = ("a fox", "no such image")
NOT_PARQUET = "metadata.parquet cannot be read: "
NOT_CAPTIONS = "captions_x.json cannot be read: "


def lines(*rows: object) -> bytes:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()


# by the name of the file: content, and the rows that are expected or how it is refused
TABLES: dict[str, dict[str, tuple[bytes, list | str]]] = {
    "metadata.csv": {
        "csv": (HEADER + FOX, ONE),
        "csv_of_windows": (b"\xef\xbb\xbf" + (HEADER + FOX).replace(b"\n", b"\r\n"), ONE),
        "csv_of_an_old_mac": ((HEADER + FOX).replace(b"\n", b"\r"), ONE),
        "csv_utf16": (
            "file_name,prompt\nfox.png,рыжая лиса\n".encode("utf-16"),
            [("рыжая лиса", None)],
        ),
        "csv_utf16_big_endian": (
            b"\xfe\xff" + "file_name,prompt\nfox.png,狐\n".encode("utf-16-be"),
            [("狐", None)],
        ),
        "csv_latin1": (HEADER + "fox.png,café fox\n".encode("latin-1"), [("café fox", None)]),
        "csv_empty": (b"", "no rows below the header"),
        "csv_blank_lines_only": (b"\n\n\n", "no rows below the header"),
        "csv_header_only": (HEADER, "no rows below the header"),
        "csv_without_a_prompt_column": (
            b"file_name,words\nfox.png,a fox\n",
            "no text column among ..file_name', 'words'",
        ),
        "csv_without_an_image_column": (
            b"drawing,prompt\nfox.png,a fox\n",
            "no image column among ..drawing', 'prompt'",
        ),
        "csv_without_a_header": (FOX + FOX, "no image column"),
        "csv_by_semicolons": (
            b"file_name;prompt\nfox.png;a fox\n",
            "no image column among ..file_name;prompt'",
        ),
        "csv_by_tabs": (b"file_name\tprompt\nfox.png\ta fox\n", "no image column"),
        "csv_with_a_column_twice": (
            b"file_name,prompt,prompt\nfox.png,a,b\n",
            "columns occur twice: ..prompt'",
        ),
        "csv_with_unnamed_columns": (b",,file_name,prompt\n1,2,fox.png,a red fox\n", ONE),
        "csv_short_row": (HEADER + b"fox.png\n" + FOX, [EMPTY, *ONE]),
        "csv_comma_without_quotes": (HEADER + b"owl.png,an owl, at night\n" + FOX, [SURPLUS, *ONE]),
        "csv_trailing_commas": (HEADER + b"fox.png,a red fox,,\n", ONE),
        "csv_blank_rows": (HEADER + b"\n\n" + FOX + b"\n", ONE),
        "csv_spaces_in_the_header": (b"file_name, prompt\n" + FOX, "no text column"),
        "csv_quote_never_closed": (
            HEADER + b'fox.png,"a red fox\n',
            [(None, "a quote is never closed")],
        ),
        "csv_quotes_doubled": (HEADER + b'fox.png,"a ""red"" fox"\n', [('a "red" fox', None)]),
        "csv_quote_in_the_middle": (HEADER + b'fox.png,a 5" fox\n', [('a 5" fox', None)]),
        "csv_nuls": (HEADER + b"fox.png,a\0 red\0 fox\n", ONE),
        "csv_binary": (bytes(range(256)) * 20, "no image column"),
        "csv_name_of_300_characters": (HEADER + b"a" * 300 + b",a fox\n" + FOX, [NO_FOX, *ONE]),
        "csv_name_of_nobody_s_home": (HEADER + b"~nobody:1/gone.png,a fox\n" + FOX, [NO_FOX, *ONE]),
        "csv_name_outside": (
            HEADER + b"../../none/passwd,a fox\n/none/shadow,a fox\n" + FOX,
            [NO_FOX, NO_FOX, *ONE],
        ),
        "csv_name_is_a_folder": (HEADER + b".,a fox\n" + FOX, [NO_FOX, *ONE]),
        "csv_name_empty": (HEADER + b",a fox\n" + FOX, [NO_FOX, *ONE]),
        "csv_name_like_a_shard": (
            HEADER + b"x.tar::a.png@0+9999999999,a fox\n" + FOX,
            [NO_FOX, *ONE],
        ),
        "csv_name_on_another_machine": (HEADER + b"C:\\sets\\fox.png,a red fox\n", ONE),
        "csv_the_same_name_twice": (HEADER + FOX + FOX, [*ONE, ("a red fox", "id occurs twice")]),
    },
    "t.csv": {
        "csv_utf16_without_mark": (
            "prompt,file_name\na red fox,fox.png\n".encode("utf-16-le"),
            ONE,
        ),
    },
    "metadata.jsonl": {
        "jsonl_name_with_nul": (
            lines(row("a\0b.png"), row()),
            [("a red fox", "no such image"), *ONE],
        ),
        "jsonl": (lines(row()), ONE),
        "jsonl_with_mark": (b"\xef\xbb\xbf" + lines(row()), ONE),
        "jsonl_empty": (b"", "none of its 0 lines is a JSON object"),
        "jsonl_no_json": (b"a fox\nan owl\n", "none of its 2 lines is a JSON object"),
        "jsonl_broken_line": (
            lines(row(), '{"file_name": "owl', row("owl.png", "an owl")),
            [ONE[0], NO_OBJECT, BOTH[1]],
        ),
        "jsonl_arrays_and_numbers": (
            lines([1, 2], 3, None, row()),
            [NO_OBJECT, NO_OBJECT, NO_OBJECT, *ONE],
        ),
        "jsonl_single_array": (
            json.dumps([row()]).encode(),
            "none of its 1 lines is a JSON object",
        ),
        "jsonl_nested_too_deep": (lines(deep(100_000), row()), [NO_OBJECT, *ONE]),
        "jsonl_number_of_5000_digits": (
            lines('{"file_name": "fox.png", "prompt": ' + "9" * 5000 + "}", row()),
            [NO_OBJECT, *ONE],
        ),
        "jsonl_half_a_surrogate_pair": (
            lines(row(prompt="a red \ud83e fox")),
            [("a red \ufffd fox", None)],
        ),
        "jsonl_half_a_pair_in_a_name": (lines({**row(), "\udc00": 1}), ONE),
        "jsonl_whole_surrogate_pair": (lines(row(prompt="a 🦊")), [("a 🦊", None)]),
        "jsonl_escaped_backslash_before_u": (
            lines(row(prompt="C:\\ud800 fox")),
            [("C:\\ud800 fox", None)],
        ),
        "jsonl_prompt_is_a_list": (lines(row(prompt=["a", "b"])), [("a", None), ("b", None)]),
        "jsonl_prompt_is_a_number": (lines(row(prompt=7)), [("7", None)]),
        "jsonl_prompt_is_null": (
            lines(row(prompt=None), row("owl.png", "an owl")),
            [EMPTY, BOTH[1]],
        ),
        "jsonl_key_twice": (b'{"file_name": "fox.png", "prompt": "x", "prompt": "a red fox"}', ONE),
        "jsonl_names_are_numbers": (lines(row(7), row()), [("a red fox", "no such image"), *ONE]),
    },
    "table.tsv": {
        "tsv": (b"file_name\tprompt\nfox.png\ta red fox\n", ONE),
        "tsv_by_commas": (HEADER + FOX, "neither prompts.csv"),
    },
    "rows.jsonl": {
        "jsonl_broken_first_line": (lines("{cut", row()), [NO_OBJECT, *ONE]),
    },
    "metadata.parquet": {
        "parquet": (parquet(file_name=["fox.png"], prompt=["a red fox"]), ONE),
        "parquet_empty_file": (b"", NOT_PARQUET),
        "parquet_that_is_a_csv": (HEADER + FOX, NOT_PARQUET),
        "parquet_cut": (parquet(file_name=["fox.png"], prompt=["a red fox"])[:-30], NOT_PARQUET),
        "parquet_head_and_foot_only": (b"PAR1" + bytes(40) + b"PAR1", NOT_PARQUET),
        "parquet_huge_footer": (b"PAR1" + b"\xff" * 36 + b"\xff\xff\xff\x7fPAR1", NOT_PARQUET),
        "parquet_without_rows": (
            parquet(file_name=pa.array([], pa.string()), prompt=pa.array([], pa.string())),
            [],
        ),
        "parquet_without_columns": (parquet(), "no image column"),
        "parquet_prompts_are_numbers": (parquet(file_name=["fox.png"], prompt=[7]), [("7", None)]),
        "parquet_prompts_are_bytes": (
            parquet(file_name=["fox.png", "owl.png"], prompt=[b"a red fox", b"\xff\xfd"]),
            [*ONE, NOT_TEXT],
        ),
        "parquet_prompts_are_lists": (
            parquet(file_name=["fox.png"], prompt=[["a", "b"]]),
            [("a", None), ("b", None)],
        ),
        "parquet_prompts_are_structs": (
            parquet(file_name=["fox.png"], prompt=[{"a": 1}]),
            "prompt holds Struct",
        ),
        "parquet_prompts_are_null": (parquet(file_name=["fox.png"], prompt=pa.nulls(1)), [EMPTY]),
        "parquet_names_are_numbers": (parquet(file_name=[7], prompt=["a fox"]), [NO_FOX]),
        "parquet_names_are_lists": (
            parquet(file_name=[["fox.png"]], prompt=["a fox"]),
            "file_name holds List",
        ),
    },
    "data.parquet": {
        "parquet_images_are_broken": (
            parquet(image=[b"x", None], prompt=["a", "b"]),
            [("a", None), ("b", "no image in the sample")],
        ),
        "parquet_images_without_prompts": (parquet(image=[b"x"], words=["a"]), "no text column"),
    },
    "captions_x.json": {
        "coco_broken": (b"{cut", NOT_CAPTIONS),
        "coco_without_images": (b'{"annotations": []}', NOT_CAPTIONS),
        "coco_of_other_types": (
            b'{"images": [{"id": [], "file_name": 3}], "annotations": []}',
            "not every entry of its images",
        ),
        "coco_is_a_list": (b"[1]", NOT_CAPTIONS),
    },
    "part-000001.json": {
        "diffusiondb_broken": (b"{cut", [(None, "part is not JSON")]),
        "diffusiondb_is_a_list": (b'["ab"]', [(None, "part is not JSON: it holds a list")]),
        "diffusiondb_of_other_types": (
            b'{"fox.png": 3, "owl.png": {"p": [1]}, "x\\u0000.png": {"p": "a"}}',
            [EMPTY, ("1", None), ("a", "no such image")],
        ),
    },
    "a.jsonl": {
        "journeydb_broken_cell": (
            lines({"img_path": "fox.png", "prompt": "a red fox", "Task2": "{"}),
            ONE,
        ),
    },
}


@pytest.fixture
def menagerie(tmp_path) -> Path:
    """A folder with two images and no table yet."""
    for name in ("fox", "owl"):
        (tmp_path / f"{name}.png").write_bytes(encoded(Image.new("RGB", (8, 8), RED), "png"))
    return tmp_path


def assert_outcome(folder: Path, expected: list | str) -> None:
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            sources.read_pairs(folder)
        return
    assert_rows(outcome(folder), expected)


@pytest.mark.parametrize(
    ("file", "name"), [(file, name) for file, tables in TABLES.items() for name in tables]
)
def test_a_table_is_read_with_every_row_accounted_for_or_refused(menagerie, file, name):
    content, expected = TABLES[file][name]
    (menagerie / file).write_bytes(content)
    assert_outcome(menagerie, expected)


TEXT_SOURCES: dict[str, tuple[str, bytes, list[str] | str]] = {
    "txt_with_mark": ("a.txt", b"\xef\xbb\xbfa fox\r\nan owl\r\n", ["a fox", "an owl"]),
    "txt_utf16": ("a.txt", "狐\nan owl\n".encode("utf-16"), ["狐", "an owl"]),
    "txt_empty": ("a.txt", b"", []),
    "txt_blank": ("a.txt", "\n \n\u3000\n\u200b\n".encode(), []),
    "txt_nuls": ("a.txt", b"\0\0\na\0 fox\n", ["a fox"]),
    "txt_other_line_ends": ("a.txt", "a\u2028b\x0bc\x85d\n".encode(), ["a\u2028b\x0bc\x85d"]),
    "txt_latin1": ("a.txt", "café\n".encode("latin-1"), ["café"]),
    "csv_comma_without_quotes": ("a.csv", b"prompt,n\na fox, red,1\nan owl,2\n", ["an owl"]),
    "csv_column_twice": ("a.csv", b"prompt,prompt\na,b\n", "columns occur twice"),
    "csv_empty": ("a.csv", b"", "no text column among"),
    "csv_without_the_column": ("a.csv", b"x,y\n1,2\n", "no text column among"),
    "jsonl_half_a_pair": ("a.jsonl", lines({"text": "a \ud83e fox"}), ["a \ufffd fox"]),
    "jsonl_broken_first_line": ("a.jsonl", lines("{cut", {"text": "a fox"}), ["a fox"]),
    "jsonl_nested_too_deep": ("a.jsonl", lines({"text": "a fox"}, deep(100_000)), ["a fox"]),
    "parquet_broken": ("a.parquet", b"PAR1 no", r"a.parquet cannot be read: "),
    "parquet_of_lists": ("a.parquet", parquet(prompt=[["a", "b"]]), ["a", "b"]),
    "parquet_of_numbers_and_nulls": ("a.parquet", parquet(prompt=[1, None]), ["1"]),
}


@pytest.mark.parametrize("name", TEXT_SOURCES)
def test_a_text_source_is_read_or_refused(tmp_path, name):
    file, content, expected = TEXT_SOURCES[name]
    (tmp_path / file).write_bytes(content)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            sources.read_text(str(tmp_path / file))
    else:
        assert sources.read_text(str(tmp_path / file))["prompt"].to_list() == expected


def test_a_file_whose_name_is_no_utf8_is_set_aside_and_shown(menagerie):
    name = os.fsdecode(b"caf\xe9.png")
    (menagerie / name).write_bytes((menagerie / "fox.png").read_bytes())
    (menagerie / (name[:-4] + ".txt")).write_text("a fox")
    (menagerie / "metadata.csv").write_bytes(HEADER + FOX)
    rejected = sources.read_pairs(menagerie)[1]
    assert any(image.endswith("caf\\udce9.png") for image in rejected["image"])
    pairs, rejected = sources.read_pairs(menagerie, "files")
    assert rejected["reason"].to_list()[0] == "no such image"
    assert "caf\\udce9" in sources.read_test(menagerie)[0]["id"].to_list()


BEAR = b"imgId_eId,val\n" + b"".join(b"bear_%d,1\n" % i for i in range(384))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the header is '', must be 'imgId_eId,val'"),
        (b"id,val\n", "the header is 'id,val', must be 'imgId_eId,val'"),
        (b"PK\x03\x04\xff\xfe", "the header is 'PK.*, must be 'imgId_eId,val'"),
        (b"imgId_eId,val\n", "no rows below the header"),
        (b"imgId_eId,val\nbear_0,1\n", "1 vectors are not 384 long, e.g. .'bear: 1'"),
        (BEAR, "1 of 1 ids have no image"),
    ],
)
def test_a_bad_sample_beside_the_test_images_is_refused(menagerie, content, message):
    (menagerie / "sample_submission.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        sources.read_test(menagerie)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"folds.csv has no column id, fold; there are \[\]"),
        (b"id,fold\na,x\n", "fold"),
        (b"id\na\n", r"folds.csv has no column fold; there are \['id'\]"),
        (b"id,fold\na,0\na,1\n", "each id named once"),
        (b"id,fold\na,1\n", "folds must be 0, 1"),
        (b"id,fold\na,-1\n", "folds must be 0, 1"),
        (b"id,fold\na,0,9\nb,1,9\n", "2 of 2 rows cannot be used, e.g. row 1: more cells than"),
        (b'id,fold\n"a,0\nb,1\n', "1 of 2 rows cannot be used, e.g. row 1: a quote is never"),
        (b"id,fold\n\xff\xfe\xfd,0\nb,1\n", "e.g. row 1: its text is neither UTF-8"),
    ],
)
def test_a_bad_fold_file_is_refused(tmp_path, content, message):
    (tmp_path / "folds.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        folds.given_folds(tmp_path / "folds.csv", ["a", "b"], np.array([0, 1]))
