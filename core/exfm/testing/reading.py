"""Tests of a data source's reads: only the rows it needs, a batch at a time, with files closed afterwards."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pyarrow as pa
import pytest

from exfm.interfaces.data_source import Origin
from exfm.testing.histories import HistoryChecks
from exfm.testing.rows import check_batch
from exfm.testing.stream import StreamTests

_MIN_BATCHES = 4
"""Batches of a stream that show whether it is read a batch at a time."""

_MAX_ROWS = 1 << 17
"""Rows of a batch: the decoder holds several batches, so this bounds the memory of a run."""

_LARGE = 4 << 20
"""Bytes of a file that a schema must not read: far more than a header or a footer has."""

_OPEN_FILES, _BYTES_READ = Path("/proc/self/fd"), Path("/proc/self/io")


class ReadingTests(StreamTests):
    """Tests of ``schema`` and ``read``, and of the histories in the rows."""

    def test_schema_reads_no_rows(self, fields: Mapping[str, Any]) -> None:
        """``schema`` reads no rows, because every command calls it, even before a stream exists."""
        source = self.make(fields)
        with record_batches() as recorder:
            time = source.schema().event_time
        # A batch without the time column may be a summary, such as statistics of a file.
        functions = [code.co_qualname for code, columns in recorder.columns.items() if time in columns]
        hint = "a schema comes from the Config, or from what a file says of its columns"
        assert not functions, f"schema() reads rows, by {functions[0]}; {hint}"
        read = next(vars(cls)["read"] for cls in self.component.__mro__ if "read" in vars(cls))
        assert getattr(read, "__code__", None) not in recorder.calls, f"schema() calls read(); {hint}"
        # Rows may also be read without record batches: the bytes read must not grow with the file.
        if not (self.is_of_files(fields) and _BYTES_READ.exists()):
            return
        with self.anew() as tests:
            before = tests._bytes_of_schema(fields)
            large = tests._enlarge(fields)
            after = tests._bytes_of_schema(fields)
        few = after - before < large // 2 or not large
        assert few, f"schema() reads {after >> 10} KiB of rows where there are {large >> 10} KiB; {hint}"

    def _bytes_of_schema(self, fields: Mapping[str, Any]) -> int:
        """Counts the bytes read by ``schema``, after a first call that may import modules."""
        try:
            self.make(fields).schema()
            source, before = self.make(fields), _bytes_read()
            source.schema()
        except ValueError:
            return 0  # a repeated file may have an invalid footer
        return _bytes_read() - before

    def _enlarge(self, fields: Mapping[str, Any]) -> int:
        """Repeats the content of a file with rows until it is large, and returns its size; 0 without files."""
        source = self.make(fields)
        names = {Origin.from_batch(batch).file.removeprefix("file://") for batch in source.read(self.window(source))}
        for file in filter(Path.is_file, map(Path, names)):
            content = file.read_bytes()
            file.write_bytes(content * (_LARGE // len(content) + 1))
            return file.stat().st_size
        return 0

    def test_a_path_that_is_not_there(self, fields: Mapping[str, Any]) -> None:
        """A missing path raises a ValueError that names it, because any other exception is shown as a traceback."""
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
            raised = f"{type(error).__name__}: {error}"
            raise AssertionError(
                f"of a path that is not there, raise a ValueError that names it, not {raised}"
            ) from error
        else:
            raise AssertionError(f"of a path that is not there it reads {rows} rows without a word; raise a ValueError")

    def test_readings_are_closed(self, fields: Mapping[str, Any]) -> None:
        """Complete and abandoned reads close their files and connections, because a run reads thousands of windows."""
        if not _OPEN_FILES.exists():
            pytest.skip(f"{_OPEN_FILES} is not there, so that open files cannot be counted")
        source = self.make(fields)
        window = self.window(source)
        self._read_twice(source, window)  # a source may keep files open that later reads share
        before = _open_files()
        times = 4
        for _ in range(times):
            self._read_twice(source, window)
        if _open_files() >= before + times:
            gc.collect()
        left = _open_files() - before
        hint = "open them in a with statement inside read()'s generator"
        assert left < times, f"{2 * times} readings, half of them given up, left {left} files or sockets open; {hint}"

    def _read_twice(self, source: Any, window: Any) -> None:
        """Reads a window, and abandons a second read after its first batch."""
        for _ in source.read(window):
            pass
        begun = source.read(window)
        next(iter(begun), None)
        if hasattr(begun, "close"):
            begun.close()

    def test_reads_a_batch_at_a_time(self, fields: Mapping[str, Any]) -> None:
        """The first batch is yielded before the last is read, because a window may be larger than the memory."""
        source = self.make(fields)
        window = self.window(source)
        # A complete read first, because a source may cache metadata of its files.
        for batch in source.read(window):
            check_batch(batch)
            few = batch.num_rows <= _MAX_ROWS
            assert few, f"a batch has {batch.num_rows} rows, more than {_MAX_ROWS}; yield slices of it"
        with record_batches() as recorder:
            reading = iter(source.read(window))
            first = next(reading)
        batches = [first, *reading]
        if len(batches) < _MIN_BATCHES:
            pytest.skip(f"the whole stream comes in {len(batches)} batches; with smaller ones, this could be told")
        all_rows = sum(batch.num_rows for batch in batches)
        whole: list[str] = []
        for code, rows in recorder.rows.items():
            # A function that returned once may have made a table in memory, such as a simulated stream.
            if rows >= all_rows and recorder.times[code] > 1:
                whole.append(code.co_qualname)
        assert not whole, (
            f"{whole[0]} has all {all_rows} rows of the window before read() yields the first {first.num_rows}; "
            "yield each batch as it is read"
        )

    def test_history_is_of_earlier_events(self, fields: Mapping[str, Any]) -> None:
        """A history does not contain the event of its row, because the event would reveal the label.

        Set ``repeats = True`` where most candidates are in their histories for other reasons.
        """
        source = self.make(fields)
        histories = HistoryChecks(source.schema(), self.whole(source)[1])
        if not histories:
            pytest.skip("no sequence shares its table with a categorical feature")
        leak = "" if self.repeats else histories.describe_leak()
        assert not leak, f"{leak}; a history has events strictly before the row's. If that is so, say repeats = True"
        wrong_order = histories.describe_order()
        assert not wrong_order, (
            f"{wrong_order}; a history is oldest first, and the newest events are kept of a longer one"
        )


class _BatchRecorder:
    """Records the batches and tables that functions return or yield: rows, times and columns, by code."""

    def __init__(self) -> None:
        self.rows: Counter[CodeType] = Counter()
        self.times: Counter[CodeType] = Counter()
        self.columns: dict[CodeType, list[str]] = {}
        self.calls: set[CodeType] = set()

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        """Records a call or a return; the interpreter calls this as its profile function."""
        if event == "call":
            self.calls.add(frame.f_code)
        elif event == "return" and isinstance(value, pa.RecordBatch | pa.Table) and value.num_rows:
            self.rows[frame.f_code] += value.num_rows
            self.times[frame.f_code] += 1
            self.columns[frame.f_code] = value.schema.names


@contextmanager
def record_batches() -> Iterator[_BatchRecorder]:
    """Records the batches that functions of this thread return."""
    recorder, before = _BatchRecorder(), sys.getprofile()
    sys.setprofile(recorder)
    try:
        yield recorder
    finally:
        # Restored, because a coverage tool may have set it.
        sys.setprofile(before)


def _open_files() -> int:
    return len(list(_OPEN_FILES.iterdir()))


def _bytes_read() -> int:
    # The first line is "rchar: N", the bytes of all read calls, cached or not.
    return int(_BYTES_READ.read_text(encoding="ascii").split()[1])
