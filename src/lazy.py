"""Names that a package gives when they are asked for, so that heavy libraries load no earlier."""

from collections.abc import Callable, Mapping
from importlib import import_module


def exports(package: str, module_of: Mapping[str, str]) -> Callable[[str], object]:
    """The `__getattr__` of a package that takes each of its public names from a module of its own.

    `module_of` is by name.
    """

    def attribute(name: str) -> object:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{module_of[name]}"), name)

    return attribute
