"""Durations as people write them: 7d, 6h, 30m, 90s."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([wdhms])")


def parse_duration(value: Any) -> timedelta:
    """A timedelta from ``7d``, ``1d12h``, ``90s`` or a timedelta.

    Raises:
        ValueError: anything else, a bare number included: its unit would be a guess.
    """
    if isinstance(value, timedelta):
        return value
    text = str(value).strip().lower()
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text).strip():
        raise ValueError(f"a duration is a number with a unit, such as 7d, 6h, 30m or 90s, not {value!r}")
    return sum((timedelta(**{_UNITS[unit]: float(number)}) for number, unit in parts), timedelta())


def format_duration(value: timedelta) -> str:
    """The shortest form that ``parse_duration`` reads back."""
    seconds = value.total_seconds()
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:g}s"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^(\d+(\.\d+)?\s*[wdhms]\s*)+$"}),
]
"""A timedelta field of a Config, written 7d, 6h, 30m or 90s in YAML."""
