"""Rows of all processes in one Parquet file, in the order of the stream, at constant memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exfm.errors import ConfigError
from exfm.interfaces.process_group import ProcessGroup
from exfm.storage.hashing import FileRecord
from exfm.storage.workspace import Workspace
from exfm.supervision.row_files import Column, RowWriter, rows_table


class RowGatherer:
    """Writes a file on the first process; the others send it their rows, chunk by chunk.

    The file is the one that a single process would write, so whoever reads it need not know how many there were.

    Args:
        path: the file.
        schema: its columns.
    """

    def __init__(self, process_group: ProcessGroup, workspace: Workspace, path: str, schema: pa.Schema) -> None:
        self._process_group = process_group
        self._schema = schema
        self._writer = RowWriter(workspace, path, schema) if process_group.is_rank_zero else None
        self._newest_us = 0

    def append(self, columns: Mapping[str, Column | pa.Array], order: npt.NDArray[np.int64] | None) -> pa.Table | None:
        """Adds a chunk's rows.

        Args:
            columns: a value for each own row, by column.
            order: puts all processes' rows, one process after the other, into the order of the stream.

        Returns:
            All rows; None on any process but the first.

        Raises:
            ConfigError: the rows of different processes do not lie in the order of time.
        """
        table = rows_table(columns, self._schema)
        if self._process_group.world_size > 1:
            parts = self._process_group.gather_bytes(_packed(table))
            if self._writer is None:
                return None
            table = pa.concat_tables([_unpacked(part) for part in parts]).combine_chunks().take(pa.array(order))
            self._check_time(table)
        assert self._writer is not None
        self._writer.write(table)
        return table

    def _check_time(self, table: pa.Table) -> None:
        """A process sees every so many rows only, so that time may go backwards between the rows of two."""
        if "event_time" not in table.column_names or not table.num_rows:
            return
        times = table.column("event_time").cast(pa.int64()).to_numpy()
        backwards = np.diff(times, prepend=self._newest_us) < 0
        if backwards.any():
            example = table.column("example_id")[int(backwards.argmax())]
            raise ConfigError(f"the stream, example {example}: time goes backwards. Order the rows by time.")
        self._newest_us = int(times[-1])

    def close(self) -> dict[str, FileRecord]:
        """Completes the file: for a commit's manifest, where it is ``rows``; nothing on any process but the first."""
        return {} if self._writer is None else {"rows": self._writer.close()}

    def discard(self) -> None:
        """Leaves nothing behind of a file that was not completed."""
        if self._writer is not None:
            self._writer.discard()


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def _unpacked(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()
