"""Tests the promises of `import exfm`: names, documentation, and no import of torch."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import typing
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


def test_type_checkers_and_python_see_the_same_names():
    assert imported_for_type_checkers() == exfm._HOME
    assert set(exfm.__all__) == set(exfm._HOME) <= set(dir(exfm))


@pytest.mark.parametrize("name", exfm.__all__)
def test_a_public_name_resolves_and_is_documented(name):
    value = getattr(exfm, name)
    if typing.get_origin(value) is typing.Annotated:  # an alias, documented by the string below it
        source = inspect.getsource(sys.modules[exfm._HOME[name]])
        assert f"\n{name} = Annotated[" in source
        return
    assert value.__module__ == exfm._HOME[name] or name == "hookimpl"
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
        "from exfm.registry.discovery import discover; assert len(discover().plugins) > 9",
    ],
)
def test_torch_is_not_imported_where_it_is_not_needed(code):
    heavy = "{'torch', 'torchrec', 'fbgemm_gpu', 'pyarrow', 'numpy', 'pandas', 'matplotlib'}"
    check = f"import sys; {code}; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
