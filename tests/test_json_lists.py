"""JSON files that hold a list of objects: read where they name a text, else refused in words."""

import json
import shlex
import subprocess
import sys

import pytest
from PIL import Image

from src.data import layouts, sources


@pytest.fixture
def folder(tmp_path):
    """Two images below a folder with brackets in its name."""
    folder = tmp_path / "set [1]"
    (folder / "images").mkdir(parents=True)
    for name in ("fox.jpg", "owl.jpg"):
        Image.new("RGB", (8, 6)).save(folder / "images" / name)
    return folder


def write(folder, entries, encoding="utf-8"):
    file = folder / "it's a list.json"
    file.write_bytes(json.dumps(entries, ensure_ascii=False).encode(encoding))
    return file


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_list_of_objects(folder, encoding):
    entries = [
        {"image": "images/fox.jpg", "caption": ["a fox", "a café"]},
        {"image": r"images\owl", "caption": "an owl"},
        "no object",
        {"image": "images/gone.jpg", "caption": "a hen"},
    ]
    file = write(folder, entries, encoding)
    assert layouts.recognize(folder) == "json_list"
    for path in (folder, file):
        pairs, rejected = sources.read_pairs(path)
        assert pairs["prompt"].to_list() == ["a fox", "a café", "an owl"]
        reasons = ["its entry is not a JSON object", "no such image"]
        assert rejected["reason"].to_list() == reasons


def test_conversations_are_refused_with_a_command_that_converts_them(folder):
    entries = [
        {
            "id": name,
            "image": f"images/{name}.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\nDescribe it."},
                {"from": "gpt", "value": f"a {name}"},
            ],
        }
        for name in ("fox", "owl")
    ]
    write(folder, entries)
    with pytest.raises(ValueError, match="holds LLaVA's conversations") as refused:
        sources.read_pairs(folder)

    command = str(refused.value).split(": python -c ")[1]
    code = shlex.split(command)[0]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    (folder / "metadata.jsonl").write_text(done.stdout)
    pairs, _ = sources.read_pairs(folder)
    assert pairs["prompt"].to_list() == ["a fox", "a owl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "list.json cannot be read: it is not a list of JSON objects"),
        ('[{"image": "a.jpg"', "list.json cannot be read: "),
        ('[{"image": "a.jpg", "tags": 1}]', r"list.json: no text column among \['image', 'tags'\]"),
        ('[{"prompt": "a fox"}]', "list.json: no image column"),
    ],
)
def test_other_lists_are_refused(tmp_path, content, message):
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        sources.read_pairs(tmp_path)
