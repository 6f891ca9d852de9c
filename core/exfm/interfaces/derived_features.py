"""Features whose ids are computed from columns: numbers in buckets, and crosses of features."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from exfm.interfaces.named_column import NAME, NamedColumn


class BucketizedFeature(NamedColumn):
    """A number per row, as the number of its bucket; a null or NaN has a bucket alone.

    Bucket i holds the numbers from ``boundaries[i - 1]`` on and below ``boundaries[i]``, compared in single precision,
    so that the same number has the same bucket wherever it comes from.
    """

    kind: Literal["bucketized"] = Field("bucketized", description="A number per row, as the number of its bucket.")
    boundaries: tuple[float, ...] = Field(
        min_length=1, description="Where buckets begin, ascending; a boundary belongs to the bucket above it."
    )

    @model_validator(mode="after")
    def _ascending(self) -> BucketizedFeature:
        check_boundaries(self.name, self.boundaries)
        return self

    @property
    def rows(self) -> int:
        """The number of rows of its table: a row for each bucket, and for missing numbers."""
        return len(self.boundaries) + 2

    @property
    def table_name(self) -> str:
        """The embedding table that it looks up, which no other feature shares."""
        return self.name

    @property
    def ids(self) -> Literal["row"]:
        """How its ids map to rows: a bucket's number is the row."""
        return "row"

    @property
    def eviction(self) -> Literal["lru"]:
        """Unused, because its ids are not managed."""
        return "lru"


def check_boundaries(name: str, boundaries: tuple[float, ...]) -> None:
    """Checks that the boundaries of a feature ascend.

    Raises:
        ValueError: they do not, or are too close for single precision.
    """
    # In single precision, in which numbers are compared; a comparison and no cast, which would warn of an overflow.
    if not (np.abs(boundaries) <= np.finfo(np.float32).max).all():
        raise ValueError(f"{name!r}: boundaries are finite numbers in single precision; given: {list(boundaries)}")
    for before, after in pairwise(boundaries):
        # Written so that NaN is refused too.
        if not np.float32(before) < np.float32(after):
            raise ValueError(
                f"{name!r}: boundaries ascend, in single precision too; given: {before} before {after}. Sort them, and "
                "leave out those that are equal"
            )


class CrossPart(BaseModel):
    """A feature of a cross, as its ids are read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str = Field(description="Its column in the record batches.")
    boundaries: tuple[float, ...] | None = Field(
        None, description="Of a bucketized feature; null for a categorical feature."
    )


class CrossedFeature(BaseModel):
    """An id for each combination of the values of other features, hashed into a table.

    A row that lacks the id of a categorical feature has no id. A missing number of a bucketized feature is a bucket.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["crossed"] = Field("crossed", description="An id for each combination of other features' values.")
    name: str = Field(pattern=NAME, description="Its name in models and reports.")
    of: tuple[str, ...] = Field(
        min_length=2, description="Names of categorical and bucketized features of the schema; their order matters."
    )
    rows: int = Field(gt=0, description="Rows of its embedding table.")
    ids: Literal["hash"] = Field("hash", description="Combinations are hashed into the table.")
    # Stored besides the names, because a model may see the cross and not its features.
    parts: SkipJsonSchema[tuple[CrossPart, ...]] = Field((), description="Columns of its features; set by the schema.")

    @property
    def table_name(self) -> str:
        """The embedding table that it looks up, which no other feature shares."""
        return self.name

    @property
    def eviction(self) -> Literal["lru"]:
        """Unused, because its ids are not managed."""
        return "lru"

    @property
    def source_columns(self) -> tuple[str, ...]:
        """The Arrow columns that it is read from."""
        return tuple(read.column for read in self.parts)
