"""Checks of histories in the rows of a stream: that they have no event of the future, and end with the newest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pyarrow as pa

from exfm.interfaces.schema import CategoricalFeature, FeatureSchema, SequenceFeature

_MIN_ROWS = 10
"""Rows, or changes of a history, that a finding needs at least."""

_LEAK_SHARE, _CHANCE_SHARE = 0.95, 0.5
"""A leak has the candidate in at least so many of the rows' histories, and in at most so many of other rows'."""


class HistoryChecks:
    """Checks sequences that share a table with a categorical feature, the candidate item.

    Args:
        schema: the schema of the stream.
        rows: rows of the stream, in order of time.
    """

    def __init__(self, schema: FeatureSchema, rows: pa.Table) -> None:
        self._schema, self._rows = schema, rows
        self._pairs = list(_pairs(schema))

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def describe_leak(self) -> str:
        """Names a candidate that is in nearly all histories of its rows, and seldom in others'; empty if none is."""
        for candidate, sequence, column in self._pairs:
            items, events = self._column(candidate.source_column), self._column(column)
            for condition, rows in self._groups():
                count, half = len(rows), len(rows) // 2
                inside = sum(items[row] in events[row] for row in rows)
                # Rows half the stream away: a popular item is in the histories of all users.
                other_rows = rows[half:] + rows[:half]
                elsewhere = sum(items[row] in events[other] for row, other in zip(rows, other_rows, strict=True))
                if count >= _MIN_ROWS and inside >= _LEAK_SHARE * count and elsewhere <= _CHANCE_SHARE * count:
                    history = f"the history {sequence.name!r} of {inside} of {count} rows{condition}"
                    return f"{candidate.name!r} is in {history}, and in another row's for {elsewhere}"
        return ""

    def describe_order(self) -> str:
        """Names a sequence with the newest event first, or one that stops when it is full; empty if none does."""
        for _, sequence, column in self._pairs:
            forwards, backwards, stopped, moved = 0, 0, 0, 0
            for before, after in self._successive(column):
                if before == after:
                    stopped += len(before) >= sequence.max_length
                    continue
                moved += len(before) >= sequence.max_length
                forward_events, backward_events = _overlap(before, after), _overlap(after, before)
                forwards += forward_events > backward_events
                backwards += backward_events > forward_events
            # Nine times as many, because equal events at both ends of a history look like either order.
            if backwards >= _MIN_ROWS and backwards > 9 * forwards:
                return f"new events come first in {sequence.name!r}, {backwards} times of {backwards + forwards}"
            if stopped >= 2 * _MIN_ROWS and not moved and forwards:
                return f"{sequence.name!r} no longer changes where it has {sequence.max_length} events"
        return ""

    def _column(self, name: str) -> list[Any]:
        """Returns a column's values, with an empty history instead of a null list."""
        column = self._rows[name]
        values: list[Any] = column.to_pylist()
        if pa.types.is_list(column.type):
            return [() if value is None else value for value in values]
        return values

    def _groups(self) -> Iterator[tuple[str, list[int]]]:
        """Yields all rows, and the positive rows of each label, with a description."""
        yield "", list(range(self._rows.num_rows))
        for label in self._schema.labels:
            values = self._rows[label.source_column].to_pylist()
            yield f" with {label.name}=1", [row for row, value in enumerate(values) if value]

    def _successive(self, column: str) -> Iterator[tuple[list[Any], list[Any]]]:
        """Yields pairs of successive histories with events of the same group."""
        if not self._schema.group:
            return
        by_group = defaultdict(list)
        for group, events in zip(self._column(self._schema.group), self._column(column), strict=True):
            if events:
                by_group[group].append(events)
        for histories in by_group.values():
            yield from pairwise(histories)


def _pairs(schema: FeatureSchema) -> Iterator[tuple[CategoricalFeature, SequenceFeature, str]]:
    """Yields each categorical feature with each sequence that shares its table, and the column of the shared ids."""
    for sequence in schema.features:
        if isinstance(sequence, SequenceFeature):
            for field in sequence.fields:
                for candidate in schema.categorical:
                    if field.kind == "categorical" and sequence.table_name(field) == candidate.table_name:
                        yield candidate, sequence, field.source_column


def _overlap(before: list[Any], after: list[Any]) -> int:
    """Counts how many of the last events of a history are the first events of another."""
    most = min(len(before), len(after))
    return next((count for count in range(most, 0, -1) if before[-count:] == after[:count]), 0)
