"""NamedColumn: the base of features, fields and labels that are read from a single column."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
"""Matches names of features, fields and labels."""


class NamedColumn(BaseModel):
    """Base of features, fields and labels that are read from a single column."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME, description="Its name in models, reports and other features.")
    column: str = Field("", description="Its column in the record batches; the name itself where this is empty.")

    @property
    def source_column(self) -> str:
        """The Arrow column that it is read from."""
        return self.column or self.name

    @property
    def source_columns(self) -> tuple[str, ...]:
        """All Arrow columns that it is read from."""
        return (self.source_column,)
