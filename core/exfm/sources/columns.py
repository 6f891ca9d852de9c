"""What is said of columns that are missing or of a wrong type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import pyarrow as pa
from pyarrow import types

from exfm.sources.times import TimeUnit


def alternatives(column: str, names: Iterable[str]) -> str:
    """The nearest name, and all that there are."""
    ordered = sorted(names)
    close = difflib.get_close_matches(column, ordered, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}there are {', '.join(ordered)}"


def check_time_type(place: str, column: str, kind: pa.DataType, unit: TimeUnit) -> None:
    """Raises ValueError where a column does not hold what its unit says; ``place`` is where it was found."""
    if unit == "timestamp" and not types.is_timestamp(kind):
        wanted = "a timestamp (for an integer, set time_unit to s, ms, us or ns)"
    elif unit != "timestamp" and not types.is_integer(kind):
        wanted = "an integer, since time_unit is set"
    else:
        return
    raise ValueError(f"{place}: column {column!r} is {kind}; expected {wanted}")
