"""Tests the promises of `import exfm`: names, documentation, and no import of torch."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import exfm
import exfm.testing


def stub_of(module: ModuleType) -> dict[str, str]:
    """Returns name and module of every import in the stub of a package."""
    assert module.__file__ is not None
    modules = {}
    for statement in ast.parse(Path(module.__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.ImportFrom):
            assert statement.module
            for alias in statement.names:
                assert alias.asname == alias.name, "only `x as x` is a public name to a type checker"
                modules[alias.name] = statement.module
    return modules


NAMES = stub_of(exfm)
NAMESPACES = {name: import_module(f"exfm.{name}") for name, module in sorted(NAMES.items()) if module == "exfm"}
PUBLIC = [("exfm", name) for name in sorted(NAMES.keys() - NAMESPACES.keys())]
PUBLIC += [(f"exfm.{space}", name) for space, module in NAMESPACES.items() for name in module.__all__]


@pytest.mark.parametrize("package", [exfm, exfm.testing])
def test_type_checkers_and_python_see_the_same_names(package: Any) -> None:
    names = stub_of(package)
    assert package.__all__ == sorted(names) and names.keys() <= set(dir(package))
    for name, module in names.items():
        defined = import_module(f"{module}.{name}") if module == package.__name__ else import_module(module)
        value = getattr(package, name)
        assert value is defined or value is getattr(defined, name)


def test_a_public_name_is_in_a_single_namespace():
    names = [name for _, name in PUBLIC]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("space", "name"), PUBLIC)
def test_a_public_name_resolves_and_is_documented(space, name):
    value = getattr(import_module(space), name)
    if not inspect.isclass(value) and not inspect.isfunction(value):  # an alias or a constant
        return
    assert value.__module__.startswith("exfm.") or name == "hookimpl"
    assert len(inspect.getdoc(value) or "") > 20
    if inspect.isclass(value):
        assert value.__doc__, "a docstring of its own, not its base's"
        for method, function in vars(value).items():
            if inspect.isfunction(function) and not method.startswith("_"):
                assert inspect.getdoc(function), f"{name}.{method}"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'exfm' has no attribute 'Backbon'"):
        _ = exfm.Backbon  # type: ignore[attr-defined]  # the subject of the test


@pytest.mark.parametrize(
    "code",
    [
        "import exfm; exfm.hookimpl, exfm.LazyComponent, exfm.ConfigError",
        "from exfm.registry.discovery import discover; assert len(discover().plugins) > 4",
    ],
)
def test_torch_is_not_imported_where_it_is_not_needed(code):
    heavy = "{'torch', 'torchrec', 'fbgemm_gpu', 'pyarrow', 'numpy', 'pandas', 'matplotlib'}"
    check = f"import sys; {code}; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
