"""Parameters files and changes on the command line: refused with a reason, and nothing in them runs."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from src import errors, paths
from src.data import sources
from src.runner import params

TOUCH = "touch {owned}"
PARAMETERS = {
    "python_object": (
        "common: !!python/object/apply:os.system ['" + TOUCH + "']",
        "python/object/apply:os.system",
    ),
    "python_new": (
        "common: !!python/object/new:os.system ['" + TOUCH + "']",
        "python/object/new:os.system",
    ),
    "python_name": ("common: {seed: !!python/name:os.system }", "python/name:os.system"),
    "python_module": ("common: {seed: !!python/module:os }", "python/module:os"),
    "unknown_tag": ("common: {train: !include /etc/passwd}", "!include"),
    "alias": ("common: {seed: &a 1, output_dir: *a}", "line 1: aliases are not taken"),
    "many_laughs": (
        "\n".join(
            [
                "a: &a [x, x]",
                *(f"{b}: &{b} [{'*' + a}, {'*' + a}]" for a, b in pairwise("abcdefghijklmn")),
            ]
        ),
        "line 2: aliases are not taken",
    ),
    "merge_key": ("common: &c {seed: 1}\n01_dedup: {<<: *c}", "aliases are not taken"),
    "own_tail": ("common: &c {seed: *c}", "aliases are not taken"),
    "key_twice": ("common: {seed: 1, seed: 2}", "keys given twice: ..seed'"),
    "section_twice": ("common: {seed: 1}\ncommon: {seed: 2}", "keys given twice: ..common'"),
    "key_twice_far_inside": ("common: {train: [{path: x, path: y}]}", "keys given twice: ..path'"),
    "list": ("- common", "must hold sections"),
    "empty_list": ("[]", "must hold sections"),
    "number": ("7", "must hold sections"),
    "false": ("false", "must hold sections"),
    "text": ("common", "must hold sections"),
    "section_is_a_number": ("common: 3", "these do not: ..common'"),
    "section_is_null": ("common:", "these do not: ..common'"),
    "unknown_section": ("06_more: {}", "section '06_more' is unknown"),
    "section_is_no_text": ("1: {seed: 1}", "section 1 is unknown"),
    "section_is_true": ("on: {seed: 1}", "section True is unknown"),
    "unknown_key": (
        "common: {sed: 1}",
        "common.sed is declared by no notebook; did you mean 'seed'",
    ),
    "key_is_no_text": ("common: {1: 2}", "common.1 is declared by no notebook"),
    "key_is_null": ("01_dedup: {~: 2}", "01_dedup.None is not declared"),
    "key_is_a_list": ("common: {[1]: 2}", "unhashable|unacceptable"),
    "underscores": ("common: {__class__: 2}", "common.__class__ is declared by no"),
    "text_for_a_number": ("common: {seed: one}", "seed must be int, got 'one'"),
    "float_for_an_int": ("common: {seed: 1.0}", "seed must be int, got 1.0"),
    "bool_for_an_int": ("common: {seed: yes}", "seed must be int, got True"),
    "date_for_an_int": ("common: {seed: 2020-01-01}", "seed must be int"),
    "list_for_a_text": ("common: {clip: [a]}", "clip must be str"),
    "null_for_a_number": ("common: {seed: null}", "seed must be int, got None"),
    "nan": ("01_dedup: {cosine_threshold: .nan}", "cosine_threshold must be float, got nan"),
    "infinity": ("01_dedup: {cosine_threshold: .inf}", "cosine_threshold must be float, got inf"),
    "exponent_without_a_point": (
        "01_dedup: {cosine_threshold: 1e-1}",
        "cosine_threshold must be float, got '1e-1'",
    ),
    "bytes": ("common: {seed: !!binary aGk=}", "seed must be int, got b'hi'"),
    "set": ("common: {seed: !!set {a, b}}", "seed must be int"),
    "unclosed": ("common: [", "params.yaml"),
    "tab": ("common:\n\tseed: 1", "params.yaml"),
    "two_documents": ("common: {}\n---\ncommon: {}", "single document"),
    "control_character": ("common: {seed: \x01}", "special characters"),
    "nested_too_deep": ("common: {train: " + "[" * 3000 + "]" * 3000 + "}", "nested too deep"),
    "offline_is_a_word": ("common: {offline: 'no'}", "common.offline must be bool, got 'no'"),
    "missing_input": ("common: {train: input/none}", "train: input/none does not exist"),
    "path_of_5000_characters": ("common: {train: " + "x" * 5000 + "}", "train: x+ does not exist"),
    "path_with_nul": ('common: {train: "a\\0b"}', "train: a\0b does not exist"),
    "path_of_nobody_s_home": (
        "common: {train: ~nobody-is-called-so/x}",
        "train: ~nobody-is-called-so/x does not exist",
    ),
    "shell_in_a_path": ('common: {train: "$(' + TOUCH + ')"}', "train: .*does not exist"),
    "backticks": ('common: {train: "`' + TOUCH + '`"}', "does not exist"),
    "semicolon": ('common: {train: "x; ' + TOUCH + '"}', "does not exist"),
    "pipe": ('common: {train: "| ' + TOUCH + '"}', "does not exist"),
}


@pytest.fixture(scope="module")
def notebooks() -> dict[str, dict]:
    """What the notebooks declare, read once."""
    return {stage: params.declared(params.NOTEBOOKS / f"{stage}.ipynb") for stage in paths.STAGES}


def refused(file: Path, changes: list[str]) -> str:
    """What is said of the parameters before anything runs; fails when nothing is."""
    try:
        given = params.stage_params(params.load_params(str(file), changes), str(file))
    except errors.UserError as problem:
        return str(problem)
    missing = params.missing_inputs(given)
    assert missing
    return "\n".join(missing)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_refused_and_nothing_in_them_runs(tmp_path, monkeypatch, notebooks, name):
    text, expected = PARAMETERS[name]
    monkeypatch.setattr(params, "declared", lambda notebook: notebooks[notebook.stem])
    (tmp_path / "params.yaml").write_text(
        text.replace("{owned}", str(tmp_path / "owned")), encoding="utf-8"
    )
    said = refused(tmp_path / "params.yaml", [])
    assert re.search(expected, said), said
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("seed=!!python/object/apply:os.system ['touch {owned}']", "python/object/apply"),
        ("seed=[", "params.yaml"),
        ("seed", "wanted KEY=VALUE"),
        ("seed=", "seed must be int, got None"),
        ("=1", "is declared by no notebook"),
        ("a.b.c=1", "section 'a.b' is unknown"),
        ("train=$(touch {owned})", "does not exist"),
        ("train={path: x, path: y}", "keys given twice"),
        ("seed={a: &a 1, b: *a}", "aliases are not taken"),
    ],
)
def test_a_change_on_the_command_line_is_refused_and_does_not_run(
    tmp_path, monkeypatch, notebooks, change, expected
):
    monkeypatch.setattr(params, "declared", lambda notebook: notebooks[notebook.stem])
    (tmp_path / "params.yaml").write_text("")
    said = refused(tmp_path / "params.yaml", [change.replace("{owned}", str(tmp_path / "owned"))])
    assert re.search(expected, said) and not (tmp_path / "owned").exists(), said


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfecommon", b"common: {seed: \xe9}", bytes(range(256))],
    ids=["utf16", "latin1", "binary"],
)
def test_a_parameters_file_that_is_no_text_is_refused(tmp_path, content):
    (tmp_path / "params.yaml").write_bytes(content)
    assert "params.yaml" in refused(tmp_path / "params.yaml", [])


@pytest.mark.parametrize(
    "train",
    [
        [],
        [3],
        [None],
        [{}],
        [{"path": 5}],
        [{"path": "x", "text": "y"}],
        [{"path": "x", "layout": "tar"}],
    ],
    ids=str,
)
def test_a_source_that_is_none_is_refused(train):
    with pytest.raises((ValueError, FileNotFoundError), match="train: "):
        sources.read_all(train)
