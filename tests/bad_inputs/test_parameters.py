"""Parameters files and `--set`: refused with a reason, and nothing in them runs."""

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
        "tags are not supported, got .*python/object/apply:os.system",
    ),
    "python_new": (
        "common: !!python/object/new:os.system ['" + TOUCH + "']",
        "python/object/new:os.system",
    ),
    "python_name": ("common: {seed: !!python/name:os.system }", "python/name:os.system"),
    "python_module": ("common: {seed: !!python/module:os }", "python/module:os"),
    "unknown_tag": ("common: {train: !include /etc/passwd}", "!include"),
    "alias": ("common: {seed: &a 1, output_dir: *a}", "line 1: YAML aliases are not supported"),
    "many_laughs": (
        "\n".join(
            [
                "a: &a [x, x]",
                *(f"{b}: &{b} [{'*' + a}, {'*' + a}]" for a, b in pairwise("abcdefghijklmn")),
            ]
        ),
        "line 1: YAML aliases are not supported",
    ),
    "merge_key": ("common: &c {seed: 1}\n01_dedup: {<<: *c}", "aliases are not supported"),
    "own_tail": ("common: &c {seed: *c}", "aliases are not supported"),
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
    "section_is_on": ("on: {seed: 1}", "section 'on' is unknown"),
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
    "bool_for_an_int": ("common: {seed: true}", "seed must be int, got True"),
    "yes_for_an_int": ("common: {seed: yes}", "seed must be int, got 'yes'"),
    "yes_for_a_bool": (
        "common: {offline: yes}",
        "offline must be bool, got 'yes'; write true or false",
    ),
    "no_for_a_bool": ("02_train_model_a: {learn_mix: no}", "got 'no'; write true or false"),
    "date": ("common:\n  seed: 2020-01-01", "line 2: 2020-01-01 is a number to some"),
    "date_for_a_text": ("common: {output_dir: 2020-01-01}", "put it in quotes for the text"),
    "octal": ("common: {seed: 042}", "042 is a number to some .*: write 42 for the number"),
    "new_octal": ("common: {seed: 0o17}", "0o17 is a number to some"),
    "hexadecimal": ("common: {seed: 0x1F}", "0x1F is a number to some"),
    "underscore": ("common: {seed: 1_000}", "write 1000 for the number"),
    "sexagesimal": ("common: {seed: 1:30}", "1:30 is a number to some"),
    "number_for_a_text": (
        "common: {output_dir: 42}",
        "output_dir must be str, got 42; put text that looks like something else in quotes",
    ),
    "anchor": ("common: {output_dir: &a b}", "YAML aliases are not supported"),
    "list_for_a_text": ("common: {clip: [a]}", "clip must be str"),
    "null_for_a_number": ("common: {seed: null}", "seed must be int, got None"),
    "nan": ("01_dedup: {cosine_threshold: .nan}", "cosine_threshold must be float, got nan"),
    "infinity": ("01_dedup: {cosine_threshold: .inf}", "cosine_threshold must be float, got inf"),
    "infinity_by_its_exponent": (
        "01_dedup: {cosine_threshold: 1e400}",
        "cosine_threshold must be float, got inf",
    ),
    "bytes": ("common: {seed: !!binary aGk=}", "tags are not supported"),
    "set": ("common: {seed: !!set {a, b}}", "tags are not supported"),
    "number_by_a_tag": ("common: {seed: !!int 042}", "tags are not supported"),
    "number_of_5000_digits": ("common: {seed: " + "9" * 5000 + "}", "4300 digits"),
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
        ("seed=[", r"--set seed=\["),
        (
            "seed=042",
            "--set seed=042: line 1: 042 is a number to some and text to others: write 42",
        ),
        ("seed=1_000", "write 1000 for the number"),
        ("seed=1:30", "1:30 is a number to some and text to others: put it in quotes"),
        ("seed=on", "seed must be int, got 'on'"),
        ("learn_mix=yes", "learn_mix must be bool, got 'yes'; write true or false"),
        ("output_dir=&a b", "YAML aliases are not supported"),
        ("seed", "wanted KEY=VALUE"),
        ("seed=", "seed must be int, got None"),
        ("=1", "is declared by no notebook"),
        ("a.b.c=1", "section 'a.b' is unknown"),
        ("train=$(touch {owned})", "does not exist"),
        ("train={path: x, path: y}", "keys given twice"),
        ("seed={a: &a 1, b: *a}", "aliases are not supported"),
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


