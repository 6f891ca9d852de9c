"""Reads tensors from the shard files of a snapshot: whole, or the boxes that this process stores of them.

The planner of torch.distributed.checkpoint finds which boxes of which files a process needs, whatever processes have
written them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from exfm.errors import RunError
from exfm.interfaces.local_shards import StateTensor, local_boxes
from exfm.storage.hashing import FileRecord
from exfm.storage.shard_index import Box, IndexedTensor
from exfm.storage.tensor_files import TensorFile, empty_tensor
from exfm.storage.workspace import Workspace

Destinations = Callable[[str], StateTensor | None]
"""Returns the tensor that a stored tensor is read into, by its name."""


class RowGrowth(Protocol):
    """Says how a stored tensor becomes a tensor with more rows."""

    def repeats(self, name: str, before: int, rows: int) -> int:
        """Returns how often the stored rows are repeated; 0 if the tensor does not grow."""

    def fill(self, name: str, before: int, state: StateTensor) -> None:
        """Fills the rows from ``before`` on, which are not repeated."""


@dataclass(frozen=True)
class _Read:
    """Reads a box of a stored box.

    Attributes:
        name: of the tensor.
        stored: the stored box.
        offsets: index in the stored box of the first element that is read.
        destination: receives the elements; None to read the stored box as a new tensor.
    """

    name: str
    stored: Box
    offsets: Sequence[int]
    destination: Tensor | None


class ShardReader:
    """Reads tensors of a snapshot.

    Args:
        workspace: the run's folder.
        files: the committed files, by base name.
        index: the tensors in them.
    """

    def __init__(
        self, workspace: Workspace, files: Mapping[str, FileRecord], index: Mapping[str, IndexedTensor]
    ) -> None:
        self._workspace, self._files, self._index = workspace, files, index

    @property
    def names(self) -> Collection[str]:
        """The names of the tensors."""
        return self._index.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        return self._index[name].shape

    def read(
        self,
        select: Callable[[str], bool] = lambda name: True,
        into: Destinations = lambda name: None,
        growth: RowGrowth | None = None,
    ) -> dict[str, StateTensor]:
        """Reads tensors. A large one that lies whole in a file is memory-mapped: the caller copies what it keeps.

        Args:
            select: tells by its name whether a tensor is read; by default all are read.
            into: returns the destination of a tensor, whose boxes of this process are read; None for a new, whole
                tensor. A destination of another shape is not used.
            growth: reads tensors into destinations with more rows; without it these are not used.

        Raises:
            RunError: a file is missing or corrupt, or there is no memory. Destinations may have been written.
        """
        state: dict[str, StateTensor] = {}
        chunks: dict[str, list[ChunkStorageMetadata]] = {}
        reads: list[_Read] = []
        for name in filter(select, self._index):
            tensor, destination = self._index[name], into(name)
            repeats = 0 if destination is None else _repeats(name, tensor, destination, growth)
            if destination is None or not repeats:
                if len(tensor.boxes) == 1:
                    reads.append(_Read(name, tensor.boxes[0], (), None))
                    continue
                # Not more memory than the files have bytes: the index was checked against them.
                destination, repeats = empty_tensor(tensor.shape, tensor.dtype, name), 1
            state[name] = destination
            chunks[name] = _chunks(tensor, repeats)
        reads += self._plan(state, chunks)
        for name, destination in state.items():
            before = self._index[name].shape
            if growth is not None and destination.shape != before:
                growth.fill(name, before[0], destination)
        state |= self._execute(reads)
        # In the order of the index, whatever was read in place.
        return {name: state[name] for name in filter(state.__contains__, self._index)}

    def describe(self) -> dict[str, Tensor]:
        """Describes the tensors, by name: tensors on the meta device, which have no memory."""
        return {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in self._index.items()
        }

    def _plan(
        self, state: Mapping[str, StateTensor], chunks: Mapping[str, list[ChunkStorageMetadata]]
    ) -> Iterator[_Read]:
        """Yields the reads that fill this process's boxes of tensors from stored chunks."""
        described: dict[str, STORAGE_TYPES] = {}
        for name, tensor_chunks in chunks.items():
            properties = TensorProperties(dtype=self._index[name].dtype)
            described[name] = TensorStorageMetadata(properties, state[name].shape, tensor_chunks)
        planner = _Planner(state, Metadata(described))
        for item in planner.create_local_plan().items:
            boxes = self._index[item.storage_index.fqn].boxes
            assert item.storage_index.index is not None
            # Repeated rows come after all boxes, once more each.
            box = boxes[item.storage_index.index % len(boxes)]
            yield _Read(item.storage_index.fqn, box, item.storage_offsets, planner.resolve_tensor(item))

    def _execute(self, reads: Iterable[_Read]) -> dict[str, Tensor]:
        """Reads boxes, file by file; returns those that have no destination."""
        by_file: dict[str, list[_Read]] = {}
        for read in reads:
            by_file.setdefault(read.stored.file, []).append(read)
        tensors: dict[str, Tensor] = {}
        for base_name, file_reads in by_file.items():
            record = self._files[base_name]
            with self._workspace.reading(record) as file:
                opened = TensorFile(file, self._workspace.name(record.path))
                for read in file_reads:
                    key = self._check(opened, read, record)
                    if read.destination is None:
                        tensors[read.name] = opened.read(key)
                    else:
                        opened.read_box(key, read.offsets, read.destination)
        return tensors

    def _check(self, opened: TensorFile, read: _Read, record: FileRecord) -> str:
        """Returns a box's name in its file.

        Raises:
            RunError: the file has another tensor there than the index says.
        """
        tensor = self._index[read.name]
        key = read.stored.key(read.name, tensor.shape)
        stored = opened.tensors.get(key)
        if stored is None or (stored.dtype, stored.shape) != (tensor.dtype, read.stored.sizes):
            raise RunError(
                f"{self._workspace.name(record.path)}: {key}: the snapshot's index says that the file has this tensor, "
                f"of {tensor.dtype} and {list(read.stored.sizes)}, and it has not{self._workspace.remedy}"
            )
        return key


class _Planner(DefaultLoadPlanner):
    """Plans a state without nested dictionaries, whose sharded entries need not be tensors."""

    def __init__(self, state: Mapping[str, StateTensor], metadata: Metadata) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.state_dict = dict(state)
        self.metadata = metadata

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """Returns this process's box at an index."""
        assert index.offset is not None
        return local_boxes(self.state_dict[index.fqn])[tuple(index.offset)]


def _repeats(name: str, tensor: IndexedTensor, destination: StateTensor, growth: RowGrowth | None) -> int:
    """Returns how often a stored tensor's rows come in its destination; 0 where it does not fit."""
    shape = tuple(destination.shape)
    if shape == tensor.shape:
        return 1
    if growth is None or not shape or shape[1:] != tensor.shape[1:]:
        return 0
    return growth.repeats(name, tensor.shape[0], shape[0])


def _chunks(tensor: IndexedTensor, repeats: int) -> list[ChunkStorageMetadata]:
    """Describes the boxes of a tensor, all of them once more for each repetition of its rows."""
    chunks: list[ChunkStorageMetadata] = []
    for number in range(repeats):
        for box in tensor.boxes:
            offsets = list(box.offsets)
            if offsets:
                offsets[0] += number * tensor.shape[0]
            chunks.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(box.sizes)))
    return chunks
