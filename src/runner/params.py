"""What the user asked for: a parameters file, checked against what the notebooks declare.

Papermill only warns of a parameter that a notebook does not have, and then runs with the wrong
value; here it is refused before anything runs.
"""

import ast
import difflib
import inspect
import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from src.errors import UserError
from src.paths import ROOT, STAGES, display_path, resolve

NOTEBOOKS = ROOT / "notebooks"
COMMON = "common"
DEMO = "demo"
SECTIONS = (COMMON, DEMO, *STAGES)
RUNNER = {"offline": bool}  # keys of `common` that are the runner's own

# parameters that name files or folders
FILES = (
    "train",
    "test",
    "text_only",
    "captions",
    "stores",
    "test_truth",
    "exclude_near",
    "fold_file",
    "attributes",
)

# parameters, and values of one, by their former names
RENAMED = {
    "lr_clip": "baseline_lr",
    "blocks_clip": "baseline_blocks",
    "epochs_clip": "baseline_epochs",
    "backbones": "extra_clips",
    "more_clips": "extra_clips",
    "text": "text_only",
    "held_out": "exclude_near",
    "several_pictures": "sample_duplicates",
    "weigh_by_agreement": "weight_by_clip_score",
    "start_from": "head_init",
    "samples": "n_bootstrap",
}
# parameters that have become several
SPLIT = {"augment_images": ("augment_rotation", "augment_flip", "augment_crop")}
RENAMED_VALUES = {"keep": {"most_pictures": "most_images"}}

# types by their name in a notebook's annotations
TYPES = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "list": list,
    "dict": dict,
    "None": type(None),
}


class Declared(NamedTuple):
    """A notebook's parameter: its default, its types, and those of the entries of a list."""

    default: object
    types: tuple[type, ...]
    entries: tuple[type, ...]

    def accepts(self, value: object) -> bool:
        """Whether `value` has one of the types; an int is a float, infinity and NaN are nothing."""
        if type(value) is list and list in self.types:
            return not self.entries or all(_is_one_of(entry, self.entries) for entry in value)
        return _is_one_of(value, self.types)

    def __str__(self) -> str:
        names = []
        for kind in self.types:
            inside = " or ".join(entry.__name__ for entry in self.entries)
            names.append(f"list of {inside}" if kind is list and inside else kind.__name__)
        return " or ".join(names)


def _is_one_of(value: object, types: tuple[type, ...]) -> bool:
    if type(value) is float and not math.isfinite(value):
        return False
    return type(value) in types or (type(value) is int and float in types)


# --- what the notebooks declare ---


def declared(notebook: Path) -> dict[str, Declared]:
    """By name, from the cell tagged `parameters`; types come from the annotation or the default."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    cell = next(c for c in cells if "parameters" in c["metadata"].get("tags", []))

    parameters = {}
    for node in ast.parse("".join(cell["source"])).body:
        match node:
            case ast.AnnAssign(ast.Name(name), annotation, ast.expr() as value):
                parameters[name] = Declared(ast.literal_eval(value), *_types(annotation))
            case ast.Assign([ast.Name(name)], value):
                parameters[name] = _by_default(ast.literal_eval(value))
            case _:
                line = ast.unparse(node)
                raise ValueError(f"{notebook.name}: no parameter with a default: {line!r}")
    return parameters


def _by_default(default: object) -> Declared:
    """A parameter without an annotation: of the type of its default, and a list of its entries."""
    entries = {type(entry) for entry in default} if isinstance(default, list) else set()
    return Declared(default, (type(default),), tuple(entries))


def _types(annotation: ast.expr) -> tuple[tuple[type, ...], tuple[type, ...]]:
    """The types of `a | b | list[c | d]`, and those within its brackets."""
    if isinstance(annotation, ast.BinOp):
        left, left_entries = _types(annotation.left)
        right, right_entries = _types(annotation.right)
        return left + right, left_entries + right_entries

    if isinstance(annotation, ast.Subscript):
        entries, _ = _types(annotation.slice)
        return (list,), entries

    return (TYPES[ast.unparse(annotation)],), ()


# --- what the user gave ---


def load_params(file: str, changes: list[str]) -> dict[str, dict]:
    """The sections of a parameters file with the `--set` changes in them.

    Raises UserError naming the file or the change.
    """
    import yaml

    from src.runner import strict_yaml

    path = resolve(file)
    if not path.is_file():
        files = ", ".join(display_path(p) for p in sorted((ROOT / "params").glob("*.yaml")))
        raise UserError(f"--params: {display_path(path)} does not exist; there are {files}")

    where = display_path(path)
    try:
        # as bytes: YAML itself tells UTF-8 from UTF-16
        params = _sections(strict_yaml.load(path.read_bytes()))
        for change in changes:
            where = f"--set {change}"
            _apply(params, change)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where}: {error}") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deep") from None
    return params


def _sections(content: object) -> dict[str, dict]:
    """The file's content as sections. Raises ValueError where it is something else."""
    if content is None:
        return {}
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(f"must hold sections (`common:`, `01_dedup:`), got a {kind}")

    wrong = [name for name, section in content.items() if not isinstance(section, dict)]
    if wrong:
        raise ValueError(f"sections must hold `name: value` lines; these do not: {wrong}")
    return content


