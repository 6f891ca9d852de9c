"""Durations as people write them, 7d, 6h, 30m or 90s, and times."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_UNITS_US = {"w": 604_800_000_000, "d": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000}
_1970 = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER_WITH_UNIT = re.compile(r"(\d+(?:\.\d+)?)\s*([wdhms])")


def parse_duration(value: Any) -> timedelta:
    """Parses ``7d``, ``1d12h`` or ``90s``; returns a timedelta as it is.

    Raises:
        ValueError: the value is anything else, a number without a unit included, because its unit would be a guess; or
            it is longer than a timedelta can be.
    """
    if isinstance(value, timedelta):
        return value
    text = str(value).strip().lower()
    terms = _NUMBER_WITH_UNIT.findall(text)
    if not terms or _NUMBER_WITH_UNIT.sub("", text).strip():
        raise ValueError(f"a duration is a number with a unit, such as 7d, 6h, 30m or 90s, not {value!r}")
    try:
        # Decimal, because 0.1 s is not exact in binary.
        length_us = sum(Decimal(number) * _UNITS_US[unit] for number, unit in terms)
        return timedelta(microseconds=round(length_us))
    except OverflowError:
        raise ValueError(f"a duration is at most {timedelta.max.days}d, not {value!r}") from None


def microseconds(duration: timedelta) -> int:
    """Counts a duration's microseconds exactly; ``total_seconds`` would round long durations."""
    return duration // timedelta(microseconds=1)


def microseconds_since_1970(time: datetime) -> int:
    """Converts a time with a zone to microseconds since 1970, UTC."""
    # A difference is converted in whole numbers; a timestamp in float seconds would lose microseconds.
    return microseconds(time - _1970)


def in_utc(time: datetime) -> datetime:
    """Reads a time without a zone as UTC, as all times of a run are."""
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def parse_time_us(text: str) -> int | None:
    """Parses an ISO time, in UTC if it names no zone, to microseconds since 1970; returns None if it is no time."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return microseconds_since_1970(in_utc(time))


def format_duration(value: timedelta) -> str:
    """Writes a duration in the shortest form that ``parse_duration`` reads."""
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
