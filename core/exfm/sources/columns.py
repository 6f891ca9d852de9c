"""Checks the types of columns."""

from __future__ import annotations

import pyarrow as pa
from pyarrow import types

from exfm.sources.times import TimeUnit


def check_time_type(place: str, column: str, kind: pa.DataType, unit: TimeUnit) -> None:
    """Raises ValueError where a column does not hold what its unit says; ``place`` is where it was found."""
    if unit == "timestamp" and not types.is_timestamp(kind):
        wanted = "a timestamp (for an integer, set time_unit to s, ms, us or ns)"
    elif unit != "timestamp" and not types.is_integer(kind):
        wanted = "an integer, since time_unit is set"
    else:
        return
    raise ValueError(f"{place}: column {column!r} is {kind}; expected {wanted}")
