"""Shards a chunk of the stream over the processes of a job, and cuts a model's batches from the whole chunk.

Row i of a window belongs to process ``i % count``, whichever process has read it. A batch holds the same rows on any
number of processes; each process computes with its shard of the batch, which may be empty.

Legend: L rows of this process in a chunk, G rows of the whole chunk that a model reads, P batches, R processes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from exfm.config.loading import Experiment
from exfm.data.batch import Batch
from exfm.data.blank import blank_batch
from exfm.data.stream import Chunk, ChunkReader
from exfm.errors import ConfigError
from exfm.interfaces.data_source import Window
from exfm.interfaces.process_group import ProcessGroup
from exfm.modeling.ranking_model import RankingModel

Ints = npt.NDArray[np.int64]
_LATEST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Accumulation:
    """Position of a micro-batch in the gradient accumulation of a step of the dense layers.

    Attributes:
        is_first: whether gradients are zeroed before the micro-batch.
        is_last: whether the optimizer steps after the micro-batch.
        steps: number of micro-batches whose gradients are averaged.
    """

    is_first: bool = True
    is_last: bool = True
    steps: int = 1

    @classmethod
    def at(cls, index: int, batches: int, accumulate: int) -> Accumulation:
        """Returns the position of the batch at an index of a chunk.

        The last step of a chunk may average fewer than ``accumulate`` batches, because gradients never accumulate
        across chunks.
        """
        first = index - index % accumulate
        steps = min(accumulate, batches - first)
        return cls(index == first, index == first + steps - 1, steps)


WHOLE_STEP = Accumulation()
"""The only micro-batch of a step."""


@dataclass(frozen=True)
class BatchShard:
    """This process's shard of a batch.

    Attributes:
        size: number of its rows.
        counts: number of rows of the batch on each process.
        newest_us: time of the newest row of the batch, over all processes.
    """

    size: int
    counts: tuple[int, ...]
    newest_us: int


@dataclass(frozen=True)
class ModelChunk:
    """The rows of a chunk that a model reads, cut into batches.

    Attributes:
        index: positions of the rows in this process's shard of the chunk.
        shards: this process's shard of each batch.
        position: positions of the rows in the window.
    """

    index: Tensor
    shards: tuple[BatchShard, ...]
    position: Ints

    @property
    def examples(self) -> int:
        """Number of rows on all processes."""
        return sum(sum(shard.counts) for shard in self.shards)


@dataclass(frozen=True)
class ModelBatch:
    """A batch as a model reads it.

    Attributes:
        batch: the rows of the shard, or the blank example where the shard is empty.
        rows: positions of the shard in the rows of the ``ModelChunk``.
    """

    batch: Batch
    shard: BatchShard
    rows: slice
    accumulation: Accumulation


@dataclass(frozen=True)
class ShardedChunk(Chunk):
    """This process's shard of a chunk, with the extent of the whole chunk.

    Attributes:
        process_group: the processes.
        blank: a single example without features, to compute with where the shard of a batch is empty.
        start: number of rows of the window before the chunk.
        size: number of rows of the whole chunk.
        first_us, last_us: times of the chunk's first and last row.
    """

    process_group: ProcessGroup
    blank: Batch | None
    start: int
    size: int
    first_us: int
    last_us: int

    def cut(self, picked: Tensor | None, batch_size: int) -> ModelChunk:
        """Cuts the picked rows of the whole chunk into equal batches of at most ``batch_size``.

        Args:
            picked: positions in this process's shard, ascending; None for all.
        """
        times = self.batch.event_time_us
        index = picked
        if index is None:
            index = torch.arange(times.numel())
        position = self._position(index)
        if self.process_group.world_size == 1:
            return ModelChunk(index, self._cut_alone(index, batch_size), position)
        position_G = np.arange(self.size)
        if picked is not None:
            position_G = self._picked_anywhere(picked)
        count = self.process_group.world_size
        owner_G = (self.start + position_G) % count
        if not position_G.size:
            return ModelChunk(index, (), position)
        position_P = np.array_split(position_G, math.ceil(position_G.size / batch_size))
        batch_G = np.repeat(np.arange(len(position_P)), [positions.size for positions in position_P])
        # Each pair (batch, owner) is encoded as an integer, so that a single bincount fills the table (P, R).
        counts_PR = np.bincount(batch_G * count + owner_G, minlength=len(position_P) * count).reshape(-1, count)
        index_P = torch.split(index, counts_PR[:, self.process_group.rank].tolist())
        shards: list[BatchShard] = []
        for rows, counts, newest_us in zip(index_P, counts_PR.tolist(), self._newest_us(index_P), strict=True):
            shards.append(BatchShard(rows.numel(), tuple(counts), newest_us))
        return ModelChunk(index, tuple(shards), position)

    def _position(self, index: Tensor) -> Ints:
        """Returns the positions in the window of rows of this process's shard."""
        count = self.process_group.world_size
        # The first row of the shard is the first of the chunk that belongs to this process.
        first = self.start + (self.process_group.rank - self.start) % count
        position: Ints = first + count * index.numpy()
        return position

    def _cut_alone(self, index: Tensor, batch_size: int) -> tuple[BatchShard, ...]:
        """Cuts the rows of a single process, without communication."""
        if not index.numel():
            return ()
        shards: list[BatchShard] = []
        for rows in index.tensor_split(math.ceil(index.numel() / batch_size)):
            # Rows lie in the order of time, so the last is the newest.
            shards.append(BatchShard(rows.numel(), (rows.numel(),), int(self.batch.event_time_us[rows[-1]])))
        return tuple(shards)

    @property
    def position(self) -> Tensor:
        """Returns the positions (L,) of this process's rows in the whole chunk."""
        count = self.process_group.world_size
        # Row i of the window belongs to process ``i % count``, and ``start`` rows of the window precede the chunk.
        first = (self.process_group.rank - self.start) % count
        return first + count * torch.arange(self.batch.size)

    def select_without_features(self, index: Tensor) -> Batch:
        """Selects ids, times and labels of rows, and leaves the features out because copying them is slow."""
        return self.batch.only(frozenset(), torch.zeros(0, dtype=torch.int64)).select(index)

    def batches(self, rows: ModelChunk, model: RankingModel, accumulate: int = 1) -> Iterator[ModelBatch]:
        """Yields the batches of a ``ModelChunk`` with the features that a model reads.

        Args:
            accumulate: number of batches of a step of the dense layers.
        """
        narrowed = None
        if rows.index.numel():
            narrowed = model.narrow(self.batch)
            if rows.index.numel() < narrowed.size:
                narrowed = narrowed.select(rows.index)
        end = 0
        for number, shard in enumerate(rows.shards):
            start, end = end, end + shard.size
            accumulation = Accumulation.at(number, len(rows.shards), accumulate)
            if shard.size:
                assert narrowed is not None
                batch = narrowed.slice(start, end)
            else:
                # A process without rows computes all the same, because the collectives of the step need every rank.
                assert self.blank is not None
                batch = model.narrow(self.blank)
            yield ModelBatch(batch, shard, slice(start, end), accumulation)

    def _picked_anywhere(self, picked: Tensor) -> Ints:
        """All-gathers the positions in the whole chunk of the rows that any process has picked."""
        count = self.process_group.world_size
        # Rounded up, and equal on all ranks, because an all-gather needs buffers of equal size.
        width = -(-self.size // count)
        picked_L = np.zeros(width, bool)
        picked_L[picked.numpy()] = True
        # Sent as bits: an eighth of the bytes of a mask, and fewer than the positions where many rows are picked.
        bits = self.process_group.all_gather(torch.from_numpy(np.packbits(picked_L))).numpy()
        picked_RL = np.unpackbits(bits, axis=1, count=width).astype(bool)
        position = np.arange(self.size)
        # Row i of the chunk is row ``i // count`` of the shard of rank ``(start + i) % count``.
        anywhere: Ints = position[picked_RL[(self.start + position) % count, position // count]]
        return anywhere

    def _newest_us(self, index_P: Sequence[Tensor]) -> list[int]:
        """All-gathers the time of the newest row of each batch."""
        times = self.batch.event_time_us
        newest_P = [-_LATEST] * len(index_P)  # never the maximum, so that empty shards do not count
        for number, rows in enumerate(index_P):
            if rows.numel():
                newest_P[number] = int(times[rows[-1]])
        newest_us: list[int] = self.process_group.all_gather(torch.tensor(newest_P)).amax(dim=0).tolist()
        return newest_us


def read_sharded(
    reader: ChunkReader, window: Window, process_group: ProcessGroup, only: Collection[str] | None = None
) -> Iterator[ShardedChunk]:
    """Yields a window's chunks.

    A process whose rows have ended yields empty chunks while another process has rows, because every rank must take
    part in the collectives of each chunk.
    """
    blank = None
    if process_group.world_size > 1:
        blank = blank_batch(reader.schema, 1)
    chunks = reader.read(window, only)
    start, newest_us = 0, window.start_us
    while True:
        chunk = next(chunks, None) or reader.empty_chunk()
        times = chunk.batch.event_time_us
        # The last time is negated, so that a minimum over ranks gives the first and the last time.
        extent = [0, _LATEST, _LATEST]
        if times.numel():
            extent = [times.numel(), int(times[0]), -int(times[-1])]
        extents_R3 = process_group.all_gather(torch.tensor(extent))
        size = int(extents_R3[:, 0].sum())
        if not size:
            return
        first_us, last_us = extents_R3[:, 1:].amin(dim=0).tolist()
        if process_group.world_size > 1 and reader.source.in_order:
            newest_us = _check_time(process_group, times, extents_R3[:, 0].tolist(), start, newest_us)
        yield ShardedChunk(chunk.batch, chunk.rows, process_group, blank, start, size, first_us, -last_us)
        start += size


def _check_time(process_group: ProcessGroup, time_L: Tensor, counts: Sequence[int], start: int, newest_us: int) -> int:
    """Checks that time does not go backwards between rows of different processes; returns the time of the last row.

    A process checks only its shard of the stream, so that rows of two processes are compared here alone.

    Args:
        counts: number of rows of the chunk on each process.
        start: number of rows of the window before the chunk.
        newest_us: time of the last row of the chunk before.

    Raises:
        ConfigError: it does; on every process.
    """
    size, count = sum(counts), process_group.world_size
    times = process_group.all_gather_rows(time_L, counts).numpy()
    # argsort of the stable argsort is its inverse permutation: the index in rank order of each row of the stream.
    time_G = times[np.argsort(np.argsort((start + np.arange(size)) % count, kind="stable"))]
    # The previous chunk's newest time comes first, so that chunks are compared too.
    backwards = np.diff(time_G, prepend=newest_us) < 0
    if backwards.any():
        row = start + int(backwards.argmax())
        raise ConfigError(f"the stream, row {row} of the window: time goes backwards. Order the rows by time.")
    return int(time_G[-1])


def check_sharding(experiment: Experiment, process_group: ProcessGroup) -> None:
    """Checks that several processes can run an experiment.

    Raises:
        ConfigError: a chunk has fewer rows than there are processes.
    """
    count = process_group.world_size
    if count == 1:
        return
    stream = experiment.config.stream
    if stream.chunk_rows < count:
        raise ConfigError(
            f"stream.chunk_rows: {stream.chunk_rows} rows do not reach {count} processes; raise it to {count} or more"
        )
