"""Defines the base of the sections of an experiment file, and the types of their values."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from exfm.interfaces.duration import in_utc

UtcTime = Annotated[datetime, AfterValidator(in_utc)]


def _version_text(value: Any) -> Any:
    """Writes a version, which YAML reads as a number, as text."""
    return str(value) if type(value) is int else value


SnapshotName = Annotated[str, BeforeValidator(_version_text)]
"""A version, an alias or a time."""

# Names are folders of a run and keys of overrides: no dot, slash or space.
NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]*$"


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, and numbers are finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