VALUES = [
    ("lr_vision", "1e-5", 1e-5),
    ("lr_vision", "2E3", 2000.0),
    ("lr_vision", ".5", 0.5),
    ("lr_fc2", "null", None),
    ("lr_fc2", "~", None),
    ("learn_mix", "false", False),
    ("output_dir", "'042'", "042"),
    ("output_dir", "on", "on"),
    ("output_dir", '"2024-05-01"', "2024-05-01"),
    ("output_dir", "o [1]", "o [1]"),
    ("k_grid", "[1, 20]", [1, 20]),
    ("dim_grid", "[1e-1, 2]", [0.1, 2]),
]


@pytest.mark.parametrize(("name", "text", "value"), VALUES, ids=str)
def test_a_value_means_the_same_in_a_file_and_in_a_change(tmp_path, name, text, value):
    stage = "03_cuml_knn_model_b" if name.endswith("grid") else "02_train_model_a"
    file = tmp_path / "params.yaml"
    file.write_text(f"{stage}:\n  {name}: {text}\n")
    assert params.load_params(str(file), [])[stage][name] == value

    file.write_text("")
    changed = params.load_params(str(file), [f"{stage}.{name}={text}"])
    assert changed[stage][name] == value and type(changed[stage][name]) is type(value)


def test_text_in_a_change_is_taken_as_it_stands(tmp_path):
    (tmp_path / "params.yaml").write_text("")
    for text in ("out #1", "#1", "set [v2]"):
        given = params.load_params(str(tmp_path / "params.yaml"), [f"output_dir={text}"])
        assert given["common"]["output_dir"] == text


def test_a_parameters_file_may_be_utf_16_or_begin_with_a_mark(tmp_path):
    for encoding in ("utf-16", "utf-8-sig"):
        (tmp_path / "params.yaml").write_text("common: {seed: 5}", encoding=encoding)
        assert params.load_params(str(tmp_path / "params.yaml"), []) == {"common": {"seed": 5}}


@pytest.mark.parametrize(("old", "new"), params.RENAMED.items())
def test_a_former_name_is_answered_with_the_new_one(tmp_path, old, new):
    file = tmp_path / "params.yaml"
    file.write_text(f"common: {{{old}: 1}}")
    stage = next(s for s in paths.STAGES if new in params.declared(params.NOTEBOOKS / f"{s}.ipynb"))
    assert f"common.{old} is declared by no notebook; it was renamed to {new!r}" in refused(
        file, []
    )

    file.write_text("")
    said = refused(file, [f"{stage}.{old}=1"])
    assert f"{stage}.{old} is not declared by" in said and f"it was renamed to {new!r}" in said


@pytest.mark.parametrize(("old", "parts"), params.SPLIT.items())
def test_a_parameter_that_became_several_is_answered_with_them(tmp_path, old, parts):
    file = tmp_path / "params.yaml"
    file.write_text(f"02_train_model_a: {{{old}: true}}")
    assert f"it was split into {', '.join(parts)}" in refused(file, [])
    assert set(parts) <= params.declared(params.NOTEBOOKS / "02_train_model_a.ipynb").keys()


def test_a_former_value_is_answered_with_the_new_one(tmp_path):
    (tmp_path / "params.yaml").write_text("01_dedup: {keep: most_pictures}")
    said = refused(tmp_path / "params.yaml", [])
    assert "01_dedup.keep: 'most_pictures' was renamed to 'most_images'" in said
