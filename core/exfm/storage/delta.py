"""Delta: how a snapshot follows from another, of which it has the changed rows alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

_COUNTER = "delta"


@dataclass(frozen=True)
class Delta:
    """Says how a snapshot follows from another.

    Attributes:
        after: version of the snapshot whose rows it changes.
        number: counts the deltas since the full snapshot, from 1.
        rows: changed rows in all of them together.
    """

    after: int
    number: int
    rows: int

    @classmethod
    def from_counters(cls, counters: Mapping[str, Any]) -> Delta | None:
        """Reads it from the counters of a commit; None of a full snapshot."""
        return cls(**counters[_COUNTER]) if _COUNTER in counters else None

    def as_counters(self) -> dict[str, Any]:
        """Returns it for the counters of a commit."""
        return {_COUNTER: asdict(self)}
