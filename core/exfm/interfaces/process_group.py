"""ProcessGroup: the processes that train a model together, and their collective operations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class ProcessGroup:
    """A group of a single process; a plan for several processes returns a subclass.

    Every process calls the same methods in the same order, because each of them waits for all the others.

    Attributes:
        rank: the number of this process, from 0. Rank 0 writes the files of a run.
        world_size: the number of processes.
    """

    rank: int = 0
    world_size: int = 1

    def all_gather_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Gathers rows (n, ...) of all processes on every process, in the order of the ranks.

        Args:
            rows: (n, ...), n the entry of ``counts`` at this process's rank.
            counts: the number of rows of each process.
        """
        return rows

    def all_gather_columns(self, columns: Sequence[Tensor], counts: Sequence[int]) -> Sequence[Tensor]:
        """Gathers the rows of several columns (n, K) in a single collective, with gradients to this process's rows.

        For losses that need a whole batch, such as those that compare examples with each other. The gradients are
        multiplied by ``world_size``, because plans average the gradients of parameters over the processes. So a loss
        over all rows, which every process computes, has the gradient that it would have in a single process. A column
        that no loss uses gets no gradient, not even zeros.
        """
        return columns

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Gathers the bytes of every process on rank 0; the other processes get an empty list."""
        return [data]

    def for_thread(self) -> ProcessGroup:
        """Connects the processes once more, for ``gather_bytes`` in another thread; every process calls it.

        Collectives of two threads over one connection would not be in the same order on every process.
        """
        return self

    def all_to_all_bytes(self, buffers: Sequence[bytes | memoryview]) -> list[memoryview]:
        """Sends a buffer to every process, and returns the buffers that the processes have sent to this process.

        Here all buffers go to all processes, which any group can do; a subclass sends each to its receiver alone.

        Args:
            buffers: a buffer for each process, in the order of the ranks.
        """
        sizes_RR = self.all_gather(torch.tensor([len(buffer) for buffer in buffers])).numpy()
        everything = memoryview(b"".join(self.all_gather_bytes(b"".join(buffers))))
        ends = np.cumsum(sizes_RR).reshape(sizes_RR.shape)
        starts = ends - sizes_RR
        bounds = zip(starts[:, self.rank], ends[:, self.rank], strict=True)
        return [everything[start:end] for start, end in bounds]

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """Gathers the bytes of every process on every process, in the order of the ranks."""
        sizes = self.all_gather(torch.tensor(len(data))).tolist()
        if not sum(sizes):
            return [b""] * self.world_size
        # A bytearray, because torch warns about buffers that it cannot write; it refuses an empty buffer.
        sent = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)
        gathered = self.all_gather_rows(sent, sizes).numpy()
        return [buffer.tobytes() for buffer in np.split(gathered, np.cumsum(sizes[:-1]))]

    def close(self) -> None:
        """Closes the connection between the processes."""

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes the files of a run."""
        return self.rank == 0

    def all_gather(self, values: Tensor) -> Tensor:
        """Stacks a tensor of every process, all of the same shape: (world_size, ...)."""
        return self.all_gather_rows(values.unsqueeze(0), (1,) * self.world_size)

    def broadcast(self, value: int) -> int:
        """Returns rank 0's value on every process, for decisions on which the processes could differ."""
        return value if self.world_size == 1 else int(self.all_gather(torch.tensor(value))[0])

    def broadcast_bytes(self, data: bytes) -> bytes:
        """Returns rank 0's bytes on every process."""
        if self.world_size == 1:
            return data
        # The size first, because the other processes have to allocate a buffer of it.
        size = self.broadcast(len(data))
        buffer = torch.zeros(size, dtype=torch.uint8)
        if self.is_rank_zero and size:
            # A bytearray, because torch warns about buffers that it cannot write.
            buffer.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return self.all_gather(buffer)[0].numpy().tobytes() if size else b""

    def all_agree(self, value: bool) -> bool:
        """Returns whether a value is true on every process."""
        return value if self.world_size == 1 else bool(self.all_gather(torch.tensor(int(value))).min())

    def barrier(self) -> None:
        """Returns when every process has called it."""
        self.broadcast(0)


SINGLE_PROCESS = ProcessGroup()
