"""Durations as people write them: 7d, 6h, 30m, 90s."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_UNITS_US = {"w": 604_800_000_000, "d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([wdhms])")


def parse_duration(value: Any) -> timedelta:
    """A timedelta from ``7d``, ``1d12h``, ``90s`` or a timedelta.

    Raises:
        ValueError: anything else, a bare number included: its unit would be a guess. Or it is longer than a
            timedelta can be.
    """
    if isinstance(value, timedelta):
        return value
    text = str(value).strip().lower()
    parts = _PART.findall(text)
    if not parts or _PART.sub("", text).strip():
        raise ValueError(f"a duration is a number with a unit, such as 7d, 6h, 30m or 90s, not {value!r}")
    try:
        length_us = sum(Decimal(number) * _UNITS_US[unit] for number, unit in parts)
        return timedelta(microseconds=round(length_us))
    except OverflowError:
        raise ValueError(f"a duration is at most {timedelta.max.days}d, not {value!r}") from None


def microseconds(duration: timedelta) -> int:
    """Counts a duration's microseconds, exactly: in floating point some durations would lose one."""
    return duration // timedelta(microseconds=1)


def format_duration(value: timedelta) -> str:
    """The shortest form that ``parse_duration`` reads back."""
    for unit, size in (("d", timedelta(days=1)), ("h", timedelta(hours=1)), ("m", timedelta(minutes=1))):
        if value and not value % size:
            return f"{value // size}{unit}"
    seconds, micros = divmod(microseconds(value), 1_000_000)
    return f"{seconds}.{micros:06}".rstrip("0").rstrip(".") + "s"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^(\d+(\.\d+)?\s*[wdhms]\s*)+$"}),
]
"""A timedelta field of a Config, written 7d, 6h, 30m or 90s in YAML."""
