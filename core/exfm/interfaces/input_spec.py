"""InputSpec: describes a teacher input's surroundings, apart from the interface because this needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

EXAMPLE = "example"
"""Names the example itself where a component reads the teacher's embedding of it, in the place of an entity's name."""


@dataclass(frozen=True)
class InputSpec:
    """Describes a teacher input's surroundings when it is built.

    Attributes:
        dim: width D of a token.
        length: L, as the Config says.
        widths: width K of the teacher's vectors, by entity, in order; ``{EXAMPLE: K}`` of an embedding of the example.
    """

    dim: int
    length: int
    widths: Mapping[str, int]
