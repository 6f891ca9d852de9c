"""Tests of the contract of data sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from exfm.data.decode import decode
from exfm.data.validation import RowChecker, event_times
from exfm.errors import ConfigError
from exfm.interfaces.data_source import ROW_NUMBER, DataSource, Origin, Shard, Window
from exfm.interfaces.download import Download
from exfm.interfaces.schema import CategoricalFeature, FeatureSchema
from exfm.testing.reading import ReadingTests
from exfm.testing.rows import check_batch, check_rows, concat_tables
from exfm.testing.stream import DAY_US, format_time
from exfm.testing.stream_growth import StreamGrowthTests


class DataSourceTests(ReadingTests, StreamGrowthTests):
    """Tests of a data source; see ``exfm.testing`` for how to use them.

    The stream under test is read some dozens of times, so a few hundred rows are enough. For a stream in files,
    override ``write``, and use ``{folder}`` in ``configs``, such as ``{"path": "{folder}/log.csv"}``. Where it may grow
    while it is followed, override ``grow`` too.

    Attributes:
        complete: whether every row lies in ``time_range()``; False for a stream that is still being written.
        repeats: whether most candidate items are in their own histories, as where users see the same items again.
        folder: the folder that ``write`` has written.
    """

    def test_says_the_same_each_time(self, fields: Mapping[str, Any]) -> None:
        """Schema and time range stay the same, because tables have the schema's sizes and windows divide the range."""
        source, other = self.make(fields), self.make(fields)
        schema, time = source.schema(), source.time_range()
        assert isinstance(schema, FeatureSchema), f"schema() must return an exfm.schema.FeatureSchema, not {schema!r}"
        assert time.start_us < time.end_us, f"time_range() is empty: {time}"
        self.read(source, self.window(source))
        for again, when in ((source, "after reading"), (other, "of another source of this config")):
            assert again.schema() == schema, f"the schema {when} is not what it was"
            later = again.time_range()
            grown = later.start_us == time.start_us and later.end_us >= time.end_us
            assert grown, f"the time range {when} is {later}, and was {time}; it may only grow at its end"

    def test_downloads_are_of_fields(self) -> None:
        """Downloads set fields of the Config, because `exfm data get` prints them for the experiment."""
        names = self.component.Config.model_fields
        for download in self.component.downloads:
            assert isinstance(download, Download), f"downloads must hold exfm.sources.Download, not {download!r}"
            unknown = [name for name in download.fields if name not in names]
            assert not unknown, f"the download {download.name!r} sets {unknown[0]!r}, which is no field of Config"

    def test_rows_are_what_the_schema_says(self, fields: Mapping[str, Any]) -> None:
        """Rows pass the checks of a run in which bad rows are errors, and can be decoded to tensors."""
        source = self.make(fields)
        schema = source.schema()
        checker = RowChecker(schema, skip=False, newest_us=-(2**63), in_order=source.in_order)
        for batch in source.read(self.window(source)):
            check_batch(batch)
            try:
                good = checker.check(batch)
            except ConfigError as error:
                raise AssertionError(str(error).partition(" Mend the data")[0]) from None
            if good.num_rows:
                decode(good, schema)

    def test_rows_are_in_order_of_time(self, fields: Mapping[str, Any]) -> None:
        """Times never decrease, because a row is predicted by a model that was trained on earlier rows alone.

        Of a source that is not ``in_order``, no row is earlier than the ``next_us`` of an earlier batch.
        """
        source = self.make(fields)
        window = self.window(source)
        self._check_order(source, source.read(window))
        for shard in _shards(source):
            self._check_order(source, source.read(window, shard))

    def _check_order(self, source: DataSource, batches: Iterable[pa.RecordBatch]) -> None:
        latest: int | None = None
        for batch in batches:
            for time in event_times(batch, source.schema()).tolist():
                assert latest is None or time >= latest, (
                    f"a row of {format_time(time)} comes after one of {format_time(latest)}"
                    if source.in_order
                    else f"a row of {format_time(time)} comes after a batch with next_us {format_time(latest)}"
                )
                latest = time if source.in_order else latest
            next_us = Origin.from_batch(batch).next_us
            if not source.in_order and next_us is not None:
                latest = next_us if latest is None else max(latest, next_us)

    def test_example_ids_are_unique(self, fields: Mapping[str, Any]) -> None:
        """Example ids are unique, because supervision is joined to rows by example id."""
        source = self.make(fields)
        ids = self.whole(source)[1][source.schema().example_id].to_pylist()
        twice = {example_id for example_id, count in Counter(ids).items() if count > 1}
        assert not twice, f"{len(twice)} example ids come more than once, such as {min(twice)}"

    def test_columns_keep_their_types(self, fields: Mapping[str, Any]) -> None:
        """All batches have the same column types, because processes that read shards have to agree on them."""
        source = self.make(fields)
        first: pa.Schema | None = None
        for batch in source.read(self.window(source)):
            # Of rows that do not follow each other alone.
            rows = batch.drop_columns([ROW_NUMBER]) if ROW_NUMBER in batch.schema.names else batch
            schema = rows.schema.remove_metadata()
            first = first or schema
            assert schema.equals(first), f"one batch has the columns\n{first}\nand another\n{schema}"

    def test_reading_again_gives_the_same_rows(self, fields: Mapping[str, Any]) -> None:
        """Two reads of a window yield the same rows, because another process may repeat it after an interruption."""
        source, other = self.make(fields), self.make(fields)
        window, expected = self.whole(source)
        check_rows(self.read(source, window), expected, "read again")
        check_rows(self.read(other, window), expected, "read by another source of this config")

    def test_reading_is_independent_of_other_reading(self, fields: Mapping[str, Any]) -> None:
        """Reads do not affect each other, because late labels are read again while a window is read."""
        source = self.make(fields)
        window, expected = self.whole(source)
        interrupted = iter(source.read(window))
        first = next(interrupted)
        check_rows(self.read(source, window), expected, "read while another reading is under way")
        check_rows(self.collect(source, [first, *interrupted]), expected, "read on after another reading")
        next(iter(source.read(window)))
        check_rows(self.read(source, window), expected, "read after a reading that was given up")

    def test_reads_in_another_thread(self, fields: Mapping[str, Any]) -> None:
        """A source can be read in another thread, because the core prefetches windows in threads."""
        source = self.make(fields)
        window, expected = self.whole(source)
        with ThreadPoolExecutor(1) as thread:
            check_rows(thread.submit(self.read, source, window).result(), expected, "read in another thread")

    def test_windows_part_the_stream(self, fields: Mapping[str, Any]) -> None:
        """Each row is in the single window with ``start_us <= time < end_us``, for any bounds of windows."""
        source = self.make(fields)
        whole, expected = self.whole(source)
        for bounds in _cuts(self.times(source, expected), whole):
            tables: list[pa.Table] = []
            for start, end in pairwise(bounds):
                rows = self.read(source, Window(len(tables), start, end))
                strange = [time for time in self.times(source, rows) if not start <= time < end]
                assert not strange, (
                    f"the window from {format_time(start)} to {format_time(end)} has a row of {format_time(strange[0])}"
                )
                tables.append(rows)
            cuts = ", ".join(map(format_time, bounds[1:-1]))
            check_rows(concat_tables(tables), expected, f"in windows cut at {cuts}")

    def test_the_time_range_has_every_row(self, fields: Mapping[str, Any]) -> None:
        """No row is outside the time range, and a window that ends later, as the last window may, has the same rows."""
        source = self.make(fields)
        whole, expected = self.whole(source)
        before = self.read(source, Window(0, whole.start_us - DAY_US, whole.start_us))
        start = format_time(whole.start_us)
        assert not before.num_rows, f"{before.num_rows} rows lie before the start of time_range(), {start}"
        longer = self.read(source, Window(0, whole.start_us, whole.end_us + DAY_US))
        check_rows(longer.slice(0, expected.num_rows), expected, "in a window that ends later than the stream")
        after = longer.num_rows - expected.num_rows
        assert not (after and self.complete), (
            f"{after} rows lie at or after the end of time_range(), {format_time(whole.end_us)}"
        )

    def test_shards_part_a_window(self, fields: Mapping[str, Any]) -> None:
        """Row i of a window belongs to shard ``i % count``, so that exactly one process reads each row.

        Of a source that is not ``in_order``, each row belongs to exactly a single shard, also where each shard is read
        by another source of the same config, as in the processes of a job.
        """
        source = self.make(fields)
        window, expected = self.whole(source)
        assert not (source.in_order and source.splits), (
            "a source that is in_order shards by position; splits is for others"
        )
        for count in (2, 3):
            if not source.in_order:
                shards: list[pa.RecordBatch] = []
                for index in range(count):
                    shards += self.make(fields).read(window, Shard(index, count))
                check_rows(self.collect(source, shards), expected, f"all of {count} shards")
                continue
            for index in range(count):
                rows = pa.array(np.arange(index, expected.num_rows, count))
                actual = self.read(source, window, Shard(index, count))
                check_rows(actual, expected.take(rows), f"shard {index} of {count}")

    def test_unneeded_rows_keep_their_keys(self, fields: Mapping[str, Any]) -> None:
        """Rows that no reader needs come with ids and times; the others, and the order of all, are the same as before.

        Of the columns of ids, each is asked for the rows of a single value.
        """
        source = self.make(fields)
        if type(source).select_rows is DataSource.select_rows:
            pytest.skip("select_rows() returns the source itself, which yields all rows whole")
        window, expected = self.whole(source)
        schema = source.schema()
        for column in _id_columns(schema, expected):
            value = expected[column].drop_null()[0].as_py()
            keys = list(dict.fromkeys([schema.example_id, schema.event_time, column]))
            selected, whole, all_keys = source.select_rows([{column: (value,)}]), [], []
            for batch in selected.read(window):
                missing = [key for key in keys if key not in batch.schema.names]
                assert not missing, f"{missing[0]} is missing where {column} is not {value!r}; only others may be"
                all_keys.append(batch.select(keys))
                if not Origin.from_batch(batch).keys_only:
                    whole.append(batch)
            about = f"read for {column}: {value!r}"
            check_rows(self.collect(source, all_keys), expected.select(keys), f"keys {about}")
            rows = self.collect(source, whole)
            needed = rows.filter(pc.equal(rows[column], value)) if rows.num_rows else rows
            check_rows(needed, expected.filter(pc.equal(expected[column], value)), about)

    def test_origins_count_on(self, fields: Mapping[str, Any]) -> None:
        """Origins of successive batches do not overlap, because messages about bad rows name their positions."""
        source = self.make(fields)
        reached: dict[str, int] = {}
        for batch in source.read(self.window(source)):
            if b"exfm.file" not in (batch.schema.metadata or {}):
                pytest.skip(
                    "its batches are not marked: exfm.sources.Origin(file, row).mark(batch) would name a bad row"
                )
            origin = Origin.from_batch(batch)
            end = reached.get(origin.file, origin.row)
            assert origin.row >= end, f"{origin.file}, row {origin.row}: a batch before it has reached row {end}"
            reached[origin.file] = origin.row + batch.num_rows


