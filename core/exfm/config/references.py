"""Keeps references to environment variables: a run uses the values, and writes the references into its files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from exfm.mappings import with_text_keys
from exfm.redaction import remember

_ENVIRONMENT = re.compile(r"oc\.env:\s*([^\s,{}]+)")
# Letters and digits only, so that a mark survives OmegaConf in keys and inside other references.
_MARK = "exfmreference{}mark"
_MARKED = re.compile(_MARK.format(r"(\d+)"))


class ReferenceText(str):
    """Text that contains a reference to an environment variable."""

    __slots__ = ()


def keep_references(config: DictConfig) -> dict[str, Any]:
    """Resolves the content of a file, except for references to environment variables.

    A value that depends on a variable is a ``ReferenceText``: its text in the file, with the values of other keys
    inserted. The variables' values are remembered, because messages must show the references too.
    """
    kept: list[str] = []
    unresolved = OmegaConf.to_container(config, resolve=False)
    # Marks stand for the references while OmegaConf resolves the other keys.
    with_marks = _map_texts(unresolved, lambda text: _mark(text, kept))
    marked = config
    if kept:
        # Only where needed: creating OmegaConf's tree dominates the time to load a large file.
        marked = OmegaConf.create(with_marks)
    try:
        resolved = OmegaConf.to_container(marked, resolve=True)
    except OmegaConfBaseException:
        # The value of a variable selects a key, as in ${${oc.env:A}}: all references stay, those to keys included.
        resolved = _map_texts(unresolved, lambda text: ReferenceText(text) if "${" in text else text)
    assert isinstance(resolved, dict)
    for reference in kept:
        for name in _ENVIRONMENT.findall(reference):
            if name in os.environ:
                remember(os.environ[name], f"${{oc.env:{name}}}")
    unmarked = _map_texts(resolved, lambda text: _unmark(text, kept))
    return with_text_keys(unmarked)


def write_back(value: Any, unresolved: Any) -> Any:
    """Writes a config's value for a file: with the file's references, and other text escaped so that it is none.

    Args:
        value: the value with all defaults filled in, of JSON's types.
        unresolved: the file's value at the same key path, from ``keep_references``.
    """
    if not _contains_reference(unresolved):
        return _map_texts(value, lambda text: text.replace("${", "\\${"))
    if isinstance(value, Mapping) and isinstance(unresolved, Mapping):
        # JSON's keys are text; a YAML file may have numbers.
        by_key = with_text_keys(unresolved)
        if by_key.keys() <= value.keys():
            return {key: write_back(child, by_key.get(key)) for key, child in value.items()}
    if isinstance(value, list) and isinstance(unresolved, list) and len(value) == len(unresolved):
        return list(map(write_back, value, unresolved))
    # The shapes differ, because validation converted the value: the file's text stays.
    return _map_texts(unresolved, str)


def _contains_reference(node: Any) -> bool:
    if isinstance(node, Mapping):
        return any(map(_contains_reference, node.values()))
    if isinstance(node, list):
        return any(map(_contains_reference, node))
    return isinstance(node, ReferenceText)


def _map_texts(node: Any, change: Any) -> Any:
    """Copies a tree, and applies ``change`` to every text in it."""
    if isinstance(node, Mapping):
        return {key: _map_texts(value, change) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_map_texts(value, change) for value in node]
    if isinstance(node, str):
        return change(node)
    return node


def _mark(text: str, kept: list[str]) -> str:
    """Replaces each outermost reference that contains an environment variable by a mark, and keeps the reference."""
    pieces: list[str] = []
    position = 0
    for start, end in _outermost(text):
        reference = text[start:end]
        pieces.append(text[position:start])
        if _ENVIRONMENT.search(reference):
            pieces.append(_MARK.format(len(kept)))
            kept.append(reference)
        else:
            pieces.append(reference)
        position = end
    return "".join([*pieces, text[position:]])


def _outermost(text: str) -> list[tuple[int, int]]:
    """Returns start and end of each reference that is inside no other reference."""
    spans: list[tuple[int, int]] = []
    depth = start = 0
    # A backslash escapes the character after it, and braces of a default are counted to find the closing brace.
    for match in re.finditer(r"\\.|\$\{|\{|\}", text):
        token = match[0]
        if token == "${" and not depth:
            start = match.start()
        if token == "${" or (token == "{" and depth):
            depth += 1
        elif token == "}" and depth:
            depth -= 1
            if not depth:
                spans.append((start, match.end()))
    return spans


def _unmark(text: str, kept: list[str]) -> str:
    """Replaces marks by the references that they stand for."""
    if isinstance(text, ReferenceText) or not _MARKED.search(text):
        return text
    return ReferenceText(_MARKED.sub(lambda match: kept[int(match[1])], text))
