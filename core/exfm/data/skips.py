"""Rows that are left out: how many, why, and when it is too many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from exfm.errors import ConfigError

_FIRST_ROWS = 1000
"""A share is judged of so many rows at least, so that a few bad rows at the beginning are not too many."""

_MOST_REASONS = 50
"""A source's words may name the value, and so differ from row to row."""

Counts = Mapping[str, Mapping[str, int]]
"""Rows left out, by column and reason."""


@dataclass
class Skips:
    """Counts bad rows of a stream as it is read.

    Args:
        most: the share of rows that may be left out.
        rows_before, total_before: rows read, and left out, before.
    """

    most: float = 1.0
    rows_before: int = 0
    total_before: int = 0
    rows: int = 0
    _counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    _last: str = ""

    @property
    def total(self) -> int:
        """Rows left out here."""
        return self._counts.total()

    def counts(self) -> dict[str, dict[str, int]]:
        """Rows left out, by column and reason."""
        found: dict[str, dict[str, int]] = {}
        for (column, reason), rows in self._counts.items():
            found.setdefault(column, {})[reason] = rows
        return found

    def add(self, column: str, reason: str, rows: int, message: str) -> None:
        """Counts rows that are left out; the message names the first of them."""
        if (column, reason) not in self._counts and len(self._counts) >= _MOST_REASONS:
            column, reason = "row", "other reasons"
        self._counts[column, reason] += rows
        self._last = message

    def read(self, rows: int) -> None:
        """Counts rows that were read, bad ones among them.

        Raises:
            ConfigError: more of all rows are left out than may be.
        """
        self.rows += rows
        rows, total = self.rows_before + self.rows, self.total_before + self.total
        if total > self.most * max(rows, _FIRST_ROWS):
            raise ConfigError(
                f"{total} of {rows} rows were left out, more than stream.max_skipped_share={self.most:g} allows: "
                f"{in_words(self.counts())}. The last kind: {self._last}. Mend the data, or raise the share."
            )


def add_counts(total: dict[str, dict[str, int]], more: Counts) -> None:
    """Adds counts by column and reason to others."""
    for column, by_reason in more.items():
        kept = total.setdefault(column, {})
        for reason, rows in by_reason.items():
            kept[reason] = kept.get(reason, 0) + rows


def sum_counts(counts: Counts) -> int:
    """All rows of counts by column and reason."""
    return sum(rows for by_reason in counts.values() for rows in by_reason.values())


def in_words(counts: Counts) -> str:
    """Counts by column and reason, the largest first."""
    each = [(rows, f"{column}: {reason}") for column, reasons in counts.items() for reason, rows in reasons.items()]
    return "; ".join(f"{text} ({rows})" for rows, text in sorted(each, key=lambda one: -one[0]))
