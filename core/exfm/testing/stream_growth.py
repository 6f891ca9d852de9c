"""Tests of a data source on a stream that grows: its time range, its parts and its next event."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest

from exfm.data.validation import event_times
from exfm.interfaces.data_source import Origin, StreamPart, Window
from exfm.mappings import by_name
from exfm.testing.rows import check_rows
from exfm.testing.stream import DAY_US, StreamTests, format_time


class StreamGrowthTests(StreamTests):
    """Tests of ``time_range``, ``parts`` and ``next_event_us``."""

    def test_growth_is_seen(self, fields: Mapping[str, Any]) -> None:
        """A source sees rows that are appended, because ``--follow`` calls the same source again and again."""
        if type(self).grow is StreamTests.grow:
            pytest.skip(f"{type(self).__name__}.grow adds no rows: its stream does not grow while it is followed")
        with self.anew() as tests:
            source = tests.make(fields)
            window, before = tests.whole(source)
            # More events of the newest time may follow, so only earlier rows must be unchanged.
            newest_us = tests.times(source, before)[-1]
            settled, open_end = Window(0, window.start_us, newest_us), Window(1, newest_us, window.end_us)
            before, at_the_end = tests.read(source, settled), tests.read(source, open_end)
            parts = _by_name(source.parts())
            assert tests.folder is not None
            tests.grow(tests.folder)
            time = source.time_range()
            hint = "ask the files again in each call, or remember what was read with their size and time of change"
            message = f"rows were added, and time_range() still ends at {format_time(time.end_us)}; {hint}"
            assert time.end_us > window.end_us, message
            check_rows(tests.read(source, settled), before, "the rows before the growth, read after it")
            after = Window(1, newest_us, time.end_us)
            added = tests.read(source, after)
            message = f"time_range() has grown to {format_time(time.end_us)}, but read() yields nothing new; {hint}"
            assert added.num_rows > at_the_end.num_rows, message
            other = tests.make(fields)
            assert other.time_range() == time, f"after growth it says {time}, and another source {other.time_range()}"
            check_rows(added, tests.read(other, after), "what was added, read by a source that was there before,")
            first_us = next(time_us for time_us in tests.times(source, added) if time_us > newest_us)
            answer = source.next_event_us(newest_us + 1)
            message = (
                f"next_event_us({newest_us + 1}) is {answer}; an event of {format_time(first_us)} was added; {hint}"
            )
            assert answer is not None and answer <= first_us, message
            now = _by_name(source.parts())
            changed = [name for name, unit in now.items() if name not in parts or unit.version != parts[name].version]
            message = f"rows were added, and parts() has neither another part nor another version of {', '.join(parts)}"
            assert changed or not now, message

    def test_parts_are_where_rows_come_from(self, fields: Mapping[str, Any]) -> None:
        """Rows come from listed parts, because a window's commit records its parts to find late rows."""
        source = self.make(fields)
        parts = source.parts()
        if not parts:
            pytest.skip("parts() lists none: rows that appear behind the newest one go unnoticed")
        by_name = _by_name(parts)
        assert len(by_name) == len(parts), "parts() lists one name twice"
        assert _by_name(source.parts()) == by_name, "parts() changes from call to call, and the stream does not"
        assert _by_name(self.make(fields).parts()) == by_name, "another source of this config lists other parts"
        whole = self.window(source)
        middle = whole.start_us + (whole.end_us - whole.start_us) // 2
        for window in (Window(0, whole.start_us, middle), Window(1, middle, whole.end_us)):
            for batch in source.read(window):
                self._check_origin(source, batch, by_name)

    def _check_origin(self, source: Any, batch: pa.RecordBatch, parts: Mapping[str, StreamPart]) -> None:
        name = Origin.from_batch(batch).file
        assert name in parts, f"rows come from {name!r}, which is none of the parts {', '.join(parts)}"
        first_us, last_us = parts[name].first_us, parts[name].last_us
        for time in event_times(batch, source.schema()).tolist():
            assert first_us <= time <= last_us, (
                f"{name} has a row of {format_time(time)}; "
                f"its part is from {format_time(first_us)} to {format_time(last_us)}"
            )

    def test_next_event_skips_none(self, fields: Mapping[str, Any]) -> None:
        """No event is before ``next_event_us``, because the time until then is skipped unread."""
        source = self.make(fields)
        whole, rows = self.whole(source)
        times = self.times(source, rows)
        middle = times[len(times) // 2]
        asked = {whole.start_us - DAY_US, whole.start_us, middle, middle + 1, times[-1], whole.end_us + DAY_US}
        # Between two events, where a source that rounds could skip the second.
        asked |= {(earlier + later) // 2 for earlier, later in pairwise(times[:4])}
        for from_us in sorted(asked):
            answer = source.next_event_us(from_us)
            event_us = next((time for time in times if time >= from_us), None)
            said = f"next_event_us({from_us}) is {answer}"
            if event_us is None:
                assert answer is None or answer >= from_us, f"{said}, which is earlier"
                continue
            assert answer is not None, f"{said}, and there is an event of {format_time(event_us)}"
            assert isinstance(answer, int), f"{said}, a {type(answer).__name__}; it must be an int or None"
            assert from_us <= answer <= event_us, f"{said}; the next event is at {format_time(event_us)}"


def _by_name(parts: Any) -> dict[str, StreamPart]:
    return by_name(parts)
