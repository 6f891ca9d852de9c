"""Finds rows that came after their window had been committed: late files, files that have grown, back-fill.

A model trains on a window once, and never on an older one after a newer one. So such rows are set aside: counted,
named on stderr and in the report. A window is looked at again only where a part of the stream that overlaps it is not
the version that its commit names; then the examples that it holds now are compared with those it was predicted for.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exfm.config.checks import Arm, filter_columns
from exfm.config.loading import Experiment
from exfm.data.traffic import rows_where
from exfm.data.validation import RowChecker
from exfm.data.windows import WindowGrid, windows_with_events
from exfm.interfaces.data_source import DataSource, StreamPart, TimeRange, Window, utc
from exfm.supervision.commits import NONE
from exfm.supervision.late import LateLog, LateRows
from exfm.supervision.store import Store

Ids = npt.NDArray[np.int64]

_NAMED = 3
"""How many parts a warning names."""

logger = logging.getLogger(__name__)


class LateRowFinder:
    """Compares the stream with the committed windows of some models.

    Args:
        arms: the models, by name.
    """

    def __init__(self, experiment: Experiment, store: Store, arms: Collection[Arm]) -> None:
        self._source = experiment.source
        self._schema = experiment.schema
        self._columns = filter_columns(experiment.schema)
        self._arms = arms
        self._store = store
        self._late = LateLog(store.workspace)
        self._compared: set[tuple[str, str]] = set()  # parts, by name and version

    def look(self, grid: WindowGrid, span: TimeRange) -> None:
        """Counts the late rows of what has come or changed since the last look."""
        parts = [part for part in self._source.parts() if (part.name, part.version) not in self._compared]
        for arm in self._arms:
            head = self._store.log.head("train", arm.name)
            if head != NONE and parts:
                done = TimeRange(max(span.start_us, grid.origin_us), grid.window(head).end_us)
                chain = set(self._store.log.windows("train", arm.name))
                for window, changed in self._changed(arm, grid, done, chain, parts).items():
                    self._count(arm, window, changed, window.index in chain)
        self._compared |= {(part.name, part.version) for part in parts}

    def _changed(
        self, arm: Arm, grid: WindowGrid, done: TimeRange, chain: set[int], parts: list[StreamPart]
    ) -> dict[Window, list[str]]:
        """Committed windows, each with the parts in it that are not the versions that were read."""
        changed: dict[Window, list[str]] = {}
        read: dict[int, Mapping[str, str]] = {}
        for part in parts:
            common = TimeRange(max(part.first_us, done.start_us), min(part.last_us + 1, done.end_us))
            for window in windows_with_events(self._source, grid, common):
                if window.index not in read:
                    read[window.index] = self._versions(arm, window.index, chain)
                if read[window.index].get(part.name) != part.version:
                    changed.setdefault(window, []).append(part.name)
        return changed

    def _versions(self, arm: Arm, index: int, chain: set[int]) -> Mapping[str, str]:
        """Versions of the parts of a window that were read, or compared since."""
        late = self._late.read(arm.name, index)
        if late is not None:
            return late.parts
        return self._store.log.load("train", arm.name, index).read.parts if index in chain else {}

    def _count(self, arm: Arm, window: Window, changed: list[str], committed: bool) -> None:
        """Counts the examples that a window holds now and was not predicted for."""
        parts = {part.name: part.version for part in self._source.parts() if overlaps(part, window)}
        read = np.zeros(0, np.int64)
        if committed and self._store.log.load("train", arm.name, window.index).files:
            read = self._store.predictions(arm.name, window).column("example_id").to_numpy()
        here = np.concatenate([read[:0], *self._ids(arm, window)])
        late = LateRows(window, int(np.setdiff1d(here, read).size), sorted(changed), parts)
        self._late.write(arm.name, late)
        if late.rows:
            names = ", ".join(late.changed[:_NAMED]) + (", ..." if len(late.changed) > _NAMED else "")
            logger.warning(
                "%s: %d rows of window %s have come after it was committed, and are not read: %s",
                *(arm.name, late.rows, window, names),
            )

    def _ids(self, arm: Arm, window: Window) -> Iterator[Ids]:
        checker = RowChecker(self._schema, True, newest_us=window.start_us)
        for batch in self._source.read(window):
            rows = checker.check(batch)
            if rows.num_rows:
                yield self._ids_of(arm, rows)

    def _ids_of(self, arm: Arm, rows: pa.RecordBatch) -> Ids:
        ids: Ids = rows.column(self._schema.example_id).to_numpy(zero_copy_only=False).astype(np.int64)
        picked = rows_where(rows, arm.config.where, self._columns)
        return ids if picked is None else ids[picked.numpy()]


def overlaps(part: StreamPart, window: Window) -> bool:
    """Whether a part of the stream may have rows of a window."""
    return part.first_us < window.end_us and part.last_us >= window.start_us


def earlier_words(source: DataSource, grid: WindowGrid, span: TimeRange) -> str:
    """Says that a stream begins earlier than its run did, which part does, and what to do."""
    part = next((part.name for part in source.parts() if span.start_us <= part.first_us < grid.origin_us), "")
    origin = grid.window(0)
    return (
        f"stream: it begins at {utc(span.start_us)} now{f' ({part})' if part else ''}, before the run's "
        f"first window, {origin}: no model of this run can train on such rows any more. Leave them out with "
        f"stream.start={origin}, or train on them in another run_dir"
    )
