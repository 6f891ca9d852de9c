"""Streams the ad impressions of Avazu in the order of the file."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

import exfm
from exfm.sources import DelimitedFile
from exfm_plugins.sources.avazu.downloads import DOWNLOADS
from exfm_plugins.sources.avazu.hours import HOUR_US, HourStarts, hour_times

# Number of distinct values of each column in the released file.
CARDINALITY = {
    "C1": 7, "banner_pos": 7, "site_id": 4_737, "site_domain": 7_745, "site_category": 26, "app_id": 8_552,
    "app_domain": 559, "app_category": 36, "device_id": 2_686_408, "device_ip": 6_729_486, "device_model": 8_251,
    "device_type": 5, "device_conn_type": 4, "C14": 2_626, "C15": 8, "C16": 9, "C17": 435, "C18": 4, "C19": 68,
    "C20": 172, "C21": 60,
}  # fmt: skip
_COLUMNS = {"click": pa.int8(), "hour": pa.int64()} | dict.fromkeys(CARDINALITY, pa.string())
_WHOLE = exfm.sources.Shard()


class Avazu(exfm.DataSource):
    """Streams ``train.csv`` of Avazu's click-through challenge: 40.4 million mobile ad impressions of ten days.

    Columns are as published (kaggle.com/c/avazu-ctr-prediction): ``id, click, hour, C1, banner_pos, site_id, ...,
    C14-C21``; ``hour`` is YYMMDDHH, UTC. Rows are in the released order, which is their order in time. The time of a
    row is the beginning of its hour, so windows consist of whole hours. ``example_id`` is the row's number in the file.
    Ids are hashed, each column into some four times as many rows as it has values. There is no history, because the
    data names no user. ``device_ip`` is the closest substitute and groups the rows; ``banner_pos`` is the domain.

    The first use reads the file once to find the beginning of each hour, in constant memory.

    Raises:
        ValueError: there is no such file, it lacks a column, or a line cannot be read.
    """

    name: ClassVar[str] = "avazu"
    downloads: ClassVar[tuple[exfm.sources.Download, ...]] = DOWNLOADS

    class Config(exfm.ComponentConfig):
        """Configures the location of the file, and the size of tables."""

        path: str = Field(description="The released train.csv, unpacked; any fsspec URL.")
        table_rows: int = Field(
            262_144, gt=0, description="The most rows of a table; device_ip and device_id have more values than that."
        )

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def schema(self) -> exfm.schema.FeatureSchema:
        """Returns all released columns, hour of the day and day of the week."""
        # Four rows per value: about a fifth of the values then share a row.
        rows = self.config.table_rows
        ids = (exfm.schema.CategoricalFeature(name=n, rows=min(4 * c, rows)) for n, c in CARDINALITY.items())
        return exfm.schema.FeatureSchema(
            group="device_ip",
            domain="banner_pos",
            features=(
                *ids,
                exfm.schema.CategoricalFeature(name="hour_of_day", rows=24, ids="row"),
                exfm.schema.CategoricalFeature(name="weekday", rows=7, ids="row"),
            ),
            labels=(exfm.schema.Label(name="click"),),
        )

    def time_range(self) -> exfm.sources.TimeRange:
        """Returns the range from the beginning of the first hour to the end of the last."""
        times = self._starts.times
        if not times:
            raise ValueError(f"avazu: path: {self.config.path!r} holds no rows")
        return exfm.sources.TimeRange(times[0], times[-1] + HOUR_US)

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a window's hours; row i of the window belongs to shard ``i % count``."""
        first, end = self._starts.rows(window)
        rows = self._file.read(first, end)
        return exfm.sources.slice_rows(map(_finish, rows), shard)

    @cached_property
    def _file(self) -> DelimitedFile:
        return DelimitedFile(self.config.path, _COLUMNS, owner="avazu", header=True)

    @cached_property
    def _starts(self) -> HourStarts:
        return HourStarts(self._file.read(0, self._file.rows, ["hour"]))


def _finish(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Adds example id, time, hour of the day and day of the week to a batch of the file."""
    origin = exfm.sources.Origin.from_batch(batch)
    time_B = hour_times(batch)
    hours_B = time_B // HOUR_US
    columns = dict(zip(batch.schema.names, batch.columns, strict=True)) | {
        "example_id": np.arange(origin.row, origin.row + batch.num_rows),
        "event_time": pa.array(time_B).view(pa.timestamp("us")),
        "hour_of_day": (hours_B % 24).astype(np.int8),
        # 1 January 1970 was a Thursday; 0 is Monday.
        "weekday": ((hours_B // 24 + 3) % 7).astype(np.int8),
    }
    return origin.mark(pa.RecordBatch.from_pydict(columns))
