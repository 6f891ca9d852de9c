"""A model whose tables are sharded inside a group of processes, and averaged over the groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

import exfm
from exfm_plugins.parallel.hsdp.plan import HsdpModel
from exfm_plugins.parallel.hsdp_2d.shards import CollectionShards

_EXACT = 2
"""Replicas whose mean leaves the rows as they are that no replica has changed."""


class Hsdp2dModel(HsdpModel):
    """Owns the shards of the tables, and the number of steps since their replicas were averaged.

    Args:
        shards: of each table collection.
        mesh: replicas and shards.
        sync_every: steps from an average to the next.
        process_group: all processes.
    """

    def __init__(
        self,
        module: nn.Module,
        shards: Sequence[CollectionShards],
        mesh: DeviceMesh,
        sync_every: int,
        process_group: exfm.parallel.ProcessGroup,
    ) -> None:
        super().__init__(module)
        self._shards, self._mesh, self._sync_every = shards, mesh, sync_every
        self._process_group = process_group
        self._changed = exfm.parallel.ChangedRows(self._count_writes)
        self._records_lookups = False
        self._table_names: set[str] = set()
        for collection in shards:
            self._table_names.update(collection.weight_names.values())
        self._steps = 0

    def take_changed_rows(self) -> dict[str, Tensor]:
        """Returns the rows that any process has looked up for training, or reset, of tables not written otherwise."""
        if not self._records_lookups:
            for collection in self._shards:
                collection.record_lookups(self._changed)
            self._records_lookups = True
        return self._changed.take_all(self._process_group)

    def _count_writes(self) -> exfm.parallel.WriteCounts:
        counts: exfm.parallel.WriteCounts = {}
        for collection in self._shards:
            for table, versions in collection.count_writes().items():
                counts.setdefault(table, []).extend(versions)
        return counts

    def sync_tables(self) -> None:
        """Averages tables over the replicas every ``sync_every`` steps."""
        self._steps += 1
        if self._steps == self._sync_every:
            self._average()

    @torch.no_grad()
    def _average(self) -> None:
        """Averages the replicas of each shard, unless there was no step since the last average."""
        replicas = self._mesh["replicate"].size()
        if replicas > 1 and self._steps:
            group = self._mesh.get_group("replicate")
            tensors: list[Tensor] = []
            for collection in self._shards:
                for local in collection.local_tensors().values():
                    tensors.append(local.weight)
                    if local.state is not None:
                        tensors.append(local.state)
            # Of two equal numbers the mean is exact. Of more the sum is rounded, so that all rows may have changed.
            with self._changed.writing() if replicas == _EXACT else nullcontext():
                # All are started before the first wait, so that they overlap.
                reductions = [dist.all_reduce(tensor, group=group, async_op=True) for tensor in tensors]
                for reduction in reductions:
                    assert reduction is not None
                    reduction.wait()
                for tensor in tensors:
                    tensor /= replicas  # gloo has no mean
        self._steps = 0

    def reset_rows(self, table: str, rows: Tensor, source_rows: Tensor) -> None:
        """Resets rows in every group's tables; replicas that differ stay different until they are averaged."""
        self._changed.add(table, rows)
        with self._changed.writing():
            for collection in self._shards:
                collection.reset_rows(table, rows, source_rows, self._mesh.get_group("shard"))

    def state_dict(self) -> dict[str, exfm.parallel.StateTensor]:
        """Averages the replicas, and returns the state dict, of tables this process's shards."""
        self._average()
        state: dict[str, exfm.parallel.StateTensor] = {}
        for name, value in self.module.state_dict().items():
            # TorchRec numbers the processes of a shard for the whole job, and has no shards of other groups.
            if name not in self._table_names:
                state[name] = value
        for collection in self._shards:
            state |= collection.weights()
        return state

    def table_optimizer_state_dict(self) -> dict[str, exfm.parallel.StateTensor]:
        """Averages the replicas, and returns the shards of the fused optimizers' state, by the names of `single`."""
        self._average()
        states: dict[str, exfm.parallel.StateTensor] = {}
        for collection in self._shards:
            states |= collection.states(self._mesh.get_group("shard"))
        return states

    def table_optimizer_buffers(self) -> dict[str, exfm.parallel.StateTensor]:
        """Returns the shards of the fused optimizers' state, as they are used."""
        buffers: dict[str, exfm.parallel.StateTensor] = {}
        for collection in self._shards:
            buffers |= collection.state_buffers()
        return buffers

    def load_table_optimizer_state_dict(self, state: Mapping[str, exfm.parallel.StateTensor]) -> None:
        """Copies a state into the shards of this process."""
        super().load_table_optimizer_state_dict(state)
        for collection in self._shards:
            collection.share_states()
