"""Logs of JSON lines as a data source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import exfm
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from exfm_plugin_jsonl.files import find_files, read_file, read_types

_WHOLE = exfm.sources.Shard()
_TIME = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class _File:
    """A file's URL and version, and the times of its first and last row, microseconds."""

    url: str
    version: str
    first_us: int
    last_us: int


class JsonlSource(exfm.DataSource):
    """JSON lines, an example a line, in order of time: a file, a pattern or a folder at any fsspec URL.

    Files ending in ``.gz``, ``.zst`` or ``.bz2`` are unpacked as they are read. Fields of nested objects are columns,
    such as ``user.id``. Times are ISO 8601 text. Files follow each other in time, whatever their names; each is read
    once to know its times, again where it has grown, and for a window those that it touches, a block at a time.

    Args:
        config: see ``Config``.

    Raises:
        ValueError: there is no file, a file is not JSON lines, lacks the time's column, or goes back in time.
    """

    name: ClassVar[str] = "jsonl"

    class Config(exfm.ComponentConfig):
        """The log's path, and the contents of a line."""

        path: str = Field(description="File, pattern or folder; any fsspec URL.")
        features: tuple[exfm.schema.Feature, ...] = Field(min_length=1, description="The columns that a model may see.")
        labels: tuple[exfm.schema.Label, ...] = Field(
            min_length=1, description="The columns that a model may predict: a task each."
        )
        example_id: str = Field("example_id", description="Column of a 64-bit integer that is unique in the log.")
        event_time: str = Field("event_time", description="Column of the time, ISO 8601 text; lines are ordered by it.")
        group: str = Field("", description="Column whose values group examples for GAUC and intervals.")

        @model_validator(mode="after")
        def _is_a_schema(self) -> JsonlSource.Config:
            self.as_schema()
            return self

        def as_schema(self) -> exfm.schema.FeatureSchema:
            """The columns of a row."""
            return exfm.schema.FeatureSchema(
                example_id=self.example_id,
                event_time=self.event_time,
                group=self.group,
                features=self.features,
                labels=self.labels,
            )

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._files: list[_File] = []  # in order of time, as they were at the last look

    def schema(self) -> exfm.schema.FeatureSchema:
        """As the config says."""
        return self.config.as_schema()

    def time_range(self) -> exfm.sources.TimeRange:
        """From the first line to the last, of the files that there are now."""
        self._look()
        return exfm.sources.TimeRange(self._files[0].first_us, self._files[-1].last_us + 1)

    def parts(self) -> Sequence[exfm.sources.StreamPart]:
        """The files that have lines."""
        self._look()
        return [exfm.sources.StreamPart(file.url, file.version, file.first_us, file.last_us) for file in self._files]

    def next_event_us(self, from_us: int) -> int | None:
        """The time of the next line as far as files' first and last times say."""
        self._look_once()
        return next((max(file.first_us, from_us) for file in self._files if file.last_us >= from_us), None)

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """A window's lines."""
        return exfm.sources.slice_rows(self._rows_of(window), shard)

    def _rows_of(self, window: exfm.sources.Window) -> Iterator[pa.RecordBatch]:
        self._look_once()
        for file in self._files:
            if file.last_us < window.start_us or file.first_us >= window.end_us:
                continue
            for block in read_file(file.url, self._types):
                start, end = np.searchsorted(self._times(block), [window.start_us, window.end_us]).tolist()
                if end > start:
                    origin = exfm.sources.Origin.from_batch(block)
                    yield exfm.sources.Origin(origin.file, origin.row + start).mark(block.slice(start, end - start))
                if end < block.num_rows:
                    break

    def _times(self, block: pa.RecordBatch) -> NDArray[np.int64]:
        column, origin = self.config.event_time, exfm.sources.Origin.from_batch(block)
        if block[column].null_count:
            row = origin.row + block[column].is_null().index(True).as_py()
            raise ValueError(f"jsonl: {origin.file}, row {row}: {column} is missing")
        times: NDArray[np.int64] = block[column].cast(pa.int64()).to_numpy()
        back = np.flatnonzero(np.diff(times) < 0)
        if back.size:
            raise ValueError(f"jsonl: {origin.file}, row {origin.row + back[0] + 1}: {column} goes back in time")
        return times

    @cached_property
    def _types(self) -> pa.Schema:
        """The types of the first file's first block, in which all files are read: a column must keep its type."""
        numbers = [
            feature.source_column for feature in self.config.features if isinstance(feature, exfm.schema.DenseFeature)
        ]
        known = [(self.config.event_time, _TIME), *((name, pa.float64()) for name in numbers if "." not in name)]
        return read_types(next(iter(find_files(self.config.path))), pa.schema(known))

    def _look_once(self) -> None:
        if not self._files:
            self._look()

    def _look(self) -> None:
        """Finds the files, and reads those that have come or changed since the last look."""
        known = {(file.url, file.version): file for file in self._files}
        found = [known.get(one) or self._read_times(*one) for one in find_files(self.config.path).items()]
        files = sorted((file for file in found if file is not None), key=lambda file: (file.first_us, file.url))
        for earlier, later in pairwise(files):
            if later.first_us < earlier.last_us:
                raise ValueError(f"jsonl: {later.url} begins before the end of {earlier.url}: they overlap in time")
        if not files:
            raise exfm.components.NotYetError(f"jsonl: {self.config.path} has no lines")
        self._files = files

    def _read_times(self, url: str, version: str) -> _File | None:
        """A file with its times; nothing where it has no lines."""
        times = [self._times(block)[[0, -1]].tolist() for block in read_file(url, self._types) if block.num_rows]
        if any(later[0] < earlier[1] for earlier, later in pairwise(times)):
            raise ValueError(f"jsonl: {url}: {self.config.event_time} goes back in time")
        return _File(url, version, times[0][0], times[-1][1]) if times else None
