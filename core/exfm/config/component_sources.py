"""Hashes of the code behind an experiment's components: a run that is resumed can tell that it has changed."""

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

_DIGITS = 16


def component_hashes(experiment: Experiment) -> dict[str, str]:
    """The hash of each component's code, by ``kind.name``: of the files of its package, or of its module alone.

    Of a class that a notebook defines it is the hash of the class's functions.
    """
    specs = {f"{spec.kind}.{spec.name}": spec.component for spec in _specs(experiment.config)}
    return {name: _hash(specs[name]) for name in sorted(specs)}


def changed_components(experiment: Experiment, kept: Mapping[str, Any]) -> list[str]:
    """The components whose code is not what the run was begun with, ``kind.name`` each.

    Args:
        kept: the content of the run's config.yaml.
    """
    before = kept.get("components") or {}
    return [name for name, now in component_hashes(experiment).items() if before.get(name, now) != now]


def _specs(node: Any) -> Iterator[ComponentSpec]:
    """Every component of a config, those inside of other components too."""
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
    digest = hashlib.sha256()
    for cls in component.__mro__:
        # Of what the core defines the version of exfm tells.
        if issubclass(cls, Component) and not cls.__module__.startswith("exfm."):
            for name, content in _code(cls):
                digest.update(name.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:_DIGITS]


def _code(cls: type[Any]) -> Iterator[tuple[str, bytes]]:
    """The pieces of a class's code, named: the files of its package or module, or its functions if there is none."""
    module = sys.modules.get(cls.__module__)
    package = sys.modules.get(getattr(module, "__package__", None) or "")
    folders = [Path(folder) for folder in getattr(package, "__path__", ())]
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    alone = getattr(module, "__file__", None)
    if not files and alone is not None and Path(alone).is_file():
        files = [Path(alone)]
    for file in files:
        yield file.name, file.read_bytes()
    if not files:
        for name, value in sorted(vars(cls).items()):
            function = getattr(value, "__func__", getattr(value, "fget", value))
            if inspect.isfunction(function):
                yield name, _text(function)


def _text(function: Any) -> bytes:
    try:
        return inspect.getsource(function).encode()
    except OSError:
        return _instructions(function.__code__).encode()


def _instructions(code: CodeType) -> str:
    constants = [_instructions(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return repr((code.co_code, code.co_names, constants))
