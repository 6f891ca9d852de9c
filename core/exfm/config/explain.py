"""Turns pydantic's errors into one paragraph with file, key path, what was given, what is allowed and the nearest name."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from exfm.config.component_field import ComponentField
from exfm.errors import ConfigError, suggestion
from exfm.registry.registry import Registry

Location = Sequence[int | str]


def explain(
    error: ValidationError, model: type[BaseModel], raw: Any, file: str, overrides: Sequence[str], registry: Registry
) -> ConfigError:
    """The first of an experiment's errors, and how many more there are."""
    details = error.errors(include_url=False)
    first = details[0]
    location = _yaml_location(first["loc"], raw)
    path = ".".join(str(part) for part in location)
    from_override = any(path == key or path.startswith(f"{key}.") or key.startswith(f"{path}.") for key in overrides)
    place = f"{file} (set on the command line)" if from_override else file
    text = _sentence(first, location, model, raw, registry)
    places = {".".join(map(str, _yaml_location(detail["loc"], raw))) for detail in details} - {path}
    rest = f" ({len(places)} more errors in this file.)" if len(places) > 1 else ""
    return ConfigError(f"{place}: {path or 'experiment'}: {text}{rest}")


def _sentence(detail: Any, location: Location, model: type[BaseModel], raw: Any, registry: Registry) -> str:
    kind, given = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        allowed = _fields_at(model, location[:-1], raw, registry)
        return f"unknown key {str(location[-1])!r}.{suggestion(str(location[-1]), allowed)}"
    if kind == "missing":
        return f"the required key {str(location[-1])!r} is missing."
    text = detail["msg"].removeprefix("Value error, ").rstrip(".")
    if kind == "literal_error" and isinstance(given, str):
        allowed = [part.strip("' ") for part in detail["ctx"]["expected"].replace(" or ", ",").split(",")]
        return f"{given!r} is not allowed.{suggestion(given, allowed)}"
    shown = "" if kind == "component_name" or isinstance(given, BaseModel) else f"; given: {_short(given)}"
    return f"{text}{shown}."


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _yaml_location(location: Location, raw: Any) -> Location:
    """The part of pydantic's location that exists in the file: unions and validators add steps of their own."""
    kept: list[int | str] = []
    node = raw
    for index, part in enumerate(location):
        if isinstance(node, dict) and part not in node and index < len(location) - 1:
            continue
        if not isinstance(node, dict | list):
            break
        kept.append(part)
        if isinstance(node, dict):
            node = node.get(part)
        elif isinstance(part, int) and part < len(node):
            node = node[part]
    return kept


def _fields_at(model: type[BaseModel], location: Location, raw: Any, registry: Registry) -> list[str]:
    """The keys allowed at a place in the file."""
    annotation: Any = model
    node = raw
    for part in location:
        annotation = _step(_resolve(annotation, node, registry), part)
        node = node[part] if isinstance(node, list | dict) else None
    resolved = _resolve(annotation, node, registry)
    if isinstance(resolved, type) and issubclass(resolved, BaseModel):
        named = ["name"] if resolved is not annotation else []
        return named + list(resolved.model_fields)
    return []


def _resolve(annotation: Any, node: Any, registry: Registry) -> Any:
    """The class that checks a node: a component field is resolved by the name the node gives."""
    for member in [annotation, *typing.get_args(annotation)]:
        for mark in typing.get_args(member)[1:] if typing.get_origin(member) is typing.Annotated else ():
            if isinstance(mark, ComponentField) and isinstance(node, dict):
                return registry.resolve(mark.kind, node.get("name", "")).Config
    candidates = [item for item in _flatten(annotation) if isinstance(item, type) and issubclass(item, BaseModel)]
    if isinstance(node, dict) and len(candidates) > 1:
        candidates.sort(key=lambda item: -len(node.keys() & item.model_fields.keys()))
    return candidates[0] if candidates and typing.get_origin(annotation) not in (dict, tuple, list) else annotation


def _flatten(annotation: Any) -> list[Any]:
    arguments = typing.get_args(annotation)
    return [annotation] if not arguments else [leaf for argument in arguments for leaf in _flatten(argument)]


def _step(annotation: Any, part: int | str) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields[str(part)]
        return typing.Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    if typing.get_origin(annotation) is typing.Annotated:
        return _step(typing.get_args(annotation)[0], part)
    arguments = typing.get_args(annotation)
    return arguments[1] if typing.get_origin(annotation) is dict else arguments[0]
