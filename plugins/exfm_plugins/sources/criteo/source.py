"""Streams Criteo's display ads in the released order."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

import exfm
from exfm.sources import DelimitedFile
from exfm_plugins.sources.criteo.downloads import DOWNLOADS
from exfm_plugins.sources.criteo.releases import CARDINALITY, DayFile, ReleaseName, find_files

_INTEGERS = tuple(f"I{number}" for number in range(1, 14))
_IDS = tuple(f"C{number}" for number in range(1, 27))
_COLUMNS = {"click": pa.int8()} | dict.fromkeys(_INTEGERS, pa.int64()) | dict.fromkeys(_IDS, pa.string())
_DAY_US, _DAY_MS = 86_400_000_000, 86_400_000
# Example ids of day d begin at d << 40: 2^40 exceeds the rows of any day, and 23 bits are left for days.
_DAY_BITS = 40
_WHOLE = exfm.sources.Shard()


class Criteo(exfm.DataSource):
    """Streams Criteo's display ads: the challenge's ``train.txt``, or the click logs' ``day_0`` to ``day_23``.

    Columns are as published (kaggle.com/c/criteo-display-ad-challenge/data, ailab.criteo.com), separated by tabs and
    without a header: the label, 13 integers (I1 to I13), 26 hashed categories (C1 to C26). A missing integer reads as
    0, a missing category as a missing id. Categories are hashed, each column into some four times as many rows as it
    has values.

    **Times are assigned**, because the files have no times. Their rows are in the order of time: ``train.txt`` covers
    7 days, each ``day_N`` a day. Row i of a file's n rows is at the fraction i/n of the file's days, to the
    millisecond, and day 0 is 1 January 1970. Rows are spread evenly, so hours of the day have no meaning.
    ``example_id`` is (day << 40) + the row's number.

    The first use of a file reads it once to count its rows, in constant memory.

    Raises:
        ValueError: the path holds neither release, a day is missing, or a line cannot be read.
    """

    name: ClassVar[str] = "criteo"
    downloads: ClassVar[tuple[exfm.sources.Download, ...]] = DOWNLOADS

    class Config(exfm.ComponentConfig):
        """Configures the location of the files, and the size of tables."""

        path: str = Field(description="train.txt or a day_N, unpacked, or the folder with either; any fsspec URL.")
        release: ReleaseName = Field(
            "challenge", description="challenge: train.txt, of seven days. click_logs: the files day_0 to day_23."
        )
        table_rows: int = Field(262_144, gt=0, description="The most rows of a table; several have more values.")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def schema(self) -> exfm.schema.FeatureSchema:
        """Returns I1 to I13, on a logarithmic scale, and C1 to C26."""
        sizes = [min(4 * values, self.config.table_rows) for values in CARDINALITY[self.config.release]]
        return exfm.schema.FeatureSchema(
            features=(
                *(exfm.schema.DenseFeature(name=name, transform="log1p") for name in _INTEGERS),
                *(exfm.schema.CategoricalFeature(name=n, rows=rows) for n, rows in zip(_IDS, sizes, strict=True)),
            ),
            labels=(exfm.schema.Label(name="click"),),
        )

    def time_range(self) -> exfm.sources.TimeRange:
        """Returns the days of the files, without reading them."""
        first, last = self._day_files[0], self._day_files[-1]
        return exfm.sources.TimeRange(first.first_day * _DAY_US, (last.first_day + last.days) * _DAY_US)

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """Yields a window's rows; row i of the window belongs to shard ``i % count``."""
        return exfm.sources.slice_rows(self._window(window), shard)

    @cached_property
    def _day_files(self) -> tuple[DayFile, ...]:
        return find_files(self.config.path, self.config.release)

    @cached_property
    def _contents(self) -> list[tuple[DayFile, DelimitedFile]]:
        files = []
        for day_file in self._day_files:
            files.append((day_file, DelimitedFile(day_file.url, _COLUMNS, owner="criteo", delimiter="\t")))
        return files

    def _window(self, window: exfm.sources.Window) -> Iterator[pa.RecordBatch]:
        """Yields the window's rows, file by file."""
        for day_file, file in self._contents:
            start_us = day_file.first_day * _DAY_US
            end_us = start_us + day_file.days * _DAY_US
            # Skip other days before counting rows, because counting reads the whole file.
            if window.start_us < end_us and window.end_us > start_us:
                rows = file.rows
                first = _first_row(day_file, rows, window.start_us)
                end = _first_row(day_file, rows, window.end_us)
                for batch in file.read(first, end):
                    yield _finish(batch, day_file, rows)


def _first_row(day_file: DayFile, rows: int, time_us: int) -> int:
    """Returns the first row of a file at or after a time."""
    # Rounds up twice (-(-a // b) is the ceiling): the inverse of rounding down in `_finish`.
    since_ms = -(-time_us // 1000) - day_file.first_day * _DAY_MS
    return min(max(-(-since_ms * rows // (day_file.days * _DAY_MS)), 0), rows)


def _finish(batch: pa.RecordBatch, day_file: DayFile, rows: int) -> pa.RecordBatch:
    """Adds times and ids to a batch, and replaces missing integers by 0."""
    origin = exfm.sources.Origin.from_batch(batch)
    row_B = np.arange(origin.row, origin.row + batch.num_rows)
    # Milliseconds, because rows times microseconds of seven days would overflow 64 bits.
    time_B = day_file.first_day * _DAY_US + row_B * (day_file.days * _DAY_MS) // rows * 1000
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns |= {name: pc.fill_null(columns[name], 0) for name in _INTEGERS}
    columns |= {
        "example_id": (day_file.first_day << _DAY_BITS) + row_B,
        "event_time": pa.array(time_B).view(pa.timestamp("us")),
    }
    return origin.mark(pa.RecordBatch.from_pydict(columns))
