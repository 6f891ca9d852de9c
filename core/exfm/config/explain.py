"""Turns pydantic's errors into a paragraph: file, key path, value, allowed values, nearest name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import reduce
from typing import Any

from pydantic import BaseModel, ValidationError

from exfm.config.allowed_keys import fields_at
from exfm.config.error_paths import ErrorPath, Location, inside, same_problem
from exfm.errors import ConfigError, suggestion
from exfm.redaction import concealed
from exfm.registry.registry import Registry

_EXPECTED = {
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
"""The expected value in words, by pydantic's type of error. Without an entry, pydantic's message is used."""


def explain(
    error: ValidationError,
    model: type[BaseModel],
    raw: Any,
    shown: Any,
    file: str,
    overrides: Sequence[str],
    registry: Registry,
) -> ConfigError:
    """Explains the first of an experiment's errors, and counts the others.

    Args:
        model: the class that checked ``raw``, the content of ``file`` with ``overrides`` (their key paths) applied.
        shown: the same content with references to environment variables as text, because messages show values.
    """
    paths = [ErrorPath.from_detail(detail, raw) for detail in error.errors(include_url=False)]
    paths = _reported_first(paths)
    chosen = same_problem(paths)
    key_path = dotted(chosen[0].location)
    if chosen[0].detail["type"] == "component_name":
        key_path += ".name"
    text = _sentence(chosen, model, raw, concealed(shown), registry).rstrip(".")
    # Errors of alternatives of the same union are a single error to the user.
    first = paths[0].anchor
    others = len({path.anchor for path in paths if path.anchor != first[: len(path.anchor)]})
    more = ""
    if others:
        more = f" ({others} more {'error' if others == 1 else 'errors'} in this file.)"
    return ConfigError(f"{_origin(file, key_path, overrides)}: {key_path or 'experiment'}: {text}.{more}")


def _origin(file: str, key_path: str, overrides: Sequence[str]) -> str:
    """Names the file, and says so where an override set the key path."""
    for override in overrides:
        # An override may write a[0] for a.0.
        key = re.sub(r"\[(\w+)\]", r".\1", override).lstrip(".")
        if key_path == key or key_path.startswith(f"{key}.") or key.startswith(f"{key_path}."):
            return f"{file} (set on the command line)"
    return file


def dotted(location: Location) -> str:
    """Writes a location as an override does."""
    return ".".join(map(str, location))


def _reported_first(paths: list[ErrorPath]) -> list[ErrorPath]:
    """Moves the error to report to the front: an unknown key explains a missing key beside it, as a misspelling."""
    first = paths[0]
    if first.detail["type"] == "missing":
        for path in paths:
            if path.detail["type"] == "extra_forbidden" and path.location[:-1] == first.location[:-1]:
                # A stable sort: the others keep their order.
                return sorted(paths, key=lambda other: other is not path)
    return paths


def _sentence(paths: Sequence[ErrorPath], model: type[BaseModel], raw: Any, shown: Any, registry: Registry) -> str:
    """Says the problem in a sentence: the key or value of the file, and the allowed keys or values."""
    first, location = paths[0], paths[0].location
    # The value as the file has it, because pydantic may have converted its value already.
    kind, value = first.detail["type"], reduce(inside, location, shown)
    key = str(location[-1]) if location else ""
    if kind == "extra_forbidden":
        return f"unknown key {key!r}.{suggestion(key, fields_at(model, location[:-1], raw, registry))}"
    if kind == "missing":
        return f"the required key {key!r} is missing"
    if kind == "invalid_key" or first.names_key:
        return f"a key here must be {_expected(first, model, raw, registry)}; given: {_short(key)}"
    if kind == "literal_error" and isinstance(value, str):
        return _not_allowed(value, first.detail["ctx"]["expected"])
    if kind == "union_tag_not_found":
        return f"the required key {first.detail['ctx']['discriminator']} is missing"
    if kind == "union_tag_invalid":
        return _not_allowed(first.detail["ctx"]["tag"], first.detail["ctx"]["expected_tags"])
    if kind in ("component_name", "value_error", "assertion_error", "component"):
        text = re.sub(r"^(Value error|Assertion failed), ", "", first.detail["msg"])
        # The value is added unless the message has it, or it is a whole mapping.
        if kind == "component_name" or isinstance(value, dict | BaseModel) or _short(value) in text:
            return text
        return f"{text.rstrip('.')}; given: {_short(value)}"
    expected = list(dict.fromkeys(_expected(path, model, raw, registry) for path in paths))
    listed = " or ".join(filter(None, [", ".join(expected[:-1]), expected[-1]]))
    return f"must be {listed}; given: {_short(value)}"


def _not_allowed(value: str, expected: str) -> str:
    """Rejects a word that is none of those in pydantic's list, each in quotes."""
    allowed = re.findall(r"'([^']*)'", expected)
    return f"{value!r} is not allowed.{suggestion(value, allowed)}"


def _expected(path: ErrorPath, model: type[BaseModel], raw: Any, registry: Registry) -> str:
    """Describes the expected value, to follow "must be"."""
    kind, context = path.detail["type"], path.detail.get("ctx", {})
    if kind in ("model_type", "model_attributes_type"):
        keys = fields_at(model, path.location, raw, registry, only=context.get("class_name"))
        return f"a mapping {{{', '.join(keys)}}}" if keys else "a mapping"
    if kind == "string_pattern_mismatch" and context["pattern"].endswith("[A-Za-z0-9_-]*$"):
        return "a name of letters, digits, _ and - that begins with a letter"
    if kind == "invalid_key":
        return "text"
    if kind == "too_short":
        return f"a list of at least {context['min_length']}"
    if kind == "too_long":
        return f"a list of at most {context['max_length']}"
    return _EXPECTED.get(kind) or re.sub(r"^(Input|\w+) should (be )?", "", path.detail["msg"])


def _short(value: Any) -> str:
    text = repr(value)
    # A value of more characters hides the message around it.
    if len(text) > 80:
        return f"{text[:77]}..."
    return text
