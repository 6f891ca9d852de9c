"""Chooses the boxes of a model's tensors that each process writes into its shard file of a snapshot.

The planner of torch.distributed.checkpoint decides: a box that several processes store is written by one of them. Its
plans travel as JSON, because torch would send Python objects, which may hold code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from exfm.interfaces.local_shards import LocalShards, StateTensor, local_boxes
from exfm.interfaces.process_group import ProcessGroup
from exfm.storage.shard_index import Box, IndexedTensor, box_key, check_boxes
from exfm.storage.tensor_files import DTYPE_NAMES, DTYPES

_KEPT = 64
"""Choices that are kept: a model stores the same boxes after every window, and choosing takes longer than copying."""


@dataclass(frozen=True)
class Shards:
    """Holds the boxes that this process writes, and on rank zero the index of all boxes.

    Attributes:
        tensors: by name in this process's file; empty where other processes write everything.
        index: each tensor, with the rank that writes a box in place of its file. Empty on other ranks.
    """

    tensors: Mapping[str, Tensor]
    index: Mapping[str, IndexedTensor]

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Shards:
        """Returns the shards with copies of the tensors."""
        return replace(self, tensors=tensors)

    @property
    def ranks(self) -> set[int]:
        """The ranks that write a box."""
        return {int(box.file) for tensor in self.index.values() for box in tensor.boxes}

    def index_of(self, files: Mapping[str, str]) -> dict[str, Any]:
        """Returns the index as JSON.

        Args:
            files: base name of the file that a rank has written, by the rank.
        """
        tensors: dict[str, Any] = {}
        for name, tensor in self.index.items():
            boxes = tuple(replace(box, file=files[box.file]) for box in tensor.boxes)
            tensors[name] = replace(tensor, boxes=boxes).to_json()
        return tensors


def plan_shards(state: Mapping[str, StateTensor], process_group: ProcessGroup) -> Shards:
    """Chooses the boxes that each process writes; a collective operation.

    Args:
        state: tensors by name; a sharded one on every process that stores a part of it.
        process_group: the processes that call this.

    Raises:
        ValueError: an entry is no tensor, or the boxes of a tensor do not make it up.
    """
    planner = _Planner(state)
    data = json.dumps([_to_json(item) for item in planner.create_local_plan().items]).encode()
    gathered = process_group.gather_bytes(data)
    index: Mapping[str, IndexedTensor] = {}
    chosen = b""
    if process_group.is_rank_zero:
        chosen, index = _choose(tuple(gathered))
    mine = json.loads(process_group.broadcast_bytes(chosen))[process_group.rank]
    tensors: dict[str, Tensor] = {}
    for name, offsets in mine:
        box = local_boxes(state[name])[tuple(offsets)]
        key = box_key(name, state[name].shape, offsets, box.shape)
        if key in tensors:
            raise ValueError(f"{key}: two tensors of a state have this name")
        tensors[key] = box
    return Shards(tensors, index)


@lru_cache(_KEPT)
def _choose(gathered: tuple[bytes, ...]) -> tuple[bytes, Mapping[str, IndexedTensor]]:
    """Chooses from the boxes of all processes, as JSON, those that each writes, as JSON; returns the index too.

    Raises:
        ValueError: the boxes of a tensor do not make it up.
    """
    plans, _ = _Planner({}).create_global_plan([_to_plan(json.loads(plan)) for plan in gathered])
    index = _index(plans)
    # The planner checks this of several processes only.
    for name, tensor in index.items():
        try:
            check_boxes(tensor.shape, tensor.boxes)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    items: list[list[Any]] = []
    for plan in plans:
        items.append([[item.index.fqn, item.index.offset] for item in plan.items])
    return json.dumps(items).encode(), index


class _Planner(DefaultSavePlanner):
    """Plans a state without nested dictionaries, whose sharded entries need not be tensors."""

    def __init__(self, state: Mapping[str, StateTensor]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        for name, value in state.items():
            if not isinstance(value, Tensor | LocalShards):
                raise ValueError(f"{name}: a {type(value).__name__} cannot be saved; a state has tensors only")
        self.set_up_planner(dict(state))


def _to_json(item: WriteItem) -> list[Any]:
    data = item.tensor_data
    assert data is not None
    is_shard = item.type == WriteItemType.SHARD
    dtype = DTYPE_NAMES[data.properties.dtype]
    return [item.index.fqn, data.chunk.offsets, data.chunk.sizes, data.size, dtype, is_shard]


def _to_plan(items: list[list[Any]]) -> SavePlan:
    plan: list[WriteItem] = []
    for name, offsets, sizes, shape, dtype, is_shard in items:
        # A process may store an empty shard of a tensor that is not.
        if is_shard and not all(sizes) and all(shape):
            continue
        chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        data = TensorWriteData(chunk, TensorProperties(dtype=DTYPES[dtype]), torch.Size(shape))
        kind = WriteItemType.SHARD if is_shard else WriteItemType.TENSOR
        plan.append(WriteItem(MetadataIndex(name, offsets), kind, tensor_data=data))
    return SavePlan(plan)


def _index(plans: list[SavePlan]) -> dict[str, IndexedTensor]:
    """Lists the boxes of each tensor, with the number of the plan in place of a file."""
    tensors: dict[str, IndexedTensor] = {}
    for rank, plan in enumerate(plans):
        for item in plan.items:
            data = item.tensor_data
            assert data is not None
            box = Box(str(rank), tuple(data.chunk.offsets), tuple(data.chunk.sizes))
            before = tensors.get(item.index.fqn)
            boxes = (box,) if before is None else (*before.boxes, box)
            tensors[item.index.fqn] = IndexedTensor(data.properties.dtype, tuple(data.size), boxes)
    return tensors
