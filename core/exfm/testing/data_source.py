"""What every data source must hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest

from exfm.data.decode import decode
from exfm.data.validation import RowChecker, event_times
from exfm.errors import ConfigError
from exfm.interfaces.data_source import Origin, Shard, Window
from exfm.interfaces.schema import FeatureSchema
from exfm.testing.reading import ReadingTests
from exfm.testing.rows import check_batch, check_rows, joined, table_of
from exfm.testing.stream import DAY_US, at
from exfm.testing.stream_growth import StreamGrowthTests


class DataSourceTests(ReadingTests, StreamGrowthTests):
    """Tests of a data source; see ``exfm.testing`` for how to use them.

    The stream under test is read some dozens of times: give it a few hundred rows. Where it is read from files,
    override ``write``, and say ``{folder}`` in ``configs``, such as ``{"path": "{folder}/log.csv"}``. Where it may grow
    while it is followed, override ``grow`` too.

    Attributes:
        complete: whether every row lies in ``time_range()``; False for a stream that is still being written.
        repeats: whether the candidate item is as a rule in its own history, as where users are shown what they saw.
        folder: where ``write`` has written.
    """

    def test_says_the_same_each_time(self, fields: Mapping[str, Any]) -> None:
        """Tables are as large as the schema said, and windows are cut from the time range: neither may change."""
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

    def test_rows_are_what_the_schema_says(self, fields: Mapping[str, Any]) -> None:
        """The core checks each row as in a run, where a bad one is an error, and turns it into a batch of tensors."""
        source = self.make(fields)
        schema, checker = source.schema(), RowChecker(source.schema(), skip=False, newest_us=-(2**63))
        for batch in source.read(self.window(source)):
            check_batch(batch)
            try:
                good = checker.check(batch)
            except ConfigError as error:
                raise AssertionError(str(error).partition(" Mend the data")[0]) from None
            if good.num_rows:
                decode(good, schema)

    def test_rows_are_in_order_of_time(self, fields: Mapping[str, Any]) -> None:
        """Each row is predicted by a model that has learned from earlier rows and from no later one."""
        source = self.make(fields)
        latest: int | None = None
        for batch in source.read(self.window(source)):
            for time in event_times(batch, source.schema()).tolist():
                assert latest is None or time >= latest, f"a row of {at(time)} comes after one of {at(latest)}"
                latest = time

    def test_example_ids_are_unique(self, fields: Mapping[str, Any]) -> None:
        """Supervision is joined to a row by its example id."""
        source = self.make(fields)
        ids = self.whole(source)[1][source.schema().example_id].to_pylist()
        twice = {one for one in ids if ids.count(one) > 1} if len(set(ids)) < len(ids) else set()
        assert not twice, f"{len(twice)} example ids come more than once, such as {min(twice)}"

    def test_columns_keep_their_types(self, fields: Mapping[str, Any]) -> None:
        """Several processes that read shards of one window cut it alike only where a column has one type."""
        source = self.make(fields)
        first: pa.Schema | None = None
        for batch in source.read(self.window(source)):
            schema = batch.schema.remove_metadata()
            first = first or schema
            assert schema.equals(first), f"one batch has the columns\n{first}\nand another\n{schema}"

    def test_reading_again_gives_the_same_rows(self, fields: Mapping[str, Any]) -> None:
        """After an interruption a window is read again, by another process, and must be the window that it was."""
        source, other = self.make(fields), self.make(fields)
        window, expected = self.whole(source)
        check_rows(self.read(source, window), expected, "read again")
        check_rows(self.read(other, window), expected, "read by another source of this config")

    def test_reading_is_independent_of_other_reading(self, fields: Mapping[str, Any]) -> None:
        """Rows with late labels are read again while the stream goes on, and a run may stop within a window."""
        source = self.make(fields)
        window, expected = self.whole(source)
        going_on = iter(source.read(window))
        first = next(going_on)
        check_rows(self.read(source, window), expected, "read while another reading is under way")
        check_rows(table_of([first, *going_on]), expected, "read on after another reading")
        next(iter(source.read(window)))
        check_rows(self.read(source, window), expected, "read after a reading that was given up")

    def test_reads_in_another_thread(self, fields: Mapping[str, Any]) -> None:
        """The core reads ahead in threads, each of which reads a window."""
        source = self.make(fields)
        window, expected = self.whole(source)
        with ThreadPoolExecutor(1) as thread:
            check_rows(thread.submit(self.read, source, window).result(), expected, "read in another thread")

    def test_windows_part_the_stream(self, fields: Mapping[str, Any]) -> None:
        """Each row lies in the one window with ``start_us <= time < end_us``, wherever windows are cut."""
        source = self.make(fields)
        whole, expected = self.whole(source)
        for bounds in _cuts(self.times(source, expected), whole):
            parts: list[pa.Table] = []
            for start, end in pairwise(bounds):
                part = self.read(source, Window(len(parts), start, end))
                strange = [time for time in self.times(source, part) if not start <= time < end]
                assert not strange, f"the window from {at(start)} to {at(end)} has a row of {at(strange[0])}"
                parts.append(part)
            check_rows(joined(parts), expected, f"in windows cut at {', '.join(map(at, bounds[1:-1]))}")

    def test_the_time_range_has_every_row(self, fields: Mapping[str, Any]) -> None:
        """The last window mostly ends later than the stream does: it has the rows that there are."""
        source = self.make(fields)
        whole, expected = self.whole(source)
        before = self.read(source, Window(0, whole.start_us - DAY_US, whole.start_us))
        assert not before.num_rows, f"{before.num_rows} rows lie before the start of time_range(), {at(whole.start_us)}"
        longer = self.read(source, Window(0, whole.start_us, whole.end_us + DAY_US))
        check_rows(longer.slice(0, expected.num_rows), expected, "in a window that ends later than the stream")
        after = longer.num_rows - expected.num_rows
        assert not (after and self.complete), (
            f"{after} rows lie at or after the end of time_range(), {at(whole.end_us)}"
        )

    def test_shards_part_a_window(self, fields: Mapping[str, Any]) -> None:
        """Row i of a window belongs to shard ``i % count``: no row is lost, and none is read by two processes."""
        source = self.make(fields)
        window, expected = self.whole(source)
        for count in (2, 3):
            for index in range(count):
                rows = pa.array(range(index, expected.num_rows, count), pa.int64())
                actual = self.read(source, window, Shard(index, count))
                check_rows(actual, expected.take(rows), f"shard {index} of {count}")

    def test_origins_count_on(self, fields: Mapping[str, Any]) -> None:
        """Where batches say which file and row they begin at, a message about a bad row must name the right one."""
        source = self.make(fields)
        reached: dict[str, int] = {}
        for batch in source.read(self.window(source)):
            if b"exfm.file" not in (batch.schema.metadata or {}):
                pytest.skip(
                    "its batches are not marked: exfm.sources.Origin(file, row).mark(batch) would name a bad row"
                )
            origin = Origin.of(batch)
            known = reached.get(origin.file, origin.row)
            assert origin.row >= known, f"{origin.file}, row {origin.row}: a batch before it has reached row {known}"
            reached[origin.file] = origin.row + batch.num_rows


def _cuts(times: list[int], whole: Window) -> Iterator[list[int]]:
    """Bounds of windows: in halves and sevenths, and exactly at the time of a row, or just after it."""
    start, end = whole.start_us, whole.end_us
    middle = times[len(times) // 2]
    inner: Iterable[Iterable[int]] = (
        [start + (end - start) // 2],
        [start + (end - start) * part // 7 for part in range(1, 7)],
        [middle],
        [middle + 1],
        [times[-1]],
    )
    for of_one in inner:
        yield [start, *sorted({time for time in of_one if start < time < end}), end]
