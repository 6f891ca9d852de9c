"""Histories in the rows of a stream: whether they know of the future, and which end is their newest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pyarrow as pa

from exfm.interfaces.schema import CategoricalFeature, FeatureSchema, SequenceFeature

_ENOUGH = 10
_NEARLY_ALL = 0.95
_BY_CHANCE = 0.5


class Histories:
    """Sequences of a stream that share a table with a categorical feature: histories of what the candidate item is.

    Args:
        schema: what a row holds.
        rows: those of the stream, in order of time.
    """

    def __init__(self, schema: FeatureSchema, rows: pa.Table) -> None:
        self._schema, self._rows = schema, rows
        self._pairs = list(_pairs(schema))

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def held_by_its_own(self) -> str:
        """Says which candidates nearly always lie in their own history, and seldom in others'; nothing if none do."""
        for candidate, sequence, column in self._pairs:
            items, events = self._column(candidate.source_column), self._column(column)
            for what, places in self._groups():
                inside = [items[row] in events[row] for row in places]
                half = len(places) // 2
                pairs = zip(places, places[half:] + places[:half], strict=True)
                elsewhere = [items[row] in events[other] for row, other in pairs]
                count = len(places)
                if count >= _ENOUGH and sum(inside) >= _NEARLY_ALL * count and sum(elsewhere) <= _BY_CHANCE * count:
                    held = (
                        f"{candidate.name!r} is in the history {sequence.name!r} of {sum(inside)} of {count} rows{what}"
                    )
                    return f"{held}, and in another row's for {sum(elsewhere)}"
        return ""

    def turned(self) -> str:
        """Says which histories have the newest event first, or stop when they are full; nothing if none do."""
        for _, sequence, column in self._pairs:
            forwards, backwards, stopped, moved = 0, 0, 0, 0
            for before, after in self._successive(column):
                if before == after:
                    stopped += len(before) >= sequence.max_length
                    continue
                moved += len(before) >= sequence.max_length
                on, back = _overlap(before, after), _overlap(after, before)
                forwards, backwards = forwards + (on > back), backwards + (back > on)
            if backwards >= _ENOUGH and backwards > 9 * forwards:
                return f"new events come first in {sequence.name!r}, {backwards} times of {backwards + forwards}"
            if stopped >= 2 * _ENOUGH and not moved and forwards:
                return f"{sequence.name!r} no longer changes where it has {sequence.max_length} events"
        return ""

    def _column(self, name: str) -> list[Any]:
        values = self._rows[name].to_pylist()
        return [() if value is None and pa.types.is_list(self._rows[name].type) else value for value in values]

    def _groups(self) -> Iterator[tuple[str, list[int]]]:
        """All rows, and those of each label."""
        yield "", list(range(self._rows.num_rows))
        for label in self._schema.labels:
            values = self._rows[label.source_column].to_pylist()
            yield f" with {label.name}=1", [row for row, value in enumerate(values) if value]

    def _successive(self, column: str) -> Iterator[tuple[list[Any], list[Any]]]:
        """Each row's history and that of the next row of its group, where both have events."""
        if not self._schema.group:
            return
        of_group = defaultdict(list)
        for group, events in zip(self._column(self._schema.group), self._column(column), strict=True):
            if events:
                of_group[group].append(events)
        for histories in of_group.values():
            yield from pairwise(histories)


def _pairs(schema: FeatureSchema) -> Iterator[tuple[CategoricalFeature, SequenceFeature, str]]:
    """Each categorical feature with each sequence that shares its table, and the column that does."""
    candidates = [feature for feature in schema.features if isinstance(feature, CategoricalFeature)]
    for sequence in schema.features:
        if isinstance(sequence, SequenceFeature):
            for field in sequence.fields:
                for candidate in candidates:
                    if field.kind == "categorical" and sequence.table_name(field) == candidate.table_name:
                        yield candidate, sequence, field.source_column


def _overlap(before: list[Any], after: list[Any]) -> int:
    """How many of the last events of one history are the first ones of another."""
    most = min(len(before), len(after))
    return next((count for count in range(most, 0, -1) if before[-count:] == after[:count]), 0)
