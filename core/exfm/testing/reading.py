"""How a data source reads: no more than it must, nothing that is not there, and closed when it is done."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pyarrow as pa
import pytest

from exfm.interfaces.data_source import Origin
from exfm.testing.histories import Histories
from exfm.testing.rows import check_batch
from exfm.testing.stream import StreamTests

_FEW_BATCHES = 4
_MOST_ROWS = 1 << 17
_OPEN_FILES = Path("/proc/self/fd")
_BYTES_READ = Path("/proc/self/io")
_LARGE = 4 << 20


class ReadingTests(StreamTests):
    """Tests of what a source reads, and of the histories that it gives."""

    def test_schema_reads_no_rows(self, fields: Mapping[str, Any]) -> None:
        """Every command asks for the schema, also where the stream is large, or not there yet."""
        source = self.make(fields)
        with batches_noticed() as noticed:
            time = source.schema().event_time
        functions = [code.co_qualname for code, columns in noticed.columns.items() if time in columns]
        hint = "a schema comes from the Config, or from what a file says of its columns"
        assert not functions, f"schema() reads rows, by {functions[0]}; {hint}"
        read = next(vars(cls)["read"] for cls in self.component.__mro__ if "read" in vars(cls))
        assert getattr(read, "__code__", None) not in noticed.calls, f"schema() calls read(); {hint}"
        if not (self.is_of_files(fields) and _BYTES_READ.exists()):
            return
        with self.anew() as tests:
            before = tests._bytes_of_schema(fields)
            large = tests._enlarge(fields)
            after = tests._bytes_of_schema(fields)
        few = after - before < large // 2 or not large
        assert few, f"schema() reads {after >> 10} KiB of rows where there are {large >> 10} KiB; {hint}"

    def _bytes_of_schema(self, fields: Mapping[str, Any]) -> int:
        """How much it reads for the schema, after a first call that may import what it needs."""
        try:
            self.make(fields).schema()
            source, before = self.make(fields), _bytes_read()
            source.schema()
        except ValueError:
            return 0  # a file's end says no longer what it did
        return _bytes_read() - before

    def _enlarge(self, fields: Mapping[str, Any]) -> int:
        """Repeats what is in the smallest file that rows come from, so that it is large; its size."""
        source = self.make(fields)
        names = {Origin.of(batch).file.removeprefix("file://") for batch in source.read(self.window(source))}
        files = [Path(name) for name in names if Path(name).is_file()]
        for file in files[:1]:
            content = file.read_bytes()
            file.write_bytes(content * (_LARGE // len(content) + 1))
            return file.stat().st_size
        return 0

    def test_a_path_that_is_not_there(self, fields: Mapping[str, Any]) -> None:
        """A slip in a path is the user's: a ValueError that names it becomes a message, anything else a traceback."""
        if not self.is_of_files(fields):
            pytest.skip("its fields name no {folder}")
        tests: Any = copy(self)
        tests.folder = Path("/no_such_folder")
        try:
            source = tests.make(fields)
            source.schema()
            rows = sum(batch.num_rows for batch in source.read(tests.window(source)))
        except ValueError as error:
            assert "no_such_folder" in str(error), f"the message does not name the path: {error}"
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise AssertionError(
                f"of a path that is not there, raise a ValueError that names it, not {what}"
            ) from error
        else:
            raise AssertionError(f"of a path that is not there it reads {rows} rows without a word; raise a ValueError")

    def test_readings_are_closed(self, fields: Mapping[str, Any]) -> None:
        """A run reads thousands of windows, and gives some up: each file or connection left open is one too many."""
        if not _OPEN_FILES.exists():
            pytest.skip(f"{_OPEN_FILES} is not there, so that open files cannot be counted")
        source = self.make(fields)
        window = self.window(source)
        self._read_some(source, window)
        before = _open_files()
        times = 4
        for _ in range(times):
            self._read_some(source, window)
        if _open_files() >= before + times:
            gc.collect()
        left = _open_files() - before
        hint = "open them in a with statement inside read()'s generator"
        assert left < times, f"{2 * times} readings, half of them given up, left {left} files or sockets open; {hint}"

    def _read_some(self, source: Any, window: Any) -> None:
        """Reads a window, and begins to."""
        for _ in source.read(window):
            pass
        begun = source.read(window)
        next(iter(begun), None)
        if hasattr(begun, "close"):
            begun.close()

    def test_reads_a_batch_at_a_time(self, fields: Mapping[str, Any]) -> None:
        """A window may be larger than the memory: its first rows come before its last are read."""
        source = self.make(fields)
        window = self.window(source)
        for batch in source.read(window):  # whatever it remembers of the files, it does now
            check_batch(batch)
            few = batch.num_rows <= _MOST_ROWS
            assert few, f"a batch has {batch.num_rows} rows, more than {_MOST_ROWS}; yield slices of it"
        with batches_noticed() as noticed:
            reading = iter(source.read(window))
            first = next(reading)
        batches = [first, *reading]
        if len(batches) < _FEW_BATCHES:
            pytest.skip(f"the whole stream comes in {len(batches)} batches; with smaller ones, this could be told")
        all_rows = sum(batch.num_rows for batch in batches)
        whole = [
            code.co_qualname for code, rows in noticed.rows.items() if rows >= all_rows and noticed.times[code] > 1
        ]
        assert not whole, (
            f"{whole[0]} has all {all_rows} rows of the window before read() yields the first {first.num_rows}; "
            "yield each batch as it is read"
        )

    def test_history_is_of_earlier_events(self, fields: Mapping[str, Any]) -> None:
        """An event that is in its own history gives its label away: what is scored is then better than what is served.

        Where most candidates are rightly in their histories, say ``repeats = True``.
        """
        source = self.make(fields)
        histories = Histories(source.schema(), self.whole(source)[1])
        if not histories:
            pytest.skip("no sequence shares its table with a categorical feature")
        held = None if self.repeats else histories.held_by_its_own()
        assert not held, f"{held}; a history has events strictly before the row's. If that is so, say repeats = True"
        turned = histories.turned()
        assert not turned, f"{turned}; a history is oldest first, and the newest events are kept of a longer one"


class _Noticed:
    """Record batches and tables that functions have returned or yielded: rows, times and columns, by code."""

    def __init__(self) -> None:
        self.rows: Counter[CodeType] = Counter()
        self.times: Counter[CodeType] = Counter()
        self.columns: dict[CodeType, list[str]] = {}
        self.calls: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        """Notes a function's call or return."""
        if event == "call":
            self.calls.add(frame.f_code)
        elif event == "return" and isinstance(value, pa.RecordBatch | pa.Table) and value.num_rows:
            self.rows[frame.f_code] += value.num_rows
            self.times[frame.f_code] += 1
            self.columns[frame.f_code] = value.schema.names


@contextmanager
def batches_noticed() -> Iterator[_Noticed]:
    """Notes which functions of this thread give rows."""
    noticed, before = _Noticed(), sys.getprofile()
    sys.setprofile(noticed)
    try:
        yield noticed
    finally:
        sys.setprofile(before)


def _open_files() -> int:
    return len(list(_OPEN_FILES.iterdir()))


def _bytes_read() -> int:
    counts: Callable[[], list[str]] = _BYTES_READ.read_text(encoding="ascii").split
    return int(counts()[1])
