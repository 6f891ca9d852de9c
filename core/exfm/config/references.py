"""References to environment variables: their values are used, and the references are what a run writes down."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from exfm.redaction import remember

_ENVIRONMENT = re.compile(r"oc\.env:\s*([^\s,{}]+)")
_MARK = "exfmreference{}mark"
_MARKED = re.compile(_MARK.format(r"(\d+)"))


class Reference(str):
    """Text with a reference to an environment variable in it."""

    __slots__ = ()


def with_references(config: DictConfig) -> dict[str, Any]:
    """The content of a file as it is once it is resolved, but for references to environment variables.

    A value that depends on one is a ``Reference``: its text as the file has it, with other keys' values put in. The
    variables' values are remembered, so that messages have the references in their place too.
    """
    kept: list[str] = []
    unresolved = OmegaConf.to_container(config, resolve=False)
    with_marks = _each_text(unresolved, lambda text: _mark(text, kept))
    # Making a tree of OmegaConf's is what takes long of loading a large file.
    marked = OmegaConf.create(with_marks) if kept else config
    try:
        resolved = OmegaConf.to_container(marked, resolve=True)
    except OmegaConfBaseException:  # a variable's value chooses a key: all references stay, to other keys too
        resolved = _each_text(unresolved, lambda text: Reference(text) if "${" in text else text)
    assert isinstance(resolved, dict)
    for reference in kept:
        for name in _ENVIRONMENT.findall(reference):
            if name in os.environ:
                remember(os.environ[name], f"${{oc.env:{name}}}")
    return {str(key): _each_text(value, lambda text: _unmark(text, kept)) for key, value in resolved.items()}


def written(value: Any, given: Any) -> Any:
    """A config's value as a file has it: references as they were given, and other text so that it is not one.

    Args:
        value: the value with all defaults filled in, of JSON's types.
        given: what the file has there, from ``with_references``.
    """
    if not _refers(given):
        return _each_text(value, lambda text: text.replace("${", "\\${"))
    if isinstance(value, Mapping) and isinstance(given, Mapping):
        named = {str(key): one for key, one in given.items()}
        if named.keys() <= value.keys():
            return {key: written(one, named.get(key)) for key, one in value.items()}
    if isinstance(value, list) and isinstance(given, list) and len(value) == len(given):
        return [written(one, its) for one, its in zip(value, given, strict=True)]
    return _each_text(given, str)


def _refers(node: Any) -> bool:
    if isinstance(node, Mapping):
        return any(map(_refers, node.values()))
    return any(map(_refers, node)) if isinstance(node, list) else isinstance(node, Reference)


def _each_text(node: Any, change: Any) -> Any:
    """The tree with every text changed."""
    if isinstance(node, Mapping):
        return {key: _each_text(value, change) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_each_text(value, change) for value in node]
    return change(node) if isinstance(node, str) else node


def _mark(text: str, kept: list[str]) -> str:
    """The text with a mark for each outermost reference that an environment variable takes part in."""
    pieces: list[str] = []
    place = 0
    for start, end in _outermost(text):
        reference = text[start:end]
        pieces.append(text[place:start])
        if _ENVIRONMENT.search(reference):
            pieces.append(_MARK.format(len(kept)))
            kept.append(reference)
        else:
            pieces.append(reference)
        place = end
    return "".join([*pieces, text[place:]])


def _outermost(text: str) -> list[tuple[int, int]]:
    """Where the references begin and end that are in no other one; after a backslash there is none."""
    found: list[tuple[int, int]] = []
    depth = start = 0
    for match in re.finditer(r"\\.|\$\{|\{|\}", text):
        token = match[0]
        if token == "${" and not depth:
            start = match.start()
        if token == "${" or (token == "{" and depth):
            depth += 1
        elif token == "}" and depth:
            depth -= 1
            if not depth:
                found.append((start, match.end()))
    return found


def _unmark(text: str, kept: list[str]) -> str:
    if isinstance(text, Reference) or not _MARKED.search(text):
        return text
    return Reference(_MARKED.sub(lambda match: kept[int(match[1])], text))
