"""VectorFeature: a vector per row that was computed elsewhere, such as the embedding of a text or an image."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from exfm.interfaces.named_column import NamedColumn


class VectorFeature(NamedColumn):
    """A vector per row, all of the same width; a null is a missing vector, in whose place the model learns a token."""

    kind: Literal["vector"] = Field("vector", description="A vector per row, such as the embedding of a text.")
    width: int = Field(ge=2, description="How many numbers each vector has.")
