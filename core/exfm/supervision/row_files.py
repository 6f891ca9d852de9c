"""Parquet files of rows per model and window: predictions and supervision, written as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from exfm.supervision.workspace import FileRecord, Workspace

Folder = Literal["predictions", "supervision"]
Column = npt.NDArray[np.generic]


def row_file(folder: Folder, model: str, window: int) -> str:
    """The path of a model's rows of one window."""
    return f"{folder}/{model}/window-{window:06d}-{{digest}}.parquet"


def predictions_schema(tasks: Sequence[str], oracles: Sequence[str]) -> pa.Schema:
    """Columns of a predictions file: probabilities from before training on the row, labels, true probabilities."""
    fields = {"example_id": pa.int64(), "window": pa.int32(), "group": pa.int64()}
    fields |= {f"prediction_{task}": pa.float32() for task in tasks}
    fields |= {f"label_{task}": pa.float32() for task in tasks}
    fields |= {f"oracle_{task}": pa.float32() for task in oracles}
    return pa.schema(fields)


def supervision_schema(tasks: Sequence[str]) -> pa.Schema:
    """Columns of a supervision file.

    A prediction is null where the teacher had not seen a label of the task yet. The snapshot is the version, -1 for a
    model that had not published yet.
    """
    fields = {"example_id": pa.int64(), "window": pa.int32(), "event_time": pa.timestamp("us", "UTC")}
    fields |= {f"prediction_{task}": pa.float32() for task in tasks}
    return pa.schema(fields | {"snapshot": pa.int32(), "watermark": pa.timestamp("us", "UTC")})


class RowWriter:
    """Writes one Parquet file, a row group per call, at constant memory.

    Nothing appears under the file's name until ``close``; ``discard`` leaves nothing behind.
    """

    def __init__(self, workspace: Workspace, path: str, schema: pa.Schema) -> None:
        self._stack = ExitStack()
        self._file = self._stack.enter_context(workspace.writing(path))
        self._writer = pq.ParquetWriter(self._file, schema, compression="zstd", compression_level=1)
        self._schema = schema

    def append(self, columns: Mapping[str, Column]) -> None:
        """Adds rows: a value per row for every column of the schema."""
        arrays = [pa.array(columns[field.name], from_pandas=True).cast(field.type) for field in self._schema]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=1 << 20)

    def close(self) -> FileRecord:
        """Completes the file."""
        self._writer.close()
        self._stack.close()
        return self._file.record()

    def discard(self) -> None:
        """Leaves nothing behind of a file that was not completed."""
        self._writer.close()
        error = InterruptedError("discarded")
        with suppress(InterruptedError):
            self._stack.__exit__(type(error), error, None)


def read_rows(workspace: Workspace, record: FileRecord) -> pa.Table:
    """The rows of a committed file, checked against its checksum."""
    return pq.read_table(pa.BufferReader(workspace.read_checked(record)))
