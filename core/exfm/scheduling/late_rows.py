"""Counts rows that came after their window had been committed, in late files, files that have grown, or back-fill.

Late rows are left out of training, because a model trains on each window once and in the order of time. They are
counted, named in a warning and in the report, and set aside in a file. A window is compared again only if its commit
does not name the present version of a part of the stream that overlaps it. Its examples are then compared with its
predictions.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exfm.config.checks import Arm, filter_columns
from exfm.config.loading import Experiment
from exfm.data.column_types import unify
from exfm.data.decode import example_ids, label_values, weights
from exfm.data.traffic import rows_where
from exfm.data.validation import RowChecker
from exfm.data.windows import WindowGrid, windows_with_events
from exfm.errors import RowsRemovedError
from exfm.interfaces.data_source import Origin, StreamPart, TimeRange, Window, utc
from exfm.interfaces.duration import microseconds_since_1970
from exfm.mappings import without
from exfm.storage.commits import NONE
from exfm.storage.late_log import LateLog, LateRows, first_names
from exfm.storage.workspace import LetGoError
from exfm.supervision.late_labels import PredictedLabels
from exfm.supervision.store import Store

_LONG_AGO = -(2**63)

logger = logging.getLogger(__name__)


class LateRowFinder:
    """Counts the late rows of models by comparing the stream with their committed windows.

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
        self._removed: set[int] = set()  # windows that cannot be read whole any more

    def count(self, grid: WindowGrid, span: TimeRange, parts: Sequence[StreamPart]) -> None:
        """Counts the late rows of parts of the stream that are new or have changed since the last call.

        Args:
            parts: all parts of the stream.
        """
        extents: list[_PartExtent] = []
        for extent in _extents(parts):
            if extent.version not in self._compared:
                extents.append(extent)
        for arm in self._arms:
            head = self._store.log.head("train", arm.name)
            if head != NONE and extents:
                chain = set(self._store.log.windows("train", arm.name))
                done = TimeRange(max(span.start_us, _first_us(arm, grid, chain)), grid.window(head).end_us)
                for window in self._changed(arm, grid, done, chain, extents):
                    if window.index not in self._removed:
                        self._count_if_there(arm, window, parts, window.index in chain)
        # Remembered per process: a new job compares once more, and reads the counts of earlier jobs.
        self._compared.update(extent.version for extent in extents)

    def _count_if_there(self, arm: Arm, window: Window, parts: Sequence[StreamPart], committed: bool) -> None:
        """Counts the late rows of a window, unless the store has removed others of its rows."""
        try:
            self._count(arm, window, parts, committed)
        except RowsRemovedError as error:
            # No error of the run, which has trained on the window: a broker keeps rows for some time only.
            if not self._removed:
                logger.warning("rows that have come late for window %s, and others, are not counted: %s", window, error)
            self._removed.add(window.index)

    def _changed(
        self, arm: Arm, grid: WindowGrid, done: TimeRange, chain: set[int], extents: list[_PartExtent]
    ) -> list[Window]:
        """Lists the committed windows that overlap a part whose version has changed since they were read."""
        changed: dict[int, Window] = {}
        read: dict[int, Mapping[str, str]] = {}
        counted = set(self._late.windows(arm.name))
        for extent in extents:
            for window in self._overlapping(extent, grid, done):
                index = window.index
                if index not in read:
                    read[index] = self._versions(arm, index, index in counted, index in chain)
                if read[index].get(extent.stream_part.name) != extent.stream_part.version:
                    changed[index] = window
        return [changed[index] for index in sorted(changed)]

    def _overlapping(self, extent: _PartExtent, grid: WindowGrid, done: TimeRange) -> Iterator[Window]:
        """Yields the committed windows that may hold rows of a part.

        Of a source in order, time goes back at the beginning of a part that overlaps earlier parts. It then yields the
        part's rows in the window that the earlier parts have reached.
        """
        stream_part = extent.stream_part
        common = TimeRange(max(stream_part.first_us, done.start_us), min(stream_part.last_us + 1, done.end_us))
        yield from windows_with_events(self._source, grid, common)
        if self._source.in_order and stream_part.last_us < extent.reached_us < done.end_us:
            yield grid.window(grid.index_at(extent.reached_us))

    def _versions(self, arm: Arm, index: int, counted: bool, committed: bool) -> Mapping[str, str]:
        """Returns the versions of a window's parts that were read or compared last."""
        if counted:
            late = self._late.read(arm.name, index)
            if late is not None:
                return late.parts
        if committed:
            return self._store.log.load("train", arm.name, index).read.parts
        return {}

    def _count(self, arm: Arm, window: Window, parts: Sequence[StreamPart], committed: bool) -> None:
        """Counts the examples of a window that were not predicted when it was committed.

        Labels of examples that were predicted may have become known since: they are kept for the figures.
        """
        versions = {stream_part.name: stream_part.version for stream_part in parts if overlaps(stream_part, window)}
        labels: PredictedLabels | None = None
        if committed and self._store.log.load("train", arm.name, window.index).files:
            try:
                labels = self._store.predicted_labels(arm.name, window)
            except LetGoError as error:
                logger.warning("rows that have come late for window %s are not counted: %s", window, error)
                return
        before = self._late.read(arm.name, window.index) or LateRows(window, {}, {})
        rows, aside = self._new_rows(arm, window, labels)
        if labels is not None and labels.differ:
            self._store.late_labels.write(arm.name, window.index, labels.changed())
        file = before.file
        # Late rows of a part that is gone again stay counted.
        gone = without(before.rows, *versions)
        if aside:
            file = self._set_aside(arm, before, rows, gone, aside)
        else:
            rows = gone
        late = LateRows(window, rows, versions, file)
        self._late.write(arm.name, late)
        if late.count > before.count:
            logger.warning(
                "%s: %d rows of window %s have come after it was committed, and are not read: %s; they are set aside "
                "in %s",
                *(arm.name, late.count, window, first_names(rows), self._store.workspace.name(file)),
            )

    def _new_rows(
        self, arm: Arm, window: Window, labels: PredictedLabels | None
    ) -> tuple[dict[str, int], list[pa.RecordBatch]]:
        """Reads a window again; returns its rows that were not predicted, and their number by part.

        Args:
            labels: takes the labels of the rows that were predicted.
        """
        seen = np.zeros(0, np.int64) if labels is None else labels.example_ids
        rows: dict[str, int] = {}
        aside: list[pa.RecordBatch] = []
        for name, read, whole in self._rows(arm, window):
            if labels is not None:
                labels.add(read)
            ids = read.column("example_id").to_numpy()
            new = np.setdiff1d(ids, seen)
            # Added, so that an example in two parts is counted for the first.
            seen = np.concatenate([seen, new])
            if new.size:
                rows[name] = rows.get(name, 0) + int(new.size)
                aside.append(whole.filter(pa.array(np.isin(ids, new))))
        return rows, aside

    def _set_aside(
        self,
        arm: Arm,
        before: LateRows,
        rows: dict[str, int],
        gone: Mapping[str, int],
        aside: list[pa.RecordBatch],
    ) -> str:
        """Writes late rows into a file in place of that before; returns its path.

        Args:
            before: the late rows of the window as they were counted last.
            rows: the number of late rows by part. Those of parts that are gone are added.
            gone: their number by part that is gone, as they were counted last.
            aside: the late rows.
        """
        if before.file:
            id_column = self._schema.example_id
            kept = self._late.read_aside(before)
            here = np.concatenate([batch.column(id_column).to_numpy() for batch in aside])
            kept = kept.filter(pa.array(~np.isin(kept.column(id_column).to_numpy(), here)))
            # A part that is gone may have come back under another name: only its rows that are nowhere else count.
            if kept.num_rows and gone:
                name = next(iter(gone))
                rows[name] = rows.get(name, 0) + kept.num_rows
                aside = [*aside, *kept.combine_chunks().to_batches()]
        file = self._late.set_aside(arm.name, before.window.index, pa.Table.from_batches(unify(aside)))
        if before.file not in ("", file):
            self._store.workspace.remove_file(before.file)
        return file

    def _rows(self, arm: Arm, window: Window) -> Iterator[tuple[str, pa.Table, pa.RecordBatch]]:
        """Yields, for each batch of a window, its part's name, and of a model's examples ids, labels and whole rows."""
        for batch in self._source.read(window):
            # A checker for each batch, because a late part goes back in time, which makes none of its rows bad.
            checker = RowChecker(self._schema, True, newest_us=_LONG_AGO, in_order=self._source.in_order)
            rows = checker.check(batch)
            if rows.num_rows:
                columns: dict[str, npt.NDArray[np.generic]] = {"example_id": example_ids(rows, self._schema)}
                for label in self._schema.labels:
                    if label.name in arm.tasks:
                        columns[f"label_{label.name}"] = label_values(rows, label)
                for name, weight_B in weights(rows, self._schema).items():
                    if name in arm.tasks:
                        columns[f"weight_{name}"] = weight_B
                table = pa.table(columns)
                picked = rows_where(rows, arm.config.where, self._columns, self._schema.example_id)
                if picked is not None:
                    table = table.take(pa.array(picked.numpy()))
                    rows = rows.take(pa.array(picked.numpy()))
                yield Origin.from_batch(batch).file, table, rows.replace_schema_metadata(None)


