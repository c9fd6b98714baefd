"""Prompts in every script, through every layout, the tables and the report."""

import csv
import io
import json
import re
import tarfile
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from src import artifacts, paths
from src.data import prompts, sources
from src.dedup import filters
from src.model_b import text_pool
from src.runner import report
from src.submit.parts import escape_formulas
from tests.helpers.bad_files import RED, encoded
from tests.helpers.finished_output import write_finished_output

PROMPTS = {
    "arabic": "ثعلب أحمر في الثلج",
    "hebrew": "שועל אדום בשלג",
    "persian_with_joiner": "می‌خواهم روباه",
    "urdu": "برف میں سرخ لومڑی",
    "devanagari": "बर्फ़ में लाल लोमड़ी",
    "bengali": "তুষারে লাল শিয়াল",
    "tamil": "பனியில் சிவப்பு நரி",
    "thai": "สุนัขจิ้งจอกสีแดงในหิมะ",
    "tibetan": "ཁ་བའི་ནང་ཝ་དམར།",
    "khmer": "កញ្ជ្រោងក្រហម",
    "chinese": "雪中的红狐狸，油画",
    "japanese": "雪の中の赤い狐、油絵",
    "korean": "눈 속의 붉은 여우",
    "decomposed_korean": "\u1102\u116e\u11ab",
    "georgian": "წითელი მელა თოვლში",
    "armenian": "կարմիր աղվես",
    "greek": "κόκκινη αλεπού",
    "cyrillic": "рыжая лиса в снегу",
    "amharic": "ቀይ ቀበሮ",
    "cherokee": "ᏧᎳ ᎩᎦᎨ",
    "turkish_i": "İSTANBUL'da ılık bir gün",
    "german_sharp_s": "GROẞE STRAßE",
    "vietnamese": "con cáo đỏ trong tuyết",
    "cuneiform": "𒅗𒀀 𒊓",
    "math_letters": "𝓪 𝓻𝓮𝓭 𝓯𝓸𝔁",
    "full_width": "ａ　ｒｅｄ　ｆｏｘ",
    "emoji": "🦊❄️",
    "emoji_family": "👩‍👩‍👧‍👦 and a 🦊",
    "flag_and_skin": "🇬🇪 👋🏿",
    "combining": "fo\u0301\u0323x " + "x" + "\u0301" * 60,
    "right_to_left_override": "a fox \u202egnp.exe\u202c",
    "zero_width": "a\u200b red\u200d\u2060 fox",
    "soft_hyphen": "a re\u00add fox",
    "byte_order_mark_inside": "a \ufeffred fox",
    "replacement": "a \ufffd fox",
    "private_use": "a \ue000 fox",
    "noncharacter": "a \uffff fox",
    "controls": "a\x01\x02\x07\x1b[31m fox\x7f",
    "next_line": "a red\x85fox",
    "line_separator": "a red\u2028fox\u2029end",
    "newline": "a red fox\nin the snow",
    "carriage_return_newline": "a red fox\r\nin snow",
    "tab": "a\tred\tfox",
    "quotes": '"a ""red"" fox\'s \\"den\\""',
    "commas": "a fox, red, oil on canvas, 4k,",
    "backslashes": "C:\\fox\\n\\u0041",
    "formula": '=HYPERLINK("http://x","fox")',
    "plus": "+1+cmd|' /C calc'!A0",
    "minus": "-2+3 foxes",
    "at": "@SUM(1,2) fox",
    "formula_after_tab": "\t=1+1 fox",
    "formula_after_spaces": "  =1+1 fox",
    "formula_after_zero_width": "\u200b=1+1 fox",
    "formula_full_width": "＝1+1 fox",
    "script": "<script>alert('fox')</script>",
    "image_with_handler": "<img src=x onerror=alert(1)> fox",
    "closing_tags": "</style></div></body><iframe src=//x>",
    "entity": "&lt;b&gt; &amp; &#x41; fox",
    "attribute": '" onmouseover="alert(1)" fox',
    "template": "{{7*7}} ${7*7} <%= 7 %> fox",
    "percent": "%s %d %(x)s {0} {fox}",
    "sql": "'; DROP TABLE prompts; --",
    "shell": "$(touch owned) `touch owned`; touch owned",
    "null_word": "null",
    "nan_word": "NaN",
    "true_word": "true",
    "number": "007",
    "date": "2020-01-01",
    "json": '{"prompt": "a fox"}',
    "path": "../../etc/passwd",
    "hundred_thousand": "a red fox " * 10_000,
    "one_long_word": "x" * 100_000,
}
NOTHING = {
    "empty": "",
    "spaces": "   ",
    "unicode_spaces": "\u00a0\u2003\u3000\u202f",
    "tabs_and_newlines": "\t \n \r",
    "zero_width_only": "\u200b\u200d\ufeff",
    "direction_marks_only": "\u202e\u202c\u200f",
    "controls_only": "\x01\x02\x7f",
    "nul_only": "\0",
}
CLEANED = {"nul": ("a\0 red\0 fox", "a red fox")}  # a NUL is taken out
TEXTS = PROMPTS | NOTHING | {name: text for name, (text, _) in CLEANED.items()}
LAYOUTS = ("csv", "tsv", "jsonl", "parquet", "shards", "files")


