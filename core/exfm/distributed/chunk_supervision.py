"""Reads committed supervision along the chunks of a window, each process the files with its rows where there are such.

Legend: S stored rows, L rows of this process in a chunk.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from exfm.distributed.chunk_exchange import ShardedChunk
from exfm.interfaces.data_source import Shard, Window
from exfm.interfaces.process_group import ProcessGroup
from exfm.storage.hashing import FileRecord
from exfm.storage.row_shards import files_of_process
from exfm.storage.workspace import Workspace
from exfm.supervision.joiner import SupervisionIndex, SupervisionRows
from exfm.supervision.store import Store
from exfm.supervision.streaming import open_files


class ChunkSupervision:
    """Looks up the supervision of successive chunks. Every process calls it in the same order.

    A teacher that ran on as many processes, or on a multiple, has written the rows that a process reads here into files
    without other rows, unless it has read another stream. So a process begins with these files. If they have a row that
    another process needs, every process reads all files from there on.

    Args:
        workspace: holds the files.
        records: all files of the window; at least 1.
    """

    def __init__(self, process_group: ProcessGroup, workspace: Workspace, records: list[FileRecord]) -> None:
        self._process_group = process_group
        self._workspace, self._records = workspace, records
        of_rank = files_of_process(records, Shard(process_group.rank, process_group.world_size))
        # Agreed upon, because a back-fill may end after one process has listed the files and before another does.
        self.reads_all = process_group.world_size == 1 or not process_group.all_agree(bool(of_rank))
        self._stream = open_files(workspace, records if self.reads_all else of_rank)

    def of_chunk(self, chunk: ShardedChunk) -> SupervisionIndex:
        """Returns the supervision of this process's rows of a chunk, perhaps among other rows."""
        rows = self._rows(chunk)
        if not self.reads_all and self._are_elsewhere(rows.example_id, chunk.batch.example_id):
            self._stream.close()
            self.reads_all = True
            self._stream = open_files(self._workspace, self._records)
            rows = self._rows(chunk)
        return rows.index()

    def _rows(self, chunk: ShardedChunk) -> SupervisionRows:
        return self._stream.rows_between(chunk.first_us, chunk.last_us)

    def _are_elsewhere(self, stored_id_S: Tensor, example_id_L: Tensor) -> bool:
        """Tells whether a process needs a row that is in the files of another; a collective."""
        foreign_id = stored_id_S[:0]
        if not torch.equal(stored_id_S, example_id_L):
            # Where rows of one time lie in two chunks, those of the other chunk are among them.
            foreign_id = stored_id_S[np.isin(stored_id_S.numpy(), example_id_L.numpy(), invert=True)]
        counts = self._process_group.all_gather(torch.tensor(foreign_id.numel())).tolist()
        if not sum(counts):
            return False
        foreign_id = self._process_group.all_gather_rows(foreign_id, counts)
        return not self._process_group.all_agree(not np.isin(example_id_L.numpy(), foreign_id.numpy()).any())

    def close(self) -> None:
        """Closes the files."""
        self._stream.close()


def open_supervision(
    store: Store, teacher: str, window: Window, process_group: ProcessGroup
) -> ChunkSupervision | None:
    """Opens a teacher's committed supervision of a window on every process; None if there is none, or no row."""
    home = store.home(teacher)
    records = home.store.supervision_files(home.model, window)
    return ChunkSupervision(process_group, home.store.workspace, records) if records else None
