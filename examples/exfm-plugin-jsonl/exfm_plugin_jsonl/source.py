"""Logs of JSON lines as a data source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

import exfm
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from exfm_plugin_jsonl.files import find_files, read_file, read_types, version_of

_WHOLE = exfm.Shard()
_TIME = pa.timestamp("us", "UTC")


@dataclass(frozen=True)
class _File:
    """A file's URL, its version, and the times of its first and last row, microseconds."""

    url: str
    version: str
    first_us: int
    last_us: int


class JsonlSource(exfm.DataSource):
    """JSON lines, one example a line, in order of time: a file, a pattern or a folder at any fsspec URL.

    Files ending in ``.gz``, ``.zst`` or ``.bz2`` are unpacked as they are read. Fields of nested objects are columns,
    such as ``user.id``. Times are ISO 8601 text. Files are in order of time by name; all are read once to know their
    times, and again when they have changed; for a window those that it touches are read, a block at a time. New files
    and lines are seen.

    Args:
        config: see ``Config``.

    Raises:
        ValueError: there is no file, a file is not JSON lines, lacks the time's column, or goes back in time.
    """

    name: ClassVar[str] = "jsonl"

    class Config(exfm.ComponentConfig):
        """Where the log is, and what a line holds."""

        path: str = Field(description="File, pattern or folder; any fsspec URL.")
        features: tuple[exfm.Feature, ...] = Field(min_length=1, description="What a model may see.")
        labels: tuple[exfm.Label, ...] = Field(min_length=1, description="What a model may predict: one task each.")
        example_id: str = Field("example_id", description="Column of a 64-bit integer that is unique in the log.")
        event_time: str = Field("event_time", description="Column of the time, ISO 8601 text; lines are ordered by it.")
        group: str = Field("", description="Column whose values group examples for GAUC and intervals.")

        @model_validator(mode="after")
        def _is_a_schema(self) -> JsonlSource.Config:
            self.as_schema()
            return self

        def as_schema(self) -> exfm.FeatureSchema:
            """What a row holds."""
            return exfm.FeatureSchema(
                example_id=self.example_id,
                event_time=self.event_time,
                group=self.group,
                features=self.features,
                labels=self.labels,
            )

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._cached: dict[str, _File | None] = {}

    def schema(self) -> exfm.FeatureSchema:
        """As the config says."""
        return self.config.as_schema()

    def time_range(self) -> exfm.TimeRange:
        """From the first line to the last."""
        files = self._files()
        return exfm.TimeRange(files[0].first_us, files[-1].last_us + 1)

    def parts(self) -> list[exfm.StreamPart]:
        """The files."""
        return [exfm.StreamPart(file.url, file.version, file.first_us, file.last_us) for file in self._files()]

    def next_event_us(self, from_us: int) -> int | None:
        """The time, or that of the first file after it: within a file's time there may be an event at any."""
        later = [file for file in self._files() if file.last_us >= from_us]
        return max(from_us, later[0].first_us) if later else None

    def read(self, window: exfm.Window, shard: exfm.Shard = _WHOLE, start_row: int = 0) -> Iterator[pa.RecordBatch]:
        """A window's lines."""
        return exfm.slice_rows(self._rows_of(window), shard, start_row)

    def _rows_of(self, window: exfm.Window) -> Iterator[pa.RecordBatch]:
        for file in self._files():
            if file.last_us < window.start_us or file.first_us >= window.end_us:
                continue
            for block in read_file(file.url, self._types):
                start, end = np.searchsorted(self._times(block), [window.start_us, window.end_us]).tolist()
                if end > start:
                    origin = exfm.Origin.of(block)
                    yield exfm.Origin(origin.file, origin.row + start).mark(block.slice(start, end - start))
                if end < block.num_rows:
                    break

    def _times(self, block: pa.RecordBatch) -> NDArray[np.int64]:
        column, origin = self.config.event_time, exfm.Origin.of(block)
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
        numbers = [feature.source_column for feature in self.config.features if isinstance(feature, exfm.DenseFeature)]
        known = [(self.config.event_time, _TIME), *((name, pa.float64()) for name in numbers if "." not in name)]
        return read_types(find_files(self.config.path)[0], pa.schema(known))

    def _files(self) -> list[_File]:
        """The files that have lines, as they are now."""
        files: list[_File] = []
        for url in find_files(self.config.path):
            file = self._file(url)
            if file and files and file.first_us < files[-1].last_us:
                raise ValueError(f"jsonl: {url} begins before the end of {files[-1].url}; names are in order of time")
            if file:
                files.append(file)
        if not files:
            raise ValueError(f"jsonl: {self.config.path} has no lines")
        return files

    def _file(self, url: str) -> _File | None:
        """What is known of a file; it is read where it has changed since. None where it has no lines."""
        version, cached = version_of(url), self._cached.get(url)
        if cached is None or cached.version != version:
            times = [self._times(block)[[0, -1]].tolist() for block in read_file(url, self._types) if block.num_rows]
            if any(later[0] < earlier[1] for earlier, later in pairwise(times)):
                raise ValueError(f"jsonl: {url}: {self.config.event_time} goes back in time")
            self._cached[url] = cached = _File(url, version, times[0][0], times[-1][1]) if times else None
        return cached