def _apply(params: dict[str, dict], change: str) -> None:
    """Put a change, `section.name=value` or `name=value`, into the sections it belongs to."""
    from src.runner.strict_yaml import load_value

    key, equals, text = change.partition("=")
    if not equals:
        raise ValueError("wanted KEY=VALUE")

    # without a section it is common's, and replaces what a section has under this name
    section, _, name = key.rpartition(".")
    sections = [section]
    if not section:
        sections = [COMMON, *(stage for stage in STAGES if name in params.get(stage, {}))]

    value = load_value(text)
    for section in sections:
        params.setdefault(section, {})[name] = value


# --- both together ---


def stage_params(
    params: dict[str, dict], file: str, notebooks: Path = NOTEBOOKS
) -> dict[str, dict]:
    """Each notebook's parameters: from its section, else from `common`, else its default.

    Raises UserError listing every unknown section or key and every value of another type.
    """
    by_stage: dict[str, dict[str, Declared]] = {
        stage: declared(notebooks / f"{stage}.ipynb") for stage in STAGES
    }
    common = params.get(COMMON, {})
    problems = _section_problems(params) + _common_problems(common, by_stage)

    # a section's own value comes before that of `common`, which comes before the default
    result: dict[str, dict] = {}
    for stage, parameters in by_stage.items():
        own = params.get(stage, {})
        given = {name: value for name, value in (common | own).items() if name in parameters}
        problems += _unknown_names(stage, own, parameters)
        problems += _value_problems(stage, given, parameters)
        result[stage] = {name: parameter.default for name, parameter in parameters.items()} | given

    problems += _demo_problems(params.get(DEMO))
    if len({str(values.get("output_dir")) for values in result.values()}) > 1:
        problems.append("output_dir must be one for all notebooks: set it in `common`")

    if problems:
        lines = ["the parameters are refused", *dict.fromkeys(problems)]
        raise UserError(f"{file}: " + "\n  ".join(lines))
    return result


def _section_problems(params: dict[str, dict]) -> list[str]:
    return [
        f"section {section!r} is unknown{_near(section, SECTIONS)}"
        for section in params
        if section not in SECTIONS
    ]


def _common_problems(common: dict, by_stage: dict[str, dict[str, Declared]]) -> list[str]:
    """Names in `common` that no notebook has, and values of the runner's own of another type."""
    problems = []
    names = sorted({name for parameters in by_stage.values() for name in parameters})
    for name, value in common.items():
        if name in RUNNER:
            kind = RUNNER[name]
            if type(value) is not kind:
                advice = _type_advice(value, (kind,))
                problems.append(f"common.{name} must be {kind.__name__}, got {value!r}{advice}")
        elif name not in names:
            advice = _renamed(name, names) or _near(name, [*names, *RUNNER])
            problems.append(f"common.{name} is declared by no notebook{advice}")
    return problems


def _unknown_names(stage: str, own: dict, parameters: dict[str, Declared]) -> list[str]:
    problems = []
    for name in own:
        if name not in parameters:
            advice = _renamed(name, parameters) or _near(name, parameters)
            problems.append(f"{stage}.{name} is not declared by notebooks/{stage}.ipynb{advice}")
    return problems


def _value_problems(stage: str, given: dict, parameters: dict[str, Declared]) -> list[str]:
    """A line for each value of another type than declared, or that is an empty text."""
    problems = []
    for name, value in given.items():
        if not parameters[name].accepts(value):
            advice = _type_advice(value, parameters[name].types)
            problems.append(f"{stage}.{name} must be {parameters[name]}, got {value!r}{advice}")

        entries = value if isinstance(value, list) else [value]
        if "" in entries:
            problems.append(f"{stage}.{name} must not be empty")
        for entry in entries:
            now = RENAMED_VALUES.get(name, {}).get(str(entry))
            if now:
                problems.append(f"{stage}.{name}: {entry!r} was renamed to {now!r}")
    return problems


