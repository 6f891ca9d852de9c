"""The stream under test: how the kit writes it, reads it, and lets it grow."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Self

import pyarrow as pa
import pytest

from exfm.data.validation import event_times
from exfm.interfaces.component import Component
from exfm.interfaces.data_source import DataSource, Shard, Window
from exfm.testing.component import ComponentTests
from exfm.testing.rows import filled, table_of

DAY_US = 86_400_000_000
WHOLE = Shard()


class StreamTests(ComponentTests):
    """Base of the tests of a data source. Its attributes may be overridden.

    Attributes:
        complete: whether every row lies in ``time_range()``; False for a stream that is still being written.
        repeats: whether the candidate item is as a rule in its own history, as where users are shown what they saw.
        folder: where ``write`` has written.
    """

    interface: ClassVar[type[Component]] = DataSource
    complete: ClassVar[bool] = True
    repeats: ClassVar[bool] = False
    folder: ClassVar[Path | None] = None

    def write(self, folder: Path) -> None:
        """Writes the small stream that ``configs`` read; called once for each folder. By default there is none."""

    def grow(self, folder: Path) -> None:
        """Adds rows at the end of what ``write`` has written there, for all ``configs``, as whoever writes them would.

        Override it where the stream may grow while it is followed; by default it does not.
        """

    @pytest.fixture(autouse=True)
    def _written(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls = type(self)
        if "folder" not in vars(cls):
            cls.folder = tmp_path_factory.mktemp(cls.__name__)
            self.write(cls.folder)

    def config(self, fields: Mapping[str, Any]) -> Any:
        """The Config of fields as written in YAML, with the folder's path put in."""
        return super().config(filled(fields, self.folder))

    def make(self, fields: Mapping[str, Any]) -> Any:
        """The source."""
        return self.component(self.config(fields))

    def window(self, source: Any) -> Window:
        """The whole stream as one window."""
        time = source.time_range()
        return Window(0, time.start_us, time.end_us)

    def read(self, source: Any, window: Window, shard: Shard = WHOLE) -> pa.Table:
        """The rows that it yields."""
        return table_of(source.read(window, shard))

    def whole(self, source: Any) -> tuple[Window, pa.Table]:
        """The whole stream as one window, and its rows."""
        window = self.window(source)
        rows = self.read(source, window)
        assert rows.num_rows, f"there are no rows in the time range, {window.start_us} to {window.end_us}"
        return window, rows

    @contextmanager
    def anew(self) -> Iterator[Self]:
        """These tests on a stream that is written anew, and may be changed."""
        with tempfile.TemporaryDirectory(prefix="exfm-kit-") as path:
            other: Any = copy(self)
            other.folder = Path(path)
            other.write(other.folder)
            yield other

    def is_of_files(self, fields: Mapping[str, Any]) -> bool:
        """Whether these fields name the folder."""
        return "{folder}" in repr(fields)

    def times(self, source: Any, rows: pa.Table) -> list[int]:
        """The time of each row."""
        schema = source.schema()
        return [time for batch in rows.to_batches() for time in event_times(batch, schema).tolist()]


def at(time_us: int) -> str:
    """A time in words."""
    return f"{Window(0, time_us, time_us)} ({time_us} us)"
