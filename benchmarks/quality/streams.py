"""The beginning of a stream: whole windows, as the figures of a run skip them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import pyarrow as pa

import exfm
from exfm.data.windows import stream_windows

_WHOLE = exfm.sources.Shard()


class Beginning(exfm.DataSource):
    """Another source up to a time."""

    name = "beginning"

    def __init__(self, source: exfm.DataSource, end_us: int) -> None:
        super().__init__(source.config)
        self.source = source
        self.end_us = end_us

    def schema(self) -> exfm.schema.FeatureSchema:
        """The source's."""
        return self.source.schema()

    def time_range(self) -> exfm.sources.TimeRange:
        """The source's, cut."""
        whole = self.source.time_range()
        return exfm.sources.TimeRange(whole.start_us, min(whole.end_us, self.end_us))

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """The source's rows."""
        return self.source.read(window, shard)


def beginning(experiment: exfm.Experiment, end_us: int | None) -> exfm.Experiment:
    """The same experiment on the stream up to a time; all of it where there is none."""
    return experiment if end_us is None else replace(experiment, source=Beginning(experiment.source, end_us))


def rows_by_window(experiment: exfm.Experiment) -> list[tuple[exfm.sources.Window, int]]:
    """All windows of the stream, each with its number of rows: reads them once."""
    source = experiment.source
    windows = stream_windows(source, experiment.config.stream.window)
    return [(window, sum(batch.num_rows for batch in source.read(window))) for window in windows]


def end_of_rows(windows: Sequence[tuple[exfm.sources.Window, int]], rows: int) -> int:
    """The end of the window in which so many rows are reached, or of the stream."""
    reached = accumulate(count for _, count in windows)
    ends = (window.end_us for (window, _), seen in zip(windows, reached, strict=True) if seen >= rows)
    return next(ends, windows[-1][0].end_us)


def first_scored(windows: Sequence[tuple[exfm.sources.Window, int]], skip: float) -> int:
    """Where the figures of a run over these windows begin, by the rule of ``evaluation.skip``."""
    total, before = sum(count for _, count in windows), 0
    for window, count in windows:
        if before >= skip * total:
            return window.start_us
        before += count
    return windows[-1][0].start_us