@dataclass(frozen=True)
class _PartExtent:
    """A part of the stream, and the time that the parts before it have reached."""

    stream_part: StreamPart
    reached_us: int

    @property
    def version(self) -> tuple[str, str]:
        """Returns the name and the version of the part."""
        return self.stream_part.name, self.stream_part.version


def _first_us(arm: Arm, grid: WindowGrid, chain: Collection[int]) -> int:
    """Returns the beginning of a model's first window: rows before it are left to other models, and are not late."""
    config = arm.config
    if config.start is not None:
        return grid.window(grid.index_at(microseconds_since_1970(config.start) - 1) + 1).start_us
    # A model that starts from another starts where that stands; its first commit says where that was.
    return grid.window(min(chain)).start_us if config.init_from is not None else grid.origin_us


def _extents(parts: Sequence[StreamPart]) -> Iterator[_PartExtent]:
    """Yields the parts in the order in which a source reads them."""
    reached_us = _LONG_AGO
    for stream_part in sorted(parts, key=lambda stream_part: (stream_part.first_us, stream_part.name)):
        yield _PartExtent(stream_part, reached_us)
        reached_us = max(reached_us, stream_part.last_us)


def overlaps(stream_part: StreamPart, window: Window) -> bool:
    """Returns whether a part of the stream may have rows of a window."""
    return stream_part.first_us < window.end_us and stream_part.last_us >= window.start_us


def earlier_start_message(parts: Sequence[StreamPart], grid: WindowGrid, span: TimeRange) -> str:
    """Explains that a stream begins before its run, names the part, and advises a remedy."""
    early = ""
    for stream_part in parts:
        if span.start_us <= stream_part.first_us < grid.origin_us:
            early = f" ({stream_part.name})"
            break
    origin = grid.window(0)
    return (
        f"stream: it begins at {utc(span.start_us)} now{early}, before the run's first window, "
        f"{origin}: no model of this run can train on such rows any more. Leave them out with stream.start={origin}, "
        "or train on them in another run_dir"
    )
