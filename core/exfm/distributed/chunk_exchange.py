"""How a chunk of the stream lies over the processes of a job, and how a model's batches are cut from all of it.

Row i of a window is read by process ``i % count``. A batch is the same rows on any number of processes; each process
has those of them that it has read, perhaps none.

Legend: L own rows of a chunk, G rows of the whole chunk that a model sees, P batches, R processes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
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
class Part:
    """This process's part of one batch.

    Attributes:
        own: how many of its rows this process has.
        counts: how many rows each process has.
        newest_us: the time of the batch's newest row.
    """

    own: int
    counts: tuple[int, ...]
    newest_us: int


@dataclass(frozen=True)
class Parts:
    """What of a chunk a model sees.

    Attributes:
        index: its own rows, positions in this process's part of the chunk.
        batches: how the rows of all processes are cut.
        order: puts the rows of all processes, one process after the other, into the order of the stream; None where
            they are, and on any process but the first.
    """

    index: Tensor
    batches: tuple[Part, ...]
    order: Ints | None


@dataclass(frozen=True)
class SpreadChunk(Chunk):
    """This process's part of a chunk, and what it knows of the whole.

    Attributes:
        process_group: the processes.
        blank: a single example without features, to compute with where this process has no row of a batch.
        start: how many rows of the window lie before the chunk.
        size: rows of the whole chunk.
        first_us, last_us: times of its first and its last row.
    """

    process_group: ProcessGroup
    blank: Batch | None
    start: int
    size: int
    first_us: int
    last_us: int

    def parts(self, picked: Tensor | None, batch_size: int) -> Parts:
        """Cuts the picked rows of the whole chunk into equal batches of at most ``batch_size``.

        Args:
            picked: positions in this process's part, ascending; None for all.
        """
        times = self.batch.event_time_us
        index = torch.arange(times.numel()) if picked is None else picked
        if self.process_group.world_size == 1:
            pieces = index.tensor_split(math.ceil(index.numel() / batch_size)) if index.numel() else ()
            alone = (Part(rows.numel(), (rows.numel(),), int(times[rows[-1]])) for rows in pieces)
            return Parts(index, tuple(alone), None)
        place_G = np.arange(self.size) if picked is None else self._picked_anywhere(picked)
        owner_G = (self.start + place_G) % self.process_group.world_size
        order = np.argsort(np.argsort(owner_G, kind="stable")) if self.process_group.is_rank_zero else None
        if not place_G.size:
            return Parts(index, (), order)
        place_P = np.array_split(place_G, math.ceil(place_G.size / batch_size))
        batch_G = np.repeat(np.arange(len(place_P)), [places.size for places in place_P])
        count = self.process_group.world_size
        counts_PR = np.bincount(batch_G * count + owner_G, minlength=len(place_P) * count).reshape(-1, count)
        own = torch.split(index, counts_PR[:, self.process_group.rank].tolist())
        whole = zip(own, counts_PR.tolist(), self._newest_us(own), strict=True)
        batches = (Part(rows.numel(), tuple(counts), newest_us) for rows, counts, newest_us in whole)
        return Parts(index, tuple(batches), order)

    def batches(self, parts: Parts, model: RankingModel) -> Iterator[tuple[Batch, Part]]:
        """The batches as a model reads them: own rows only, or the blank example where there are none."""
        size, first = parts.index.numel(), 0
        seen = model.narrow(self.batch) if size else None
        if seen is not None and size < seen.size:
            seen = seen.select(parts.index)
        for part in parts.batches:
            if part.own:
                assert seen is not None
                yield seen.slice(first, first + part.own), part
                first += part.own
            else:
                assert self.blank is not None
                yield model.narrow(self.blank), part

    def _picked_anywhere(self, picked: Tensor) -> Ints:
        """The places in the whole chunk of the rows that some process has picked."""
        count = self.process_group.world_size
        width = -(-self.size // count)
        own_L = np.zeros(width, bool)
        own_L[picked.numpy()] = True
        bits = self.process_group.all_gather(torch.from_numpy(np.packbits(own_L))).numpy()
        picked_RL = np.unpackbits(bits, axis=1, count=width).astype(bool)
        place = np.arange(self.size)
        wanted: Ints = place[picked_RL[(self.start + place) % count, place // count]]
        return wanted

    def _newest_us(self, own: tuple[Tensor, ...]) -> list[int]:
        """The newest time of each batch over all processes."""
        times = self.batch.event_time_us
        newest_P = [int(times[rows[-1]]) if rows.numel() else -_LATEST for rows in own]
        newest_us: list[int] = self.process_group.all_gather(torch.tensor(newest_P)).amax(dim=0).tolist()
        return newest_us


def read_spread(
    reader: ChunkReader, window: Window, process_group: ProcessGroup, only: Collection[str] | None = None
) -> Iterator[SpreadChunk]:
    """A window's chunks; a process that has no rows left gets empty ones as long as another has some."""
    blank = blank_batch(reader.schema, 1) if process_group.world_size > 1 else None
    chunks = reader.read(window, only)
    start = 0
    while True:
        chunk = next(chunks, None) or reader.empty_chunk()
        times = chunk.batch.event_time_us
        extent = [times.numel(), int(times[0]), -int(times[-1])] if times.numel() else [0, _LATEST, _LATEST]
        extents_R3 = process_group.all_gather(torch.tensor(extent))
        size = int(extents_R3[:, 0].sum())
        if not size:
            return
        first_us, last_us = extents_R3[:, 1:].amin(dim=0).tolist()
        yield SpreadChunk(chunk.batch, chunk.rows, process_group, blank, start, size, first_us, -last_us)
        start += size


def check_spread(experiment: Experiment, process_group: ProcessGroup) -> None:
    """Checks what several processes cannot do.

    Raises:
        ConfigError: bad rows are to be left out, a chunk has fewer rows than there are processes, or a transfer
            strategy or an input follows its teacher's states or parts.
    """
    count = process_group.world_size
    if count == 1:
        return
    stream = experiment.config.stream
    if stream.on_bad_row == "skip":
        raise ConfigError(
            f"stream.on_bad_row: skip needs one process: {count} processes count rows alike only where each row "
            "is kept. Mend the data, or name a parallel plan of one process."
        )
    if stream.chunk_rows < count:
        raise ConfigError(
            f"stream.chunk_rows: {stream.chunk_rows} rows do not reach {count} processes; raise it to {count} or more"
        )
    for arm in experiment.arms:
        following = [
            f"transfer.{number}: {spec.name} follows"
            for number, spec in enumerate(arm.config.transfer)
            if spec.component.requires & {"states", "parameters"}
        ]
        if arm.inputs:
            following.append("inputs: they follow")
        if following:
            raise ConfigError(
                f"models.{arm.base}.{following[0]} a teacher's states or parts row by row, which needs one process; "
                f"{count} were started. Train this student as a job of its own: "
                f"`exfm train CONFIG --model {arm.base}`."
            )
