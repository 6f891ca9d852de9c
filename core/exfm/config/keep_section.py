"""Defines the section of a model that says how many of its windows stay in the run's folder."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from exfm.config.section import Section
from exfm.interfaces.duration import format_duration, parse_duration

NEWEST = 2
"""Newest windows that always stay: the last, and its predecessor in case the last is damaged."""


def _parse_kept(value: Any) -> int | timedelta | Literal["all"]:
    if value == "all":
        return "all"
    if isinstance(value, int) and not isinstance(value, bool):
        if value < NEWEST:
            raise ValueError(
                f"a number of windows is {NEWEST} at least: the newest {NEWEST} always stay; given: {value}"
            )
        return value
    try:
        return parse_duration(value)
    except ValueError:
        raise ValueError(f"a number of windows, an age such as 30d, or all, not {value!r}") from None


def _write_kept(value: int | timedelta | str) -> int | str:
    return format_duration(value) if isinstance(value, timedelta) else value


Kept = Annotated[
    int | timedelta | Literal["all"],
    BeforeValidator(_parse_kept),
    PlainSerializer(_write_kept, return_type=int | str),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": NEWEST},
                {"const": "all"},
                {"type": "string", "pattern": r"^(\d+(\.\d+)?\s*[wdhms]\s*)+$"},
            ]
        }
    ),
]
"""A number of newest windows, an age counted from the end of the newest window, or all."""


class KeepConfig(Section):
    """How many of a model's windows stay: a number of the newest, an age counted from the newest such as 30d, or all.

    Longer than this stays only what a student or labeller has not passed yet, or an alias names.
    """

    snapshots: Kept = Field(
        NEWEST, description="Snapshots; older ones serve students that start later, back-fills and exfm predict --at."
    )
    full_snapshot_every: int = Field(
        24,
        ge=1,
        description="Of so many snapshots 1 is full; the others have the changed rows of large tables alone.",
    )
    supervision: Kept = Field("all", description="Windows of supervision; exfm vacuum removes others.")
    predictions: Kept = Field(
        "all", description="Windows of predictions, which figures are computed from; exfm vacuum removes others."
    )
