"""StreamTests: writes, reads and grows the stream under test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Self

import pyarrow as pa
import pytest

from exfm.data.validation import event_times
from exfm.interfaces.component import Component
from exfm.interfaces.data_source import ROW_NUMBER, DataSource, Shard, Window
from exfm.testing.component import ComponentTests
from exfm.testing.rows import concat_batches, fill_folder

DAY_US = 86_400_000_000
WHOLE = Shard()


class StreamTests(ComponentTests):
    """Base of the tests of a data source. Its attributes may be overridden.

    Attributes:
        complete: whether every row lies in ``time_range()``; False for a stream that is still being written.
        repeats: whether most candidate items are in their own histories, as where users see the same items again.
        folder: the folder that ``write`` has written.
    """

    interface: ClassVar[type[Component]] = DataSource
    complete: ClassVar[bool] = True
    repeats: ClassVar[bool] = False
    folder: ClassVar[Path | None] = None

    def write(self, folder: Path) -> None:
        """Writes the small stream that ``configs`` read; called once for each folder. By default writes nothing."""

    def grow(self, folder: Path) -> None:
        """Appends rows to the stream that ``write`` has written, for all ``configs``, as its producer would.

        Override it where the stream may grow while it is followed; by default it does not grow.
        """

    @pytest.fixture(autouse=True)
    def _written(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        # Once for each class, because pytest makes an instance for each test.
        cls = type(self)
        if "folder" not in vars(cls):
            cls.folder = tmp_path_factory.mktemp(cls.__name__)
            self.write(cls.folder)

    def config(self, fields: Mapping[str, Any]) -> Any:
        """Parses fields as written in YAML, with the folder's path for ``{folder}``."""
        return super().config(fill_folder(fields, self.folder))

    def make(self, fields: Mapping[str, Any]) -> Any:
        """Builds the source."""
        return self.component(self.config(fields))

    def window(self, source: Any) -> Window:
        """Returns the time range of the stream as a single window."""
        time = source.time_range()
        return Window(0, time.start_us, time.end_us)

    def read(self, source: Any, window: Window, shard: Shard = WHOLE) -> pa.Table:
        """Reads a window's rows to a table."""
        return self.collect(source, source.read(window, shard))

    def collect(self, source: Any, batches: Iterable[Any]) -> pa.Table:
        """Concatenates a window's batches; sorts the rows of a source that is not ``in_order``, as the core does."""
        rows = concat_batches(batches)
        if source.in_order or not rows.num_rows:
            return rows
        if ROW_NUMBER in rows.column_names:
            rows = rows.drop_columns([ROW_NUMBER])
        schema = source.schema()
        return rows.sort_by([(schema.event_time, "ascending"), (schema.example_id, "ascending")])

    def whole(self, source: Any) -> tuple[Window, pa.Table]:
        """Reads the whole stream; returns its window and its rows."""
        window = self.window(source)
        rows = self.read(source, window)
        assert rows.num_rows, f"there are no rows in the time range, {window.start_us} to {window.end_us}"
        return window, rows

    @contextmanager
    def anew(self) -> Iterator[Self]:
        """Yields these tests with a new copy of the stream, which may be changed."""
        with tempfile.TemporaryDirectory(prefix="exfm-kit-") as path:
            other: Any = copy(self)
            other.folder = Path(path)
            other.write(other.folder)
            yield other

    def is_of_files(self, fields: Mapping[str, Any]) -> bool:
        """Returns whether these fields name the folder."""
        return "{folder}" in repr(fields)

    def times(self, source: Any, rows: pa.Table) -> list[int]:
        """Returns the time of each row."""
        schema, times = source.schema(), list[int]()
        for batch in rows.to_batches():
            times += event_times(batch, schema).tolist()
        return times


def format_time(time_us: int) -> str:
    """Writes a time for a message."""
    return f"{Window(0, time_us, time_us)} ({time_us} us)"
