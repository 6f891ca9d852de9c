"""Finds rows that came after their window had been committed: late files, files that have grown, back-fill.

A model trains on a window once, and never on an older one after a newer one. So such rows are set aside: counted,
named on stderr and in the report. A window is looked at again only where a part of the stream that overlaps it is not
the version that its commit names; then the examples that it holds now are compared with those it was predicted for.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from exfm.config.checks import Arm, filter_columns
from exfm.config.loading import Experiment
from exfm.data.traffic import rows_where
from exfm.data.validation import RowChecker
from exfm.data.windows import WindowGrid, windows_with_events
from exfm.interfaces.data_source import Origin, StreamPart, TimeRange, Window, utc
from exfm.storage.commits import NONE
from exfm.storage.late_log import LateLog, LateRows, first_names
from exfm.supervision.store import Store

Ids = npt.NDArray[np.int64]

_LONG_AGO = -(2**63)

logger = logging.getLogger(__name__)


class LateRowFinder:
    """Compares the stream with the committed windows of some models.

    Args:
        arms: the models.
    """

    def __init__(self, experiment: Experiment, store: Store, arms: Collection[Arm]) -> None:
        self._source = experiment.source
        self._schema = experiment.schema
        self._columns = filter_columns(experiment.schema)
        self._arms = arms
        self._store = store
        self._late = LateLog(store.workspace)
        self._compared: set[tuple[str, str]] = set()  # parts, by name and version

    def look(self, grid: WindowGrid, span: TimeRange, parts: Sequence[StreamPart]) -> None:
        """Counts the late rows of what has come or changed since the last look.

        Args:
            parts: those that the stream consists of now.
        """
        places = [place for place in _places(parts) if (place.part.name, place.part.version) not in self._compared]
        for arm in self._arms:
            head = self._store.log.head("train", arm.name)
            if head != NONE and places:
                done = TimeRange(max(span.start_us, grid.origin_us), grid.window(head).end_us)
                chain = set(self._store.log.windows("train", arm.name))
                for window in self._changed(arm, grid, done, chain, places):
                    self._count(arm, window, parts, window.index in chain)
        self._compared |= {(place.part.name, place.part.version) for place in places}

    def _changed(
        self, arm: Arm, grid: WindowGrid, done: TimeRange, chain: set[int], places: list[_Place]
    ) -> list[Window]:
        """Lists the committed windows that overlap a part in another version than the one that was read."""
        changed: dict[int, Window] = {}
        read: dict[int, Mapping[str, str]] = {}
        counted = set(self._late.windows(arm.name))
        for place in places:
            for window in self._windows_of(place, grid, done):
                index = window.index
                if index not in read:
                    read[index] = self._versions(arm, index, index in counted, index in chain)
                if read[index].get(place.part.name) != place.part.version:
                    changed[index] = window
        return [changed[index] for index in sorted(changed)]

    def _windows_of(self, place: _Place, grid: WindowGrid, done: TimeRange) -> Iterator[Window]:
        """Yields the committed windows that may hold rows of a part.

        A part that overlaps others in time goes back in time where it begins: a source yields its rows in the window
        that the parts before it have reached.
        """
        part = place.part
        common = TimeRange(max(part.first_us, done.start_us), min(part.last_us + 1, done.end_us))
        yield from windows_with_events(self._source, grid, common)
        if part.last_us < place.reached_us < done.end_us:
            yield grid.window(grid.index_at(place.reached_us))

    def _versions(self, arm: Arm, index: int, counted: bool, committed: bool) -> Mapping[str, str]:
        """Versions of the parts of a window that were read, or compared since."""
        late = self._late.read(arm.name, index) if counted else None
        if late is not None:
            return late.parts
        return self._store.log.load("train", arm.name, index).read.parts if committed else {}

    def _count(self, arm: Arm, window: Window, parts: Sequence[StreamPart], committed: bool) -> None:
        """Counts the examples that a window holds now and was not predicted for."""
        versions = {part.name: part.version for part in parts if overlaps(part, window)}
        known = np.zeros(0, np.int64)
        if committed and self._store.log.load("train", arm.name, window.index).files:
            known = self._store.predictions(arm.name, window).column("example_id").to_numpy()
        before = self._late.read(arm.name, window.index)
        # What came and has gone again stays counted.
        rows = {name: count for name, count in (before.rows if before else {}).items() if name not in versions}
        for name, ids in self._ids(arm, window):
            new = np.setdiff1d(ids, known)
            known = np.concatenate([known, new])
            if new.size:
                rows[name] = rows.get(name, 0) + int(new.size)
        late = LateRows(window, rows, versions)
        self._late.write(arm.name, late)
        if late.count > (before.count if before else 0):
            logger.warning(
                "%s: %d rows of window %s have come after it was committed, and are not read: %s",
                *(arm.name, late.count, window, first_names(rows)),
            )

    def _ids(self, arm: Arm, window: Window) -> Iterator[tuple[str, Ids]]:
        """Yields the part's name and the example ids of each batch of a window."""
        for batch in self._source.read(window):
            # Each batch by itself: that a late part goes back in time makes none of its rows a bad one.
            rows = RowChecker(self._schema, True, newest_us=_LONG_AGO).check(batch)
            if rows.num_rows:
                ids: Ids = rows.column(self._schema.example_id).to_numpy(zero_copy_only=False).astype(np.int64)
                picked = rows_where(rows, arm.config.where, self._columns)
                yield Origin.from_batch(batch).file, ids if picked is None else ids[picked.numpy()]


@dataclass(frozen=True)
class _Place:
    """A part of the stream, and the time that the parts before it have reached."""

    part: StreamPart
    reached_us: int


def _places(parts: Sequence[StreamPart]) -> Iterator[_Place]:
    reached_us = _LONG_AGO
    for part in sorted(parts, key=lambda part: (part.first_us, part.name)):
        yield _Place(part, reached_us)
        reached_us = max(reached_us, part.last_us)


def overlaps(part: StreamPart, window: Window) -> bool:
    """Whether a part of the stream may have rows of a window."""
    return part.first_us < window.end_us and part.last_us >= window.start_us


def earlier_words(parts: Sequence[StreamPart], grid: WindowGrid, span: TimeRange) -> str:
    """Says that a stream begins earlier than its run did, which part does, and what to do."""
    part = next((part.name for part in parts if span.start_us <= part.first_us < grid.origin_us), "")
    origin = grid.window(0)
    return (
        f"stream: it begins at {utc(span.start_us)} now{f' ({part})' if part else ''}, before the run's first window, "
        f"{origin}: no model of this run can train on such rows any more. Leave them out with stream.start={origin}, "
        "or train on them in another run_dir"
    )
