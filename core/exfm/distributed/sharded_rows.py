"""Writes the rows of a window, each process its own rows into a separate file, at constant memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exfm.interfaces.data_source import Shard
from exfm.interfaces.process_group import ProcessGroup
from exfm.storage.hashing import FileRecord
from exfm.storage.row_shards import rows_role
from exfm.storage.workspace import Workspace
from exfm.supervision.row_files import POSITION, Column, Folder, RowWriter, row_file, with_position


class ShardedRowWriter:
    """Writes the rows of this process in a window, for a commit that lists the files of all processes.

    The file of one of several processes also has the position of each row in the window, by which readers put the rows
    of all files into the order of the stream. A single process writes the rows in that order, and no positions.

    Args:
        folder, model, window: name the file.
        schema: its columns.
    """

    def __init__(
        self,
        process_group: ProcessGroup,
        workspace: Workspace,
        folder: Folder,
        model: str,
        window: int,
        schema: pa.Schema,
    ) -> None:
        self._process_group = process_group
        shard = Shard(process_group.rank, process_group.world_size)
        self._role = rows_role(shard)
        if shard.count > 1:
            schema = with_position(schema)
        # Rank zero's commit waits for its files; other machines may have written those of other ranks.
        sync = not process_group.is_rank_zero
        self._writer = RowWriter(workspace, row_file(folder, model, window, shard), schema, sync)
        self._of_others: dict[str, FileRecord] = {}

    def append(self, columns: Mapping[str, Column | pa.Array], position: npt.NDArray[np.int64]) -> None:
        """Adds this process's rows of a chunk.

        Args:
            columns: a value for each row, by column.
            position: the position of each row in the window.
        """
        self._writer.append({**columns, POSITION: position})

    def gather_files(self) -> None:
        """Completes the files of all ranks but zero, whose records rank zero keeps for ``close``; a collective.

        Rank zero completes its own file in ``close``, which may run in the background while the next window begins.
        """
        if self._process_group.world_size == 1:
            return
        completed: dict[str, FileRecord] = {}
        if not self._process_group.is_rank_zero:
            completed = self._complete()
        sent = json.dumps({role: asdict(record) for role, record in completed.items()}).encode()
        for data in self._process_group.gather_bytes(sent):
            for role, record in json.loads(data).items():
                self._of_others[role] = FileRecord(**record)

    def close(self) -> dict[str, FileRecord]:
        """Completes the file of rank zero, and returns the files of all ranks by role, for a commit's manifest."""
        return self._complete() | self._of_others

    def _complete(self) -> dict[str, FileRecord]:
        return {self._role: self._writer.close()}

    def discard(self) -> None:
        """Removes a file that was not completed."""
        self._writer.discard()
