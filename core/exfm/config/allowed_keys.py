"""Finds the keys that are allowed at a location of the file, from the annotations of the classes that check it."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from exfm.config.component_field import ComponentField
from exfm.config.error_paths import Location, inside
from exfm.errors import PluginError
from exfm.registry.registry import Registry


@dataclass(frozen=True)
class _Alternative:
    """A type without alternatives that a value may have; ``named`` for a component's Config."""

    kind: Any
    named: bool = False

    @property
    def keys(self) -> dict[str, Any]:
        """Returns the annotation behind every key."""
        if not (isinstance(self.kind, type) and issubclass(self.kind, BaseModel)):
            return {}
        annotations: dict[str, Any] = {"name": str} if self.named else {}
        for name, field in self.kind.model_fields.items():
            key = field.alias or name
            # Pydantic takes an annotation apart; its metadata may hold the mark of a component field.
            if field.metadata:
                annotations[key] = typing.Annotated[field.annotation, *field.metadata]
            else:
                annotations[key] = field.annotation
        return annotations

    def inside(self, key: int | str) -> list[Any]:
        """Returns the annotation of the value under a key, in a list that is empty where the key is not allowed."""
        origin = typing.get_origin(self.kind)
        if origin is dict:
            return [typing.get_args(self.kind)[1]]
        if origin in (tuple, list):
            return [typing.get_args(self.kind)[0]]
        keys = self.keys
        return [keys[str(key)]] if str(key) in keys else []

    def fit(self, node: Any) -> int:
        """Scores a mapping: a point per allowed key, and a large penalty per value that contradicts a Literal."""
        if not isinstance(node, dict):
            return 0
        keys, score = self.keys, 0
        for key in keys.keys() & node.keys():
            # The penalty outweighs all keys: a `kind` of another alternative excludes this alternative.
            if _contradicts(keys[key], node[key]):
                score -= len(keys)
            else:
                score += 1
        return score


def fields_at(
    model: type[BaseModel], location: Location, raw: Any, registry: Registry, only: str | None = None
) -> list[str]:
    """Lists the keys allowed at a location of ``raw``, which ``model`` checks; ``only`` selects a class by name."""
    alternatives = list(_alternatives(model, raw, registry))
    node = raw
    for key in location:
        node = inside(node, key)
        below: list[_Alternative] = []
        for alternative in alternatives:
            for annotation in alternative.inside(key):
                below += _alternatives(annotation, node, registry)
        alternatives = below
    classes: list[_Alternative] = []
    for alternative in alternatives:
        if alternative.keys and only in (None, alternative.kind.__name__):
            classes.append(alternative)
    if not classes:
        return []
    return list(max(classes, key=lambda alternative: alternative.fit(node)).keys)


def _alternatives(annotation: Any, node: Any, registry: Registry) -> Iterator[_Alternative]:
    """Yields the alternatives of an annotation; a component field has the class that the name in the node selects."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        mark = next((mark for mark in arguments[1:] if isinstance(mark, ComponentField)), None)
        if mark is None:
            yield from _alternatives(arguments[0], node, registry)
        elif isinstance(node, dict):
            try:
                yield _Alternative(registry.resolve(mark.kind, str(node.get("name"))).Config, named=True)
            except PluginError:
                # The name is wrong as well, and pydantic reports it.
                return
    elif origin in (typing.Union, types.UnionType):
        for argument in arguments:
            yield from _alternatives(argument, node, registry)
    else:
        yield _Alternative(annotation)


def _contradicts(annotation: Any, value: Any) -> bool:
    return typing.get_origin(annotation) is typing.Literal and value not in typing.get_args(annotation)
