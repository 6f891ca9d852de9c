"""Counts rows that are left out, by reason, and raises an error when there are too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from exfm.errors import ConfigError

_FIRST_ROWS = 1000
"""A share is taken of so many rows at least, because a few bad rows at the beginning are not too many."""

_MOST_REASONS = 50
"""Reasons counted separately: a source's reason may name the value, and differ from row to row."""

Counts = Mapping[str, Mapping[str, int]]
"""Number of rows left out, by column and reason."""

Skip = tuple[str, str, int, str]
"""Rows left out: column, reason, number of rows, and a message that names the first of them."""


@dataclass
class Skips:
    """Counts bad rows of a stream as it is read.

    Args:
        most: the share of rows that may be left out.
        rows_before, total_before: rows read, and left out, in earlier windows.
    """

    most: float = 1.0
    rows_before: int = 0
    total_before: int = 0
    rows: int = 0
    _counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    _last: str = ""

    @property
    def total(self) -> int:
        """Returns the number of rows left out of this stream."""
        return self._counts.total()

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns the number of rows left out, by column and reason."""
        nested: dict[str, dict[str, int]] = {}
        for (column, reason), rows in self._counts.items():
            nested.setdefault(column, {})[reason] = rows
        return nested

    def add(self, column: str, reason: str, rows: int, message: str) -> None:
        """Counts rows that are left out; the message names the first of them."""
        # Bounds the memory, and the size of results.json.
        if (column, reason) not in self._counts and len(self._counts) >= _MOST_REASONS:
            column, reason = "row", "other reasons"
        self._counts[column, reason] += rows
        self._last = message

    def read(self, rows: int) -> None:
        """Counts rows that were read, bad rows included.

        Raises:
            ConfigError: the share of rows left out is above ``most``.
        """
        self.rows += rows
        rows, total = self.rows_before + self.rows, self.total_before + self.total
        if total > self.most * max(rows, _FIRST_ROWS):
            raise ConfigError(
                f"{total} of {rows} rows were left out, more than stream.max_skipped_share={self.most:g} allows: "
                f"{in_words(self.counts())}. The last kind: {self._last}. Mend the data, or raise the share."
            )


class SkipLog(Skips):
    """Lists the rows that a process leaves out, which all processes of a job count together."""

    def __init__(self) -> None:
        super().__init__()
        self._events: list[Skip] = []

    def add(self, column: str, reason: str, rows: int, message: str) -> None:
        """Lists rows that are left out."""
        self._events.append((column, reason, rows, message))

    def take(self) -> tuple[int, list[Skip]]:
        """Returns the number of rows that were read, and the rows left out, since the last call."""
        taken = self.rows, self._events
        self.rows, self._events = 0, []
        return taken


def add_counts(total: dict[str, dict[str, int]], more: Counts) -> None:
    """Adds ``more`` to ``total``, in place."""
    for column, by_reason in more.items():
        kept = total.setdefault(column, {})
        for reason, rows in by_reason.items():
            kept[reason] = kept.get(reason, 0) + rows


def sum_counts(counts: Counts) -> int:
    """Sums the rows of all columns and reasons."""
    return sum(sum(by_reason.values()) for by_reason in counts.values())


def in_words(counts: Counts) -> str:
    """Lists counts by column and reason in a sentence, the largest first."""
    pairs: list[tuple[int, str]] = []
    for column, by_reason in counts.items():
        pairs += [(rows, f"{column}: {reason}") for reason, rows in by_reason.items()]
    # Sorted by the negative count and not in reverse, so that equal counts keep their order.
    pairs.sort(key=lambda pair: -pair[0])
    return "; ".join(f"{text} ({rows})" for rows, text in pairs)
