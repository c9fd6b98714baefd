"""YAML without surprises, for parameters files and for `--set`.

PyYAML follows YAML 1.1, where `on` is true, 042 is 34, 1:30 is 90, and 1e-5 is text. Here `true`
and `false` alone are booleans, 1e-5 is a number, and what might be a number or a date to one
reader and text to another is refused. So are a key given twice, aliases, anchors and tags.
"""

import re

import yaml

NULL = re.compile(r"null|Null|NULL|~|")
BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
FLOAT = re.compile(
    r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)

# numbers to YAML 1.1 or to a programmer, text to others: 042, 0x1F, 1_000, 1:30, 2024-05-01
AMBIGUOUS = re.compile(
    r"[-+]?0[0-9][0-9.eE+-]*"
    r"|[-+]?0[xXoObB][0-9a-fA-F_]+"
    r"|[-+]?[0-9][0-9_]*_[0-9_.]*([eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9]+(:[0-9]{1,2})+(\.[0-9]*)?"
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt ].*)?"
)

TAG = "tag:yaml.org,2002:"
STR = TAG + "str"


class Loader(yaml.SafeLoader):
    """PyYAML's loader with the rules of this module."""

    def compose_node(self, parent, index):
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(
                f"line {line}: YAML aliases are not supported, write the value out"
            )
        if event.anchor is not None:
            raise yaml.YAMLError(
                f"line {line}: YAML aliases are not supported; quote text that begins with &"
            )
        if event.tag not in (None, "!"):
            raise yaml.YAMLError(f"line {line}: YAML tags are not supported, got {event.tag}")

        # in quotes it is text to every reader
        plain = isinstance(event, yaml.ScalarEvent) and event.implicit[0]
        if plain and AMBIGUOUS.fullmatch(event.value) and not FLOAT.fullmatch(event.value):
            raise yaml.YAMLError(
                f"line {line}: {event.value} is a number to some and text to others: "
                f"{_advice(event.value)}"
            )
        return super().compose_node(parent, index)

    def resolve(self, kind, value, implicit):
        """The type of a node: of a plain scalar by its spelling, as described above."""
        if kind is not yaml.ScalarNode:
            return super().resolve(kind, value, implicit)
        if not implicit[0]:
            return STR  # it is in quotes

        for name, pattern in (("null", NULL), ("bool", BOOL), ("int", INT), ("float", FLOAT)):
            if pattern.fullmatch(value):
                return TAG + name
        return STR


def _advice(value: str) -> str:
    """How to write an ambiguous value for each of its meanings."""
    digits = value.replace("_", "").lstrip("+")
    plain = re.sub(r"^(-?)0+(?=[0-9])", r"\1", digits)
    number = f"write {plain} for the number, " if FLOAT.fullmatch(plain) else ""
    return f"{number}put it in quotes for the text"


def _mapping(loader: Loader, node: yaml.MappingNode, deep: bool = False) -> dict:
    # PyYAML would silently take the last one
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    doubled = sorted({str(key) for key in keys if keys.count(key) > 1})
    if doubled:
        raise yaml.YAMLError(f"line {node.start_mark.line + 1}: keys given twice: {doubled}")
    return yaml.constructor.BaseConstructor.construct_mapping(loader, node, deep=deep)


def _integer(loader: Loader, node: yaml.ScalarNode) -> int:
    return int(node.value)


def _float(loader: Loader, node: yaml.ScalarNode) -> float:
    return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))


Loader.add_constructor(TAG + "map", _mapping)
Loader.add_constructor(TAG + "int", _integer)
Loader.add_constructor(TAG + "float", _float)


def load(content: str | bytes) -> object:
    """The one document in `content`. Raises yaml.YAMLError or ValueError that say what is wrong."""
    return yaml.load(content, Loader=Loader)


def load_value(text: str) -> object:
    """The value of a `--set`. Text needs no quotes, whatever it holds: a #, a colon, a bracket.

    What cannot be read as YAML in one piece, or only by dropping a part, is taken as it stands.
    """
    value = load(text)
    quoted = text.lstrip()[:1] in ("'", '"')
    if isinstance(value, str) and not quoted:
        return text.strip()
    if value is None and not NULL.fullmatch(text.strip()):
        return text.strip()
    return value
