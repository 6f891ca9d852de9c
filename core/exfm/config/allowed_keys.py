"""Which keys are allowed at a place of the file, read off the annotations of the classes that check it."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from exfm.config.component_field import ComponentField
from exfm.config.trails import Location, inside
from exfm.errors import PluginError
from exfm.registry.registry import Registry


@dataclass(frozen=True)
class _Shape:
    """One thing a value may be: a class or another type without alternatives; ``named`` for a component's Config."""

    kind: Any
    named: bool = False

    @property
    def keys(self) -> dict[str, Any]:
        """The annotation behind every key."""
        if not (isinstance(self.kind, type) and issubclass(self.kind, BaseModel)):
            return {}
        fields = {
            field.alias or key: typing.Annotated[field.annotation, *field.metadata]
            if field.metadata
            else field.annotation
            for key, field in self.kind.model_fields.items()
        }
        return {"name": str, **fields} if self.named else fields

    def inside(self, part: int | str) -> list[Any]:
        """The annotation of one of the value's parts, or nothing."""
        if typing.get_origin(self.kind) is dict:
            return [typing.get_args(self.kind)[1]]
        if typing.get_origin(self.kind) in (tuple, list):
            return [typing.get_args(self.kind)[0]]
        return [self.keys[str(part)]] if str(part) in self.keys else []

    def fits(self, node: Any) -> int:
        """How well a mapping fits: its keys that are known, less what contradicts a Literal."""
        known = self.keys.keys() & node.keys() if isinstance(node, dict) else ()
        return sum(-len(self.keys) if _contradicts(self.keys[key], node[key]) else 1 for key in known)


def fields_at(
    model: type[BaseModel], location: Location, raw: Any, registry: Registry, only: str | None = None
) -> list[str]:
    """The keys allowed at a place of ``raw``, which ``model`` checks; ``only`` picks a class by its name."""
    annotations: list[Any] = [model]
    node = raw
    for part in location:
        shapes = [shape for annotation in annotations for shape in _shapes(annotation, node, registry)]
        annotations = [inner for shape in shapes for inner in shape.inside(part)]
        node = inside(node, part)
    shapes = [shape for annotation in annotations for shape in _shapes(annotation, node, registry) if shape.keys]
    shapes = [shape for shape in shapes if only in (None, shape.kind.__name__)]
    return list(max(shapes, key=lambda shape: shape.fits(node)).keys) if shapes else []


def _shapes(annotation: Any, node: Any, registry: Registry) -> Iterator[_Shape]:
    """The alternatives of an annotation; a component field has one, chosen by the name the node gives."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        mark = next((mark for mark in arguments[1:] if isinstance(mark, ComponentField)), None)
        if mark is None:
            yield from _shapes(arguments[0], node, registry)
        elif isinstance(node, dict):
            try:
                yield _Shape(registry.resolve(mark.kind, str(node.get("name"))).Config, named=True)
            except PluginError:
                return
    elif origin in (typing.Union, types.UnionType):
        for argument in arguments:
            yield from _shapes(argument, node, registry)
    else:
        yield _Shape(annotation)


def _contradicts(annotation: Any, value: Any) -> bool:
    return typing.get_origin(annotation) is typing.Literal and value not in typing.get_args(annotation)
