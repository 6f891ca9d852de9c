"""A data source: a time-ordered stream of examples as Arrow record batches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import exfm
import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv
from pydantic import Field, PositiveInt

_WHOLE = exfm.Shard()
_SECOND = 1_000_000
_TYPES = {"id": pa.int64(), "time": pa.timestamp("s"), "user": pa.string(), "item": pa.string(), "click": pa.int8()}


class XSource(exfm.DataSource):
    """Clicks from a CSV file with the columns id, time, user, item and click, in order of time. Put your logs here.

    For each window the file is read from its beginning to the window's end, a block at a time.

    Raises:
        ValueError: the file cannot be read, lacks a column, or has no rows.
    """

    name: ClassVar[str] = "x"

    class Config(exfm.ComponentConfig):
        """Fields of `x`."""

        path: str = Field(description="The CSV file, any fsspec URL.")
        users: PositiveInt = Field(100_000, description="Rows of the users' table, into which ids are hashed.")
        items: PositiveInt = Field(100_000, description="Rows of the items' table, into which ids are hashed.")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def schema(self) -> exfm.FeatureSchema:
        """A user, an item, and the click."""
        return exfm.FeatureSchema(
            example_id="id",
            event_time="time",
            group="user",
            features=(
                exfm.CategoricalFeature(name="user", rows=self.config.users),
                exfm.CategoricalFeature(name="item", rows=self.config.items),
            ),
            labels=(exfm.Label(name="click"),),
        )

    def time_range(self) -> exfm.TimeRange:
        """From the first row to the last."""
        return self._time_range

    def read(self, window: exfm.Window, shard: exfm.Shard = _WHOLE, start_row: int = 0) -> Iterator[pa.RecordBatch]:
        """A window's rows."""
        return exfm.slice_rows(self._rows_of(window), shard, start_row)

    def _rows_of(self, window: exfm.Window) -> Iterator[pa.RecordBatch]:
        for batch in self._batches():
            # Rows are in order of time, so those of a window stand together.
            seconds = batch["time"].cast(pa.int64())
            before = pc.sum(pc.less(seconds, -(-window.start_us // _SECOND)), min_count=0).as_py()
            until = pc.sum(pc.less(seconds, -(-window.end_us // _SECOND)), min_count=0).as_py()
            if until > before:
                origin = exfm.Origin.of(batch)
                yield exfm.Origin(origin.file, origin.row + before).mark(batch.slice(before, until - before))
            if until < batch.num_rows:
                return

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, a block of the file at a time."""
        options = csv.ConvertOptions(column_types=_TYPES, include_columns=list(_TYPES), strings_can_be_null=True)
        row = 0
        try:
            with fsspec.open(self.config.path, "rb") as file:
                for batch in csv.open_csv(file, convert_options=options):
                    yield exfm.Origin(self.config.path, row).mark(batch)
                    row += batch.num_rows
        except (OSError, KeyError, pa.ArrowInvalid) as error:
            raise ValueError(f"{self.config.path} cannot be read: {error}") from error

    @cached_property
    def _time_range(self) -> exfm.TimeRange:
        seconds = [pc.min_max(batch["time"].cast(pa.int64())).as_py() for batch in self._batches() if batch.num_rows]
        if not seconds:
            raise ValueError(f"{self.config.path} has no rows")
        return exfm.TimeRange(seconds[0]["min"] * _SECOND, seconds[-1]["max"] * _SECOND + 1)
