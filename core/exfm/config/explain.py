"""Turns pydantic's errors into one paragraph: file, key path, what was given, what is allowed, the nearest name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import reduce
from typing import Any

from pydantic import BaseModel, ValidationError

from exfm.config.shapes import fields_at
from exfm.config.trails import Location, Trail, inside, same_problem
from exfm.errors import ConfigError, suggestion
from exfm.redaction import concealed
from exfm.registry.registry import Registry

_WANTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "date_from_datetime_parsing": "a date such as 2026-01-31",
    "date_parsing": "a date such as 2026-01-31",
    "date_type": "a date such as 2026-01-31",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of at most 4300 digits",
    "int_type": "a whole number",
    "list_type": "a list",
    "string_type": "text",
    "tuple_type": "a list",
}
"""What a value must be, by pydantic's type of error. Where there is no entry, pydantic's own words are used."""


def explain(
    error: ValidationError,
    model: type[BaseModel],
    raw: Any,
    given: Any,
    file: str,
    overrides: Sequence[str],
    registry: Registry,
) -> ConfigError:
    """The first of an experiment's errors, and how many more there are.

    Args:
        model: the class that checked ``raw``, the content of ``file`` with ``overrides`` (their key paths) applied.
        given: the same with references to environment variables as text, which messages show.
    """
    trails = _first([Trail.of(detail, raw) for detail in error.errors(include_url=False)])
    chosen = same_problem(trails)
    path = dotted(chosen[0].location) + (".name" if chosen[0].detail["type"] == "component_name" else "")
    text = _sentence(chosen, model, raw, concealed(given), registry)
    first = trails[0].anchor
    rest = len({trail.anchor for trail in trails if trail.anchor != first[: len(trail.anchor)]})
    more = f" ({rest} more {'error' if rest == 1 else 'errors'} in this file.)" if rest else ""
    return ConfigError(f"{_place(file, path, overrides)}: {path or 'experiment'}: {text.rstrip('.')}.{more}")


def _place(file: str, path: str, overrides: Sequence[str]) -> str:
    """The file, and whether the key path was set by one of the overrides instead."""
    keys = [re.sub(r"\[(\w+)\]", r".\1", key).lstrip(".") for key in overrides]
    from_override = any(path == key or path.startswith(f"{key}.") or key.startswith(f"{path}.") for key in keys)
    return f"{file} (set on the command line)" if from_override else file


def dotted(location: Location) -> str:
    """A location as an override writes it."""
    return ".".join(str(part) for part in location)


def _first(trails: list[Trail]) -> list[Trail]:
    """The trails with the one to report in front: an unknown key explains a missing one beside it."""
    first = trails[0]
    if first.detail["type"] == "missing":
        for trail in trails:
            if trail.detail["type"] == "extra_forbidden" and trail.location[:-1] == first.location[:-1]:
                return [trail, *(other for other in trails if other is not trail)]
    return trails


def _sentence(trails: Sequence[Trail], model: type[BaseModel], raw: Any, shown: Any, registry: Registry) -> str:
    first, location = trails[0], trails[0].location
    kind, given = first.detail["type"], _given(first, shown)
    key = str(location[-1]) if location else ""
    if kind == "extra_forbidden":
        return f"unknown key {key!r}.{suggestion(key, fields_at(model, location[:-1], raw, registry))}"
    if kind == "missing":
        return f"the required key {key!r} is missing"
    if kind == "invalid_key" or first.names_key:
        return f"a key here must be {_wanted(first, model, raw, registry)}; given: {_short(key)}"
    if kind == "literal_error" and isinstance(given, str):
        return _not_one_of(given, first.detail["ctx"]["expected"])
    if kind == "union_tag_not_found":
        return f"the required key {first.detail['ctx']['discriminator']} is missing"
    if kind == "union_tag_invalid":
        return _not_one_of(first.detail["ctx"]["tag"], first.detail["ctx"]["expected_tags"])
    if kind in ("component_name", "value_error", "assertion_error", "component"):
        text = re.sub(r"^(Value error|Assertion failed), ", "", first.detail["msg"])
        told = kind == "component_name" or isinstance(given, dict | BaseModel) or _short(given) in text
        return text if told else f"{text.rstrip('.')}; given: {_short(given)}"
    wanted = list(dict.fromkeys(_wanted(trail, model, raw, registry) for trail in trails))
    listed = " or ".join(filter(None, [", ".join(wanted[:-1]), wanted[-1]]))
    return f"must be {listed}; given: {_short(given)}"


def _not_one_of(given: str, expected: str) -> str:
    """A word that is none of those pydantic lists in quotes."""
    allowed = re.findall(r"'([^']*)'", expected)
    return f"{given!r} is not allowed.{suggestion(given, allowed)}"


def _wanted(trail: Trail, model: type[BaseModel], raw: Any, registry: Registry) -> str:
    """What the value must be, to follow "must be"."""
    kind, context = trail.detail["type"], trail.detail.get("ctx", {})
    if kind in ("model_type", "model_attributes_type"):
        keys = fields_at(model, trail.location, raw, registry, only=context.get("class_name"))
        return f"a mapping {{{', '.join(keys)}}}" if keys else "a mapping"
    if kind == "string_pattern_mismatch" and context["pattern"].endswith("[A-Za-z0-9_-]*$"):
        return "a name of letters, digits, _ and - that begins with a letter"
    if kind == "invalid_key":
        return "text"
    return _WANTED.get(kind) or re.sub(r"^(Input|\w+) should (be )?", "", trail.detail["msg"])


def _given(trail: Trail, shown: Any) -> Any:
    """The value as the file has it; pydantic's may have been converted already."""
    return reduce(inside, trail.location, shown)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
