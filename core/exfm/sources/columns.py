"""Checks the types of columns."""

from __future__ import annotations

import pyarrow as pa
from pyarrow import types

from exfm.sources.times import TimeUnit


def check_time_type(location: str, column: str, kind: pa.DataType, unit: TimeUnit) -> None:
    """Checks that a column of times has the type that its unit requires.

    Args:
        location: source and file of the column, for the message.

    Raises:
        ValueError: the column has another type.
    """
    if unit == "timestamp" and not types.is_timestamp(kind):
        expected = "a timestamp (for an integer, set time_unit to s, ms, us or ns)"
    elif unit != "timestamp" and not types.is_integer(kind):
        expected = "an integer, since time_unit is set"
    else:
        return
    raise ValueError(f"{location}: column {column!r} is {kind}; expected {expected}")
