"""Hashes the code of an experiment's components, so that a resumed run can report that the code has changed."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType
from typing import Any

from pydantic import BaseModel

from exfm.config.component_field import ComponentSpec
from exfm.config.loading import Experiment
from exfm.interfaces.component import Component

# 64 bits: the hash detects changes, and is no defence against an attacker.
_DIGITS = 16


def component_hashes(experiment: Experiment) -> dict[str, str]:
    """Returns the hash of each component's code, by ``kind.name``: the files of its package, or its module.

    For a class without a file, as a notebook defines it, the class's functions are hashed.
    """
    specs: dict[str, type[Any]] = {}
    for spec in _specs(experiment.config):
        if spec.kind not in ("launcher", "tracker"):  # on which no result depends
            specs[f"{spec.kind}.{spec.name}"] = spec.component
    return {name: _hash(specs[name]) for name in sorted(specs)}


def changed_components(experiment: Experiment, kept: Mapping[str, Any]) -> list[str]:
    """Lists the components whose code has changed since the beginning of the run, ``kind.name`` each.

    Args:
        kept: the content of the run's config.yaml.
    """
    # An older exfm did not write hashes: a component without a hash is not reported.
    before = kept.get("components") or {}
    return [name for name, now in component_hashes(experiment).items() if before.get(name, now) != now]


def _specs(node: Any) -> Iterator[ComponentSpec]:
    """Yields every component of a config, and components inside other components."""
    if isinstance(node, ComponentSpec):
        yield node
        yield from _specs(node.config)
    elif isinstance(node, BaseModel):
        for name in type(node).model_fields:
            yield from _specs(getattr(node, name))
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _specs(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _specs(value)


def _hash(component: type[Any]) -> str:
    """Hashes the code of a component and of its base classes outside the core."""
    digest = hashlib.sha256()
    for cls in component.__mro__:
        # Base classes of the core are left out, because a run records the version of exfm.
        if issubclass(cls, Component) and not cls.__module__.startswith("exfm."):
            for name, content in _code(cls):
                # Null bytes separate names from contents: no two lists of files give the same bytes.
                digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:_DIGITS]


def _code(cls: type[Any]) -> Iterator[tuple[str, bytes]]:
    """Yields names and contents of the files of a class's package or module, or of its functions without a file."""
    module = sys.modules.get(cls.__module__)
    package = sys.modules.get(getattr(module, "__package__", None) or "")
    files: list[Path] = []
    for folder in getattr(package, "__path__", ()):
        files += Path(folder).rglob("*.py")
    module_file = getattr(module, "__file__", None)
    if not files and module_file is not None and Path(module_file).is_file():
        files = [Path(module_file)]
    # Sorted, because the order of a folder's files depends on the file system.
    for file in sorted(files):
        yield file.name, file.read_bytes()
    if not files:
        for name, value in sorted(vars(cls).items()):
            # Class methods and properties wrap their function.
            function = getattr(value, "__func__", getattr(value, "fget", value))
            if inspect.isfunction(function):
                yield name, _source_or_bytecode(function)


def _source_or_bytecode(function: Any) -> bytes:
    try:
        return inspect.getsource(function).encode()
    except OSError:
        # Code that was passed to exec has no source.
        return _instructions(function.__code__).encode()


def _instructions(code: CodeType) -> str:
    """Writes bytecode with names and constants; nested functions are constants."""
    constants: list[str] = []
    for constant in code.co_consts:
        # The repr of a code object contains its address, which differs between processes.
        if isinstance(constant, CodeType):
            constants.append(_instructions(constant))
        else:
            constants.append(repr(constant))
    return repr((code.co_code, code.co_names, constants))
