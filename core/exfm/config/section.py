"""Defines the base of the sections of an experiment file, and the types of their values."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from exfm.interfaces.duration import in_utc

UtcTime = Annotated[datetime, AfterValidator(in_utc)]

# Names are folders of a run and keys of overrides: no dot, slash or space.

# Names are folders of a run and keys of overrides: no dot, slash or space.
NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]*$"


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, and numbers are finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )
