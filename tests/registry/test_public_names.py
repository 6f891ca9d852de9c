"""Tests the promises of `import exfm`: names, documentation, and no import of torch."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import exfm

TREE = ast.parse(Path(exfm.__file__).read_text(encoding="utf-8"))


def imported_for_type_checkers() -> dict[str, str]:
    """Returns name and module of every import under ``if TYPE_CHECKING``."""
    blocks = [node for node in TREE.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    modules = {}
    for statement in (statement for block in blocks for statement in block.body):
        assert isinstance(statement, ast.ImportFrom) and statement.module
        for alias in statement.names:
            assert alias.asname == alias.name, "only `x as x` is a public name to a type checker"
            modules[alias.name] = statement.module
    return modules


NAMESPACES = {name: import_module(f"exfm.{name}") for name in sorted(exfm._NAMESPACES)}
PUBLIC = [("exfm", name) for name in sorted(exfm._HOME)]
PUBLIC += [(f"exfm.{space}", name) for space, module in NAMESPACES.items() for name in module.__all__]


def test_type_checkers_and_python_see_the_same_names():
    namespaces = dict.fromkeys(exfm._NAMESPACES, "exfm")
    assert imported_for_type_checkers() == exfm._HOME | namespaces
    assert set(exfm.__all__) == set(exfm._HOME) | exfm._NAMESPACES <= set(dir(exfm))


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
        _ = exfm.Backbon


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