def _shards(source: DataSource) -> list[Shard]:
    """Lists shards that processes read of a source that splits a window between them."""
    return [Shard(index, count) for count in (2, 3) for index in range(count)] if source.splits else []


def _id_columns(schema: FeatureSchema, rows: pa.Table) -> list[str]:
    """Lists the columns of ids that hold integers or text, and some value."""
    columns: list[str] = []
    for feature in schema.features:
        if isinstance(feature, CategoricalFeature):
            kind = rows.schema.field(feature.source_column).type
            if (pa.types.is_integer(kind) or pa.types.is_string(kind)) and rows[feature.source_column].drop_null():
                columns.append(feature.source_column)
    return list(dict.fromkeys(columns))


def _cuts(times: list[int], whole: Window) -> Iterator[list[int]]:
    """Yields bounds of windows: halves, sevenths, exactly at the time of a row, and just after it."""
    start, end = whole.start_us, whole.end_us
    middle = times[len(times) // 2]
    inner: Iterable[Iterable[int]] = (
        [start + (end - start) // 2],
        [start + (end - start) * number // 7 for number in range(1, 7)],
        [middle],
        [middle + 1],
        [times[-1]],
    )
    for cuts in inner:
        # A cut may coincide with a bound of the stream, where it would make an empty window.
        yield [start, *sorted({time for time in cuts if start < time < end}), end]