def _type_advice(value: object, types: tuple[type, ...]) -> str:
    """Advice on how to write a value that YAML read as another type."""
    if str in types and type(value) in (int, float, bool):
        return "; put text that looks like something else in quotes"
    if bool in types and isinstance(value, str):
        return "; write true or false"
    return ""


def _renamed(name: object, names: Iterable[str]) -> str:
    """What a former name has become, where one of `names` has taken its place."""
    if not isinstance(name, str):
        return ""
    parts = SPLIT.get(name, ())
    if parts and set(parts) <= set(names):
        return f"; it was split into {', '.join(parts)}"
    now = RENAMED.get(name)
    return f"; it was renamed to {now!r}" if now is not None and now in names else ""


def _near(name: object, names: Iterable[str]) -> str:
    """A question about the nearest of `names`, where one is near; a key of YAML may be no text."""
    close = difflib.get_close_matches(str(name), names, 1)
    return f"; did you mean {str(close[0])!r}?" if close else ""


def _demo_problems(demo: dict | None) -> list[str]:
    if demo is None:
        return []
    from src import demo as module

    wanted = dict(inspect.signature(module.write).parameters)
    problems = [
        f"demo.{name} is unknown{_near(name, wanted)}" for name in demo if name not in wanted
    ]
    for name, parameter in wanted.items():
        if name not in demo and parameter.default is inspect.Parameter.empty:
            problems.append(f"demo.{name} is missing")
        elif name in demo and name != "folder":
            problems += _size_problems(name, demo[name])

    if not problems:
        problems += _pool_problems(demo["train_scenes"], demo["test_scenes"])

    folder = demo.get("folder", "input/demo")
    if not isinstance(folder, str) or not folder or os.path.isfile(resolve(folder)):
        problems.append(f"demo.folder must be a folder to write, got {folder!r}")
    return problems


def _pool_problems(train: int, test: int) -> list[str]:
    """What is wrong with the numbers of scenes together: no more differ than the grammar has."""
    from src.demo.population import LARGEST_POOL, pool_rows

    rows = pool_rows(train, test)
    if rows <= LARGEST_POOL:
        return []
    return [
        f"demo.train_scenes = {train:,} and demo.test_scenes = {test:,} need a pool of {rows:,} "
        f"scenes; the grammar has {LARGEST_POOL:,} that differ enough"
    ]


def _size_problems(name: str, value: object) -> list[str]:
    """What is wrong with one of the demo's numbers."""
    if type(value) is not int:
        return [f"demo.{name} must be int, got {value!r}"]

    lowest = 0 if name == "seed" else 1
    if value < lowest:
        return [f"demo.{name} must be at least {lowest}, got {value}"]
    return []


# --- files and folders among the parameters ---


def input_paths(values: dict[str, object]) -> dict[str, Path]:
    """Parameter -> the user's file or folder it names.

    That is each of FILES, and a local CLIP (without its @size).
    """
    by_name: dict[str, Path] = {}
    for name, value in values.items():
        entries = value if isinstance(value, list) else [value]
        if name == "extra_members":
            by_name |= _member_files(entries)
            continue

        # of several files of one parameter each is named by its number
        for n, entry in enumerate(entries):
            path = _path_of(name, entry)
            if path is not None:
                by_name[f"{name}[{n}]" if len(entries) > 1 else name] = path
    return by_name


def _member_files(members: list) -> dict[str, Path]:
    """The files of the members from outside, and the ids beside each .npy."""
    by_name = {}
    for n, entry in enumerate(members):
        for key in ("oof", "test"):
            file = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(file, str):
                continue
            by_name[f"extra_members[{n}].{key}"] = resolve(file)
            if file.endswith(".npy"):
                ids_file = resolve(file).with_suffix(".ids.parquet")
                by_name[f"extra_members[{n}].{key}, its ids"] = ids_file
    return by_name


def _path_of(name: str, entry: object) -> Path | None:
    """The file or folder that one value, or entry of a list, of the parameter names."""
    if isinstance(entry, dict):
        entry = entry.get("path")
    if not isinstance(entry, str):
        return None

    folder = entry.removeprefix("timm:")
    if folder.startswith("local-dir:"):
        return resolve(re.sub(r"@\d+$", "", folder.removeprefix("local-dir:")))
    return resolve(entry) if name in FILES else None


def missing_inputs(per_stage: dict[str, dict], *, to_be_written: Path | None = None) -> list[str]:
    """A line for every input that does not exist, sorted; the demo's folder is `to_be_written`."""
    lines = set()
    for values in per_stage.values():
        for name, path in input_paths(values).items():
            awaited = to_be_written is not None and path.is_relative_to(to_be_written)
            if not os.path.exists(path) and not awaited:
                lines.add(f"{name}: {display_path(path)} does not exist")
    return sorted(lines)
