"""The tensors of a placed model as a process stores them: whole, or boxes of tensors that no process stores whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

Offsets = tuple[int, ...]


class LocalShards:
    """Holds this process's boxes of a tensor that is sharded in any way, such as columns of a table.

    torch.distributed.checkpoint saves and loads it as it does a DTensor. Boxes that several processes store must have
    equal offsets and values: they are saved once.

    Args:
        shape: of the whole tensor, equal on every process.
        dtype: of its elements.
        boxes: this process's boxes, each by the index of its first element; empty where it stores none.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, boxes: Mapping[Offsets, Tensor]) -> None:
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self.boxes = dict(boxes)

    def size(self) -> torch.Size:
        """Returns the shape of the whole tensor, as a tensor does."""
        return self.shape

    def detach(self) -> LocalShards:
        """Returns the boxes without their gradients, as a tensor does."""
        return LocalShards(self.shape, self.dtype, {offsets: box.detach() for offsets, box in self.boxes.items()})

    def __create_write_items__(self, name: str, _: Any) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        items: list[WriteItem] = []
        for chunk in self.__create_chunk_list__():
            data = TensorWriteData(chunk=chunk, properties=properties, size=self.shape)
            items.append(WriteItem(MetadataIndex(name, chunk.offsets), WriteItemType.SHARD, tensor_data=data))
        return items

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(offsets), box.shape) for offsets, box in self.boxes.items()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self.boxes[tuple(index.offset)]


StateTensor = Tensor | LocalShards
"""An entry of a state: a tensor that this process stores whole, a DTensor, a torch ShardedTensor, or LocalShards."""


def whole_tensors(state: Mapping[str, StateTensor]) -> dict[str, Tensor]:
    """Selects the entries of a state that are tensors."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def local_boxes(state: StateTensor) -> dict[Offsets, Tensor]:
    """Returns this process's boxes of a tensor, by the index of their first element; writing to them changes it."""
    if isinstance(state, ShardedTensor):
        return {tuple(shard.metadata.shard_offsets): shard.tensor for shard in state.local_shards()}
    if isinstance(state, LocalShards):
        return {offsets: box.detach() for offsets, box in state.boxes.items()}
    if isinstance(state, DTensor):
        (chunk,) = state.__create_chunk_list__()  # type: ignore[no-untyped-call]
        return {tuple(chunk.offsets): state.to_local().detach()}
    return {(0,) * state.dim(): state.detach()}


@torch.no_grad()
def copy_state(name: str, destination: StateTensor, value: StateTensor) -> None:
    """Copies a tensor, whole or sharded as the destination is, into the boxes that this process stores.

    Raises:
        RuntimeError: the shapes differ, or the boxes.
    """
    if destination.shape != value.shape:
        raise RuntimeError(f"size mismatch for {name}: {list(value.shape)}, and here {list(destination.shape)}")
    boxes = local_boxes(value)
    whole = boxes.get((0,) * len(value.shape))
    for offsets, box in local_boxes(destination).items():
        source = boxes.get(offsets)
        if source is None or source.shape != box.shape:
            if whole is None or whole.shape != value.shape:
                raise RuntimeError(f"{name}: is sharded otherwise here, and can be loaded from a snapshot only")
            source = whole[tuple(slice(start, start + size) for start, size in zip(offsets, box.shape, strict=True))]
        # A snapshot may have been read into the very box.
        if source.data_ptr() != box.data_ptr() or source.stride() != box.stride():
            box.copy_(source)
