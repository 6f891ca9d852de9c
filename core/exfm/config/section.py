"""Defines the base of the sections of an experiment file, and the types of their values."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def _in_utc(time: datetime) -> datetime:
    """Reads a time without a zone as UTC, as all times of a run are."""
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


UtcTime = Annotated[datetime, AfterValidator(_in_utc)]

# Names are folders of a run and keys of overrides: no dot, slash or space.

# Names are folders of a run and keys of overrides: no dot, slash or space.
NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]*$"


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, and numbers are finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
