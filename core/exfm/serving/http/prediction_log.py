"""Writes served rows and their predictions as Parquet files, which data sources read as a log of impressions."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from threading import Event, Lock, Thread

import pyarrow as pa
import pyarrow.parquet as pq

from exfm.errors import RunError
from exfm.serving.http.service import Answer, Row
from exfm.storage.workspace import Workspace

logger = logging.getLogger(__name__)

EXAMPLE_ID, SERVED_AT, SNAPSHOT, PREDICTION = "example_id", "served_at", "snapshot", "prediction_"
"""Columns that the log adds to those that the model reads; the last is the prefix of a task's."""

_FILE_ROWS = 200_000
"""Rows at which a file is completed before its time."""

_MOST_ROWS = 1_000_000
"""Rows that wait in memory at most, where the store is away or slow; further rows are left out and counted."""


class PredictionLog:
    """Collects served rows, and writes them in a background thread.

    A row has an ``example_id``, which the client gets with its predictions, so that it can report what came of them.

    Args:
        url: the folder, any fsspec URL.
        every_s: time after which a file is completed.

    Attributes:
        written: number of rows in complete files.
        left_out: number of rows that were not written.

    Raises:
        RunError: the folder cannot be written.
    """

    def __init__(self, url: str, every_s: float) -> None:
        self._workspace, self._every_s = Workspace(url), every_s
        self._lock, self._waiting = Lock(), list[pa.RecordBatch]()
        self._rows = 0
        self._write_now, self._ended = Event(), False
        self._thread = Thread(target=self._write_all, name="exfm-log", daemon=True)
        self.written, self.left_out = 0, 0
        # Now, and not when the first file is due and nobody looks.
        self._workspace.check_create()

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    def stop(self) -> None:
        """Writes the rows that wait, and ends."""
        self._ended = True
        self._write_now.set()
        self._thread.join()
        self.left_out += self._rows
        if self.left_out:
            logger.warning("%s: %d served rows were not logged", self._workspace.url, self.left_out)

    def add(self, rows: Sequence[Row], answer: Answer) -> list[int]:
        """Adds the rows of a request; returns their example ids.

        A row's own ``example_id`` is kept if it is a whole number of 64 bits; other rows get a random one.
        """
        ids = [_example_id(row) for row in rows]
        columns: dict[str, pa.Array] = {
            EXAMPLE_ID: pa.array(ids, pa.int64()),
            SERVED_AT: pa.array([time.time_ns() // 1_000] * len(ids), pa.timestamp("us", "UTC")),
            SNAPSHOT: pa.array([answer.snapshot] * len(ids), pa.int64()),
        }
        # A column of the stream that has the name of one of these is one of these.
        read = answer.rows()
        columns = dict(zip(read.schema.names, read.columns, strict=True)) | columns
        for task, values in answer.predictions.items():
            columns[f"{PREDICTION}{task}"] = pa.array(values if values.ndim == 1 else list(values))
        batch = pa.RecordBatch.from_pydict(columns)
        with self._lock:
            if self._rows + batch.num_rows > _MOST_ROWS:
                self.left_out += batch.num_rows
            else:
                self._waiting.append(batch)
                self._rows += batch.num_rows
            if self._rows >= _FILE_ROWS:
                self._write_now.set()
        return ids

    def _write_all(self) -> None:
        while not self._ended:
            self._write_now.wait(self._every_s)
            self._write_now.clear()
            # Several files where rows have waited for a store, or an export with other columns has taken over.
            while self._write():
                pass

    def _write(self) -> bool:
        """Writes a file of rows that wait, if there are some; after a failure they go on waiting."""
        with self._lock:
            batches = self._alike()
        if not batches:
            return False
        table = pa.Table.from_batches(batches)
        try:
            # The name begins with the time, so that files are listed in the order of the rows.
            now = datetime.now(UTC)
            with self._workspace.writing(f"{now:%Y-%m-%d/%H%M%S}-{{digest}}.parquet") as file:
                pq.write_table(table, file)
        except (RunError, OSError) as error:
            logger.warning("%s: %d served rows wait to be logged: %s", self._workspace.url, self._rows, error)
            return False
        with self._lock:
            del self._waiting[: len(batches)]
            self._rows -= table.num_rows
        self.written += table.num_rows
        return True

    def _alike(self) -> list[pa.RecordBatch]:
        """Returns the first batches that have equal columns, of ``_FILE_ROWS`` rows or a little more at most."""
        batches: list[pa.RecordBatch] = []
        rows = 0
        for batch in self._waiting:
            if rows >= _FILE_ROWS or (batches and batch.schema != batches[0].schema):
                break
            batches.append(batch)
            rows += batch.num_rows
        return batches


def _example_id(row: Row) -> int:
    wanted_id = row.get(EXAMPLE_ID)
    # Not a bool, which is an int too.
    return wanted_id if type(wanted_id) is int and -(1 << 63) <= wanted_id < 1 << 63 else secrets.randbits(63)
