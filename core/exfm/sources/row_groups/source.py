"""Streams Parquet files, reading the row groups of a window.

Legend: R rows of a row group, B rows of a batch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from exfm.errors import NotYetError
from exfm.interfaces.data_source import (
    DataSource,
    NeededRows,
    Origin,
    Shard,
    StreamPart,
    TimeRange,
    Window,
)
from exfm.interfaces.schema import FeatureSchema
from exfm.sources.row_groups.files import RowGroupFiles
from exfm.sources.row_groups.interleave import Batches, interleave
from exfm.sources.row_groups.order import GroupIndex, PlacedGroup, StreamFile, kept_rows
from exfm.sources.row_groups.portions import portion
from exfm.sources.row_groups.pruning import is_needed
from exfm.sources.row_groups.read_ahead import AHEAD_BYTES, ReadAhead
from exfm.sources.row_groups.rows import filled_times, pick_rows, with_file_columns
from exfm.sources.schema_config import SchemaConfig
from exfm.sources.times import TimeUnit

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_WHOLE = Shard()
_TIMES_KEPT = 8
"""Row groups whose times are kept in memory."""


class RowGroupSource(DataSource):
    """Base of sources whose rows are in Parquet files, with the schema of the experiment file.

    A derived class lists and opens the files (``open_files``). Each row belongs to the window of its time, wherever it
    lies: files may overlap, and their rows may be in any order. A window reads the row groups whose statistics overlap
    it, and only the schema's columns, many at once where they overlap in time. A row without a time counts at the row
    before it, so that the core reports it with its file and row. Processes of a job read different row groups.

    ``time_range`` and ``parts`` list the files; between two listings, reads use the files of the last listing.
    """

    in_order: ClassVar[bool] = False
    splits: ClassVar[bool] = True
    free_fields: ClassVar[frozenset[str]] = frozenset({"batch_rows", "decode_threads"})

    class Config(SchemaConfig):
        """Configures how the files are read, and the schema of their rows; derived classes add where the files are."""

        time_unit: TimeUnit = Field(
            "timestamp", description="timestamp: event_time is an Arrow timestamp; or what it counts since 1970, UTC."
        )
        batch_rows: int = Field(8192, gt=0, description="The most rows that are decoded at once.")
        decode_threads: int = Field(
            1, gt=0, description="Threads that decode row groups; of several, they work ahead of the job's reader."
        )

    config: Config

    @property
    @abstractmethod
    def location(self) -> str:
        """Returns where the files are, for messages: the field of the Config, and its value."""

    @abstractmethod
    def open_files(self) -> RowGroupFiles:
        """Returns the files of the stream; nothing is read."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._placed: tuple[tuple[StreamFile, ...], GroupIndex] | None = None
        # Windows ask for the same groups repeatedly.
        self._kept_times: dict[PlacedGroup, NDArray[np.int64]] = {}
        self._readers: tuple[NeededRows, ...] = ()

    def schema(self) -> FeatureSchema:
        """Returns the configured schema."""
        return self.config.feature_schema()

    def time_range(self) -> TimeRange:
        """Returns the range from the first to the last event, by the files' statistics."""
        files = self._files.look()
        if not files:
            raise NotYetError(f"{self.name}: the files of {self.location} have no rows")
        if not any(group.bounds for file in files for group in file.groups):
            column = self.config.event_time
            raise ValueError(f"{self.name}: column {column!r} is empty in every file of {self.location}")
        return TimeRange(files[0].first_us, max(file.last_us for file in files) + 1)

    def parts(self) -> Sequence[StreamPart]:
        """Returns the files that have rows."""
        files = self._files.look()
        return [StreamPart(file.path, file.version, file.first_us, file.last_us) for file in files]

    def next_event_us(self, from_us: int) -> int | None:
        """Returns the first event at or after a time, by the row groups' statistics.

        Only the row groups that contain the time are read, and none where they are many: events are dense there.
        """
        following_us = self._index.next_first_us(from_us)
        spanning = [group for group in self._index.overlapping(from_us, from_us + 1) if group.first_us < from_us]
        if len(spanning) > _TIMES_KEPT:
            return from_us
        for group in spanning:
            sorted_R = self._sorted_times(group)
            # Not beyond the end, which the group's last event is not before.
            time_us = int(sorted_R[np.searchsorted(sorted_R, from_us)])
            following_us = time_us if following_us is None else min(following_us, time_us)
        return following_us

    def select(self, schema: FeatureSchema) -> Self:
        """Returns the stream with fewer columns."""
        return self._copy(self.config.with_schema(schema), self._readers)

    def select_rows(self, readers: Sequence[NeededRows]) -> Self:
        """Returns the stream for readers that need only some rows: of other row groups, only the keys are read.

        Statistics of a row group tell that no reader needs its rows, or values that all rows of its file have.
        """
        return self._copy(self.config, tuple(readers))

    def _copy(self, config: Config, readers: tuple[NeededRows, ...]) -> Self:
        source = type(self)(config)
        source._readers = readers
        return source

    def read(self, window: Window, shard: Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """Yields a window's rows with the schema's columns; ``event_time`` in microseconds whatever the file has.

        A shard has every row of some of the row groups.
        """
        groups = portion(self._index.overlapping(window.start_us, window.end_us), shard)
        return self._window(window, groups)

    @cached_property
    def _files(self) -> RowGroupFiles:
        return self.open_files()

    @property
    def _index(self) -> GroupIndex:
        """Returns the row groups of the files as of the last look."""
        files = self._files.last_seen()
        # Computed again only after a look, which returns another tuple.
        if self._placed is None or self._placed[0] is not files:
            self._placed = files, GroupIndex(files)
        return self._placed[1]

    def _time_column(self, group: PlacedGroup, file: pq.ParquetFile) -> pa.Array:
        """Reads the times of a row group."""
        [name] = group.file.stored_names([self.config.event_time])
        batches = file.iter_batches(row_groups=[group.index], columns=[name])
        return pa.chunked_array([batch.column(0) for batch in batches]).combine_chunks()

    def _sorted_times(self, group: PlacedGroup) -> NDArray[np.int64]:
        """Returns the times of a row group, sorted; those of the groups that were asked for last are kept."""
        sorted_R = self._kept_times.pop(group, None)
        if sorted_R is None:
            with self._files.open(group.file.path) as file:
                sorted_R = np.sort(
                    filled_times(self._time_column(group, file), self.config.time_unit, group.first_us)[1]
                )
        self._kept_times[group] = sorted_R
        while len(self._kept_times) > _TIMES_KEPT:
            del self._kept_times[next(iter(self._kept_times))]
        return sorted_R

    def _window(self, window: Window, groups: Sequence[PlacedGroup]) -> Iterator[pa.RecordBatch]:
        with ExitStack() as stack:
            if self.config.decode_threads == 1:
                read = self._one_by_one(window, stack)
            else:
                decode = self._in_threads(window)
                read = stack.enter_context(ReadAhead(groups, decode, self.config.decode_threads, AHEAD_BYTES)).read
            for batch, next_us in interleave(groups, read, window.start_us, window.end_us):
                origin = replace(Origin.from_batch(batch), next_us=next_us)
                yield origin.mark(batch)

    def _one_by_one(self, window: Window, stack: ExitStack) -> Callable[[PlacedGroup], Batches]:
        """Returns a function that reads a row group; files are closed with the stack."""
        files: dict[str, pq.ParquetFile] = {}

        def read(group: PlacedGroup) -> Batches:
            # A file is opened once for its row groups in the window, because opening reads the footer.
            path = group.file.path
            if path not in files:
                files[path] = stack.enter_context(self._files.open(path))
            return self._group(files[path], group, window)

        return read

    def _in_threads(self, window: Window) -> Callable[[PlacedGroup], Batches]:
        """Returns a function that reads a row group in any thread."""
        footers: dict[str, pq.FileMetaData] = {}

        def read(group: PlacedGroup) -> Batches:
            path = group.file.path
            # Opened for each row group, because Arrow's reader of a file is for a thread.
            with self._files.open(path, footers.get(path)) as file:
                footers[path] = file.metadata
                yield from self._group(file, group, window)

        return read

    def _group(self, file: pq.ParquetFile, group: PlacedGroup, window: Window) -> Batches:
        """Yields the rows of a row group that belong to the window."""
        # The times come first, and alone: they say whether the rows are in order, and which batches have some.
        event_time, time_R = filled_times(self._time_column(group, file), self.config.time_unit, group.first_us)
        inside_R = (time_R >= window.start_us) & (time_R < window.end_us)
        if group.file.kept_R is not None:
            inside_R &= kept_rows(group.file.kept_R, group.first_row, inside_R.size)
        is_sorted = bool((np.diff(time_R) >= 0).all())
        keys_only = not is_needed(self._readers, file, group)
        others = [column for column in self._columns(keys_only) if column != self.config.event_time]
        stored = group.file.stored_names(others)
        start = 0
        for batch in file.iter_batches(self.config.batch_rows, row_groups=[group.index], columns=list(stored)):
            rows = slice(start, start + batch.num_rows)
            if inside_R[rows].any():
                times = event_time.slice(start, batch.num_rows)
                if group.file.names is not None:
                    batch = batch.rename_columns([stored[name] for name in batch.schema.names])
                batch = batch.append_column(self.config.event_time, times)
                batch = self._files.complete(
                    with_file_columns(batch, group.file, others), group.file, group.first_row + start
                )
                first_us = max(group.first_us, window.start_us)
                if is_sorted:
                    first_us = int(time_R[rows][inside_R[rows].argmax()])
                origin = Origin(group.file.path, group.first_row + start, keys_only=keys_only)
                yield first_us, pick_rows(batch, inside_R[rows], origin)
            start = rows.stop
            if is_sorted and not inside_R[start:].any():
                return

    def _columns(self, keys_only: bool) -> Sequence[str]:
        """Returns the columns to read: all, or those of rows that no reader needs."""
        if not keys_only:
            return self.config.columns
        keys = {self.config.example_id, self.config.event_time}.union(*self._readers)
        return [column for column in self.config.columns if column in keys]
