"""Imports the public names of a package when they are first used, by the list in its stub.

Type checkers read the stub (``__init__.pyi``) in place of the package, so each name is written once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_exports(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns ``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    Args:
        package: the name of the package.
        file: its ``__init__.py``. Beside it lies the stub, with a line ``from MODULE import NAME as NAME`` for each
            name; MODULE is the package itself where NAME is a module of it.
    """
    modules: dict[str, str] = {}
    # pathlib would take longer to import than everything else that `import exfm` does.
    with open(f"{file}i", encoding="utf-8") as stub:  # noqa: PTH123
        for line in stub:
            if line.startswith("from "):
                _, module, _, name, _, _ = line.split()
                modules[name] = module

    def get_attribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if modules[name] == package:
            return import_module(f"{package}.{name}")
        return getattr(import_module(modules[name]), name)

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return get_attribute, list_names, sorted(modules)