def write_layout(folder: Path, layout: str) -> None:
    folder.mkdir()
    picture = encoded(Image.new("RGB", (8, 8), RED), "png")
    names = [f"{name}.png" for name in TEXTS]
    if layout == "shards":
        with tarfile.open(folder / "0.tar", "w") as tar:
            for name, text in TEXTS.items():
                for suffix, content in ((".png", picture), (".txt", text.encode())):
                    member = tarfile.TarInfo(name + suffix)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        return
    for name, text in TEXTS.items():
        (folder / f"{name}.png").write_bytes(picture)
        if layout == "files":
            (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
    if layout == "parquet":
        pl.DataFrame({"file_name": names, "prompt": list(TEXTS.values())}).write_parquet(
            folder / "metadata.parquet"
        )
    elif layout == "jsonl":
        rows = (
            json.dumps({"file_name": name, "prompt": text})
            for name, text in zip(names, TEXTS.values(), strict=True)
        )
        (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    elif layout in ("csv", "tsv"):
        with open(folder / f"table.{layout}", "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t" if layout == "tsv" else ",")
            writer.writerows([("file_name", "prompt"), *zip(names, TEXTS.values(), strict=True)])


@pytest.fixture(scope="module")
def read(tmp_path_factory) -> dict[str, dict[str, str]]:
    """For each layout what each prompt came back as; a set-aside one as its reason in brackets."""
    found = {}
    for layout in LAYOUTS:
        folder = tmp_path_factory.mktemp("prompts") / layout
        write_layout(folder, layout)
        pairs, rejected = sources.read_pairs(folder)
        rows = [
            *pairs.select("id", "prompt").rows(),
            *((i, f"[{reason}]") for i, reason in rejected.select("id", "reason").rows()),
        ]
        found[layout] = {i.rpartition("/")[2]: text for i, text in rows}
        assert len(rows) == len(TEXTS), f"{layout}: rows vanish or multiply"
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_a_prompt_comes_back_from_every_layout_unchanged_or_is_set_aside(read, name):
    expected = "[empty prompt]" if name in NOTHING else CLEANED.get(name, (None, TEXTS[name]))[1]
    assert {layout: read[layout][name] for layout in LAYOUTS} == dict.fromkeys(LAYOUTS, expected)


def test_every_prompt_passes_the_rules_with_a_reason_or_stays_as_it_is(tmp_path):
    texts = pl.Series("prompt", [text.replace("\0", "") for text in TEXTS.values()])
    reasons = filters.rules(
        texts,
        min_words=1,
        max_tokens=77,
        edge_characters=0,
        n_tokens=prompts.count_tokens(texts.to_list()),
    )
    reason = dict(zip(TEXTS, reasons, strict=True))
    assert (
        reason["hundred_thousand"] == "more than 77 tokens"
        and reason["empty"] == "empty"
        and reason["arabic"] is None
    )
    assert {name for name in PROMPTS if reason[name] not in (None, "exact duplicate")} == {
        "hundred_thousand"
    }
    assert {reason[name] for name in ("full_width", "tab", "next_line")} == {"exact duplicate"}, (
        "of the letters of mathematics"
    )
    tally = text_pool.write_text_pool(
        [pl.DataFrame({"prompt": texts, "source": "x"})],
        tmp_path / "store.parquet",
        min_words=1,
        engine="polars",
    )
    kept = pl.read_parquet(tmp_path / "store.parquet")["prompt"].to_list()
    assert set(kept) <= set(texts) and len(kept) == tally["kept"] and tally.total() == len(texts)


def test_prompts_survive_the_tables(tmp_path):
    frame = pl.DataFrame({"prompt": list(PROMPTS.values())})
    for file in ("table.parquet", "table.csv"):
        artifacts.save_table(tmp_path / file, frame)
        assert artifacts.load_table(tmp_path / file).equals(frame), file


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_is_no_formula_in_a_csv(tmp_path, name):
    pl.DataFrame({"id": [TEXTS[name]]}).with_columns(escape_formulas(pl.col("id"))).write_csv(
        tmp_path / "list.csv"
    )
    with open(tmp_path / "list.csv", encoding="utf-8", newline="") as stream:
        cell = list(csv.reader(stream))[1][0]
    assert cell in (TEXTS[name], f"'{TEXTS[name]}")
    assert not re.sub(r"^[\s\u200b]+", "", cell).startswith(tuple("=+-@＝＋－＠"))


class Words(HTMLParser):
    """A page's text and the tags and attributes that are in it."""

    def __init__(self, page: str):
        super().__init__()
        self.text = []
        self.tags = set()
        self.attributes = set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> tuple[Words, Words]:
    """The report without a prompt in its gallery, and with all of them, as truth and neighbor."""
    output = tmp_path_factory.mktemp("report")
    write_finished_output(output)
    gallery = pl.read_parquet(output / paths.GALLERY)
    found = []
    for texts in ([], [text for name, text in PROMPTS.items() if len(text) < 1000]):
        rows = {
            "id": texts,
            "image": ["gone.png"] * len(texts),
            "confidence": [0.5] * len(texts),
            "prompts": [[t] for t in texts],
            "truth": texts,
            "cosine": [0.5] * len(texts),
        }
        artifacts.save_table(output / paths.GALLERY, pl.DataFrame(rows, schema=gallery.schema))
        found.append(Words(report.write(output).read_text(encoding="utf-8")))
    return found[0], found[1]


def test_no_prompt_is_markup_in_the_report(pages):
    without, with_all = pages
    assert (
        with_all.tags - without.tags <= {"li", "b", "ul", "br", "span"}
        and with_all.attributes == without.attributes
    )
    words = "\0".join(with_all.text)
    for name, text in PROMPTS.items():
        if len(text) < 1000:
            assert words.count(text.replace("\r\n", "\n")) >= 2, name
