"""Parses the time ranges of options."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from exfm.errors import ConfigError

if TYPE_CHECKING:
    from exfm.interfaces.data_source import TimeRange


def parse_time_range(start: tuple[str, str | None], end: tuple[str, str | None]) -> TimeRange:
    """Parses the ends of a time range, either of which may be open; a time without zone is in UTC.

    Args:
        start, end: the option, for messages, and its text.

    Raises:
        ConfigError: an end is no time, or the range is empty.
    """
    from exfm.interfaces.data_source import TimeRange

    start_us, end_us = _microseconds(*start, 0), _microseconds(*end, sys.maxsize)
    if start_us >= end_us:
        raise ConfigError(f"{start[0]} {start[1]} {end[0]} {end[1]}: the end must come after the start")
    return TimeRange(start_us, end_us)


def _microseconds(option: str, text: str | None, default: int) -> int:
    from exfm.interfaces.duration import parse_time_us

    if text is None:
        return default
    time_us = parse_time_us(text)
    if time_us is None:
        raise ConfigError(f"{option}: write a time such as 2026-01-31 or 2026-01-31T12:00, in UTC; given: {text!r}")
    return time_us
