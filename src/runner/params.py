"""What the user asked for: the parameters files, held strictly against what the notebooks declare, before anything runs.

Papermill only warns of a parameter that a notebook does not have, and then runs with the wrong value.
"""

import ast
import difflib
import inspect
import json
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

from src.errors import UserError
from src.paths import ROOT, STAGES, display_path, resolve

NOTEBOOKS = ROOT / "notebooks"
FILES = (
    "train",
    "test",
    "text_only",
    "stores",
    "test_truth",
    "exclude_near",
    "fold_file",
    "attributes",
)  # what names files or folders
RUNNER = {"offline": bool}  # keys of `common` that are the runner's own


class Declared(NamedTuple):
    """A notebook's parameter: its default, the types it may have, and those that the entries of a list may have."""

    default: object
    types: tuple[type, ...]
    entries: tuple[type, ...]


def declared(notebook: Path) -> dict[str, Declared]:
    """By name, from the cell tagged `parameters`; the types come from the annotation or the default."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = next(
        "".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])
    )
    found = {}
    for node in ast.parse(source).body:
        name = node.target.id if isinstance(node, ast.AnnAssign) else node.targets[0].id
        default = ast.literal_eval(node.value)
        if isinstance(node, ast.AnnAssign):
            found[name] = Declared(default, *_types(node.annotation))
        else:
            found[name] = Declared(
                default,
                (type(default),),
                tuple({type(e) for e in default} if type(default) is list else ()),
            )
    return found


def _types(annotation: ast.expr) -> tuple[tuple[type, ...], tuple[type, ...]]:
    """The types of `a | b | list[c | d]`, and those within its brackets."""
    known = {
        "str": str,
        "int": int,
        "float": float,
        "bool": bool,
        "list": list,
        "dict": dict,
        "None": type(None),
    }
    if isinstance(annotation, ast.BinOp):
        left, right = _types(annotation.left), _types(annotation.right)
        return left[0] + right[0], left[1] + right[1]
    if isinstance(annotation, ast.Subscript):
        return (list,), _types(annotation.slice)[0]
    return (known[ast.unparse(annotation)],), ()


def _fits(value: object, types: tuple[type, ...], entries: tuple[type, ...] = ()) -> bool:
    if type(value) is float and not math.isfinite(value):
        return False
    if type(value) is list and list in types:
        return not entries or all(_fits(entry, entries) for entry in value)
    return type(value) in types or (type(value) is int and float in types)


def _wanted(types: tuple[type, ...], entries: tuple[type, ...]) -> str:
    inside = f" of {' or '.join(t.__name__ for t in entries)}" if entries else ""
    return " or ".join(t.__name__ + (inside if t is list else "") for t in types)


def load_params(file: str, changes: list[str]) -> dict[str, dict]:
    """The sections of a parameters file with the `--set` changes in them. Raises Problem naming the file or the change."""
    import yaml

    path = resolve(file)
    if not path.is_file():
        raise UserError(
            f"--params: {display_path(path)} does not exist; there are "
            + ", ".join(display_path(p) for p in sorted((ROOT / "params").glob("*.yaml")))
        )
    try:
        params = yaml.load(path.read_text(encoding="utf-8"), Loader=_strict_loader(yaml))
        params = {} if params is None else params
        if not isinstance(params, dict):
            raise UserError(
                f"{display_path(path)}: must hold sections (`common:`, `01_dedup:`), got a {type(params).__name__}"
            )
        wrong = [name for name, section in params.items() if not isinstance(section, dict)]
        if wrong:
            raise UserError(
                f"{display_path(path)}: sections must hold `name: value` lines; these do not: {wrong}"
            )
        for change in changes:
            key, equals, value = change.partition("=")
            if not equals:
                raise UserError(f"--set {change}: wanted KEY=VALUE")
            named, _, name = key.rpartition(".")
            above = [
                stage for stage in STAGES if not named and name in params.get(stage, {})
            ]  # a section wins over common
            for section in [named or "common", *above]:
                params.setdefault(section, {})[name] = yaml.load(value, Loader=_strict_loader(yaml))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{display_path(path)}: {error}") from None
    except RecursionError:
        raise UserError(f"{display_path(path)}: nested too deep") from None
    return params


def _strict_loader(yaml):
    class Loader(yaml.SafeLoader):
        """YAML keeps the last of two equal keys and says nothing; here that is an error. So are aliases, which can multiply."""

        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError(
                    f"line {self.peek_event().start_mark.line + 1}: aliases are not taken, write the value out"
                )
            return super().compose_node(parent, index)

    def mapping(loader, node, deep=False):
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
        doubled = sorted({str(key) for key in keys if keys.count(key) > 1})
        if doubled:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: keys given twice: {doubled}")
        return yaml.SafeLoader.construct_mapping(loader, node, deep=deep)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    return Loader


def stage_params(
    params: dict[str, dict], file: str, notebooks: Path = NOTEBOOKS
) -> dict[str, dict]:
    """What each notebook is given: every declared name, from its section, else `common`, else the notebook's default.

    Raises Problem listing every unknown section or key and every value of another type.
    """
    known = {stage: declared(notebooks / f"{stage}.ipynb") for stage in STAGES}
    common = sorted({name for names in known.values() for name in names})
    problems = [
        f"section {s!r} is unknown{_near(s, ['common', 'demo', *STAGES])}"
        for s in params
        if s not in ("common", "demo", *STAGES)
    ]
    problems += [
        f"common.{name} is declared by no notebook{_near(name, [*common, *RUNNER])}"
        for name in params.get("common", {})
        if name not in common and name not in RUNNER
    ]
    problems += [
        f"common.{name} must be {kind.__name__}, got {params['common'][name]!r}"
        for name, kind in RUNNER.items()
        if type(params.get("common", {}).get(name, kind())) is not kind
    ]
    result = {}
    for stage, names in known.items():
        own = params.get(stage, {})
        problems += [
            f"{stage}.{name} is not declared by notebooks/{stage}.ipynb{_near(name, list(names))}"
            for name in own
            if name not in names
        ]
        given = {n: v for n, v in params.get("common", {}).items() if n in names} | {
            n: v for n, v in own.items() if n in names
        }
        problems += [
            f"{stage}.{name} must be {_wanted(*names[name][1:])}, got {value!r}"
            for name, value in given.items()
            if not _fits(value, *names[name][1:])
        ]
        problems += [
            f"{stage}.{name} must not be empty"
            for name, value in given.items()
            if "" in (value if isinstance(value, list) else [value])
        ]
        result[stage] = {
            name: given.get(name, parameter.default) for name, parameter in names.items()
        }
    problems += _demo_problems(params.get("demo"))
    if len({str(values.get("output_dir")) for values in result.values()}) > 1:
        problems.append("output_dir must be one for all notebooks: set it in `common`")
    if problems:
        raise UserError(
            f"{file}: " + "\n  ".join(["the parameters are refused", *dict.fromkeys(problems)])
        )
    return result


def _near(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(str(name), names, 1)  # YAML reads `on:` and `1:` as no text
    return f"; did you mean {close[0]!r}?" if close else ""


def _demo_problems(demo: dict | None) -> list[str]:
    if demo is None:
        return []
    from src import demo as module

    wanted = dict(inspect.signature(module.write).parameters)
    problems = [
        f"demo.{name} is unknown{_near(name, list(wanted))}" for name in demo if name not in wanted
    ]
    for name, parameter in wanted.items():
        if name not in demo and parameter.default is inspect.Parameter.empty:
            problems.append(f"demo.{name} is missing")
        elif name in demo and name != "folder" and type(demo[name]) is not int:
            problems.append(f"demo.{name} must be int, got {demo[name]!r}")
        elif name in demo and name != "folder" and demo[name] < (name != "seed"):
            problems.append(f"demo.{name} must be at least {int(name != 'seed')}, got {demo[name]}")
    folder = demo.get("folder", "input/demo")
    if not isinstance(folder, str) or not folder or os.path.isfile(resolve(folder)):
        problems.append(f"demo.folder must be a folder to write, got {folder!r}")
    return problems


def input_paths(values: dict[str, object]) -> dict[str, Path]:
    """Parameter -> the user's file or folder it names: each of FILES, and a `local-dir:` CLIP (without its @size)."""
    found = {}
    for name, value in values.items():
        entries = value if isinstance(value, list) else [value]
        for n, entry in enumerate(entries):
            entry = entry.get("path") if isinstance(entry, dict) else entry
            local = isinstance(entry, str) and entry.startswith("local-dir:")
            if isinstance(entry, str) and (local or name in FILES):
                plain = re.sub(r"@\d+$", "", entry.removeprefix("local-dir:")) if local else entry
                found[f"{name}[{n}]" if len(entries) > 1 else name] = resolve(plain)
    return found


def missing_inputs(per_stage: dict[str, dict], *, to_be_written: Path | None = None) -> list[str]:
    """A line for every input that does not exist, sorted; the demo's folder is yet `to_be_written`."""
    inputs = [entry for values in per_stage.values() for entry in input_paths(values).items()]
    return sorted(
        {
            f"{name}: {display_path(path)} does not exist"
            for name, path in inputs
            if not os.path.exists(path)
            and not (to_be_written and path.is_relative_to(to_be_written))
        }
    )
