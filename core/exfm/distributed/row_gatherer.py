"""Writes the rows of all processes into a single Parquet file, in the order of the stream, at constant memory."""

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
    """Writes a file on rank zero, to which the other ranks send their rows, chunk by chunk.

    A single process would write the same file, so its readers need not ask how many processes there were.

    Args:
        path: the file.
        schema: its columns.
    """

    def __init__(self, process_group: ProcessGroup, workspace: Workspace, path: str, schema: pa.Schema) -> None:
        self._process_group = process_group
        self._schema = schema
        self._writer: RowWriter | None = None
        if process_group.is_rank_zero:
            self._writer = RowWriter(workspace, path, schema)
        self._newest_us = 0

    def append(self, columns: Mapping[str, Column | pa.Array], order: npt.NDArray[np.int64] | None) -> pa.Table | None:
        """Adds a chunk's rows.

        Args:
            columns: a value for each row of this process, by column.
            order: sorts the rows of all processes, concatenated by rank, into the order of the stream.

        Returns:
            The rows of all processes; None on any rank but zero.

        Raises:
            ConfigError: the rows of different processes do not lie in the order of time.
        """
        table = gather_rows(self._process_group, rows_table(columns, self._schema), order)
        if table is None:
            return None
        assert self._writer is not None
        if self._process_group.world_size > 1:
            self._check_time(table)
        self._writer.write(table)
        return table

    def _check_time(self, table: pa.Table) -> None:
        """Checks that time does not go backwards between rows of different processes.

        A process checks only its shard of the stream, so that rows of two processes are compared here alone.

        Raises:
            ConfigError: it does.
        """
        if "event_time" not in table.column_names or not table.num_rows:
            return
        times = table.column("event_time").cast(pa.int64()).to_numpy()
        # The previous chunk's newest time comes first, so that chunks are compared too.
        backwards = np.diff(times, prepend=self._newest_us) < 0
        if backwards.any():
            example = table.column("example_id")[int(backwards.argmax())]
            raise ConfigError(f"the stream, example {example}: time goes backwards. Order the rows by time.")
        self._newest_us = int(times[-1])

    def close(self) -> dict[str, FileRecord]:
        """Completes the file and returns its record for a commit's manifest; empty on any rank but zero."""
        if self._writer is None:
            return {}
        return {"rows": self._writer.close()}

    def discard(self) -> None:
        """Removes a file that was not completed."""
        if self._writer is not None:
            self._writer.discard()


def gather_rows(process_group: ProcessGroup, rows: pa.Table, order: npt.NDArray[np.int64] | None) -> pa.Table | None:
    """Gathers the rows of all processes on rank zero; returns None on the others.

    Args:
        rows: the rows of this process.
        order: sorts the rows of all processes, concatenated by rank.
    """
    if process_group.world_size == 1:
        return rows
    received = process_group.gather_bytes(_to_bytes(rows))
    if not process_group.is_rank_zero:
        return None
    tables = list(map(_from_bytes, received))
    # Combined before the take, because pyarrow looks up each index chunk by chunk otherwise.
    return pa.concat_tables(tables).combine_chunks().take(pa.array(order))


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _from_bytes(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()
