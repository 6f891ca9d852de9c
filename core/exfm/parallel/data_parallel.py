"""The base of parallel plans in which every process computes its rows of each batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from exfm.interfaces.data_source import Shard
from exfm.interfaces.layout import Cluster, Layout, Workload
from exfm.interfaces.parallel_model import ParallelModel
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.interfaces.process_group import ProcessGroup
from exfm.interfaces.table_optimizer import TableOptimizer
from exfm.interfaces.trunk import TrunkRunner
from exfm.parallel.cpu_trunk_runner import select_trunk_runner
from exfm.parallel.device import DeviceConfig, select_local_device
from exfm.parallel.estimate import (
    estimate_gradient_reduction,
    estimate_replicated_tables,
    replicated_tables,
    select_collectives,
)
from exfm.parallel.fused_model import FusedModel, fuse_tables
from exfm.parallel.replicated_tables import ReplicatedTables
from exfm.parallel.torch_process_group import TorchProcessGroup


class DataParallelModel(FusedModel):
    """A replica of a model whose gradients are averaged over the processes after the backward pass."""

    def take_changed_rows(self) -> dict[str, Tensor]:
        """Returns the rows that any process has looked up for training, of tables that none has written to otherwise.

        A collective operation, because every process must save the same.
        """
        changed = super().take_changed_rows()
        tables = list(self._count_writes())
        tracked = torch.tensor([int(table in changed) for table in tables], dtype=torch.int64)
        dist.all_reduce(tracked, op=dist.ReduceOp.MIN)
        # All look up the bags of all processes, so the rows are equal.
        return {table: changed[table] for table, is_tracked in zip(tables, tracked.tolist(), strict=True) if is_tracked}

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Averages gradients in an all-reduce for each dtype; those of sharded parameters are averaged already.

        A parameter without a gradient here may have one in another process, whose rows reach it: it takes part with
        zeros. It keeps none where no process has one, because optimizers leave such parameters as they are.
        """
        buckets: dict[torch.dtype, list[nn.Parameter]] = {}
        for parameter in parameters:
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                buckets.setdefault(parameter.dtype, []).append(parameter)
        # A dict keeps the order of the parameters, which is the same on every process, as collectives require.
        for bucket in buckets.values():
            _reduce_bucket(bucket)


def _reduce_bucket(parameters: Sequence[nn.Parameter]) -> None:
    """Averages the gradients of parameters of a dtype."""
    missing = [parameter for parameter in parameters if parameter.grad is None]
    pieces = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in parameters]
    # Flags travel along, because only their sum tells whether any process has a gradient.
    flags = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
    # Concatenated, because a single all-reduce is faster than an all-reduce for each gradient.
    flat = torch.cat([*pieces, flags.to(pieces[0])])
    dist.all_reduce(flat)
    *sums, present = torch.split(flat, [*(piece.numel() for piece in pieces), len(pieces)])
    # Read only where a gradient is missing, because reading waits for the device.
    anywhere = present.tolist() if missing else [1.0] * len(pieces)
    for parameter, total, is_present in zip(parameters, sums, anywhere, strict=True):
        if is_present:
            mean = (total / dist.get_world_size()).view_as(parameter)
            if parameter.grad is None:
                parameter.grad = mean.clone()
            else:
                # In place, because the optimizer and accumulated gradients refer to these tensors.
                parameter.grad.copy_(mean)


class DataParallelPlan(ParallelPlan):
    """Trains in the processes that torchrun starts: every process stores the whole model.

    Gradients of dense layers are averaged over the processes after the backward pass; each process updates all tables
    with the gradients of all looked-up rows. A subclass sets ``name``; it may extend ``Config`` and override any
    method, ``parallelize`` above all.
    """

    resets_rows: ClassVar[bool] = True

    class Config(DeviceConfig):
        """Fields of a plan of several processes."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._device = select_local_device(config.device)
        self._process_group = TorchProcessGroup(self._device)

    @property
    def device(self) -> torch.device:
        """The CPU, or this process's GPU."""
        return self._device

    @property
    def process_group(self) -> ProcessGroup:
        """All processes that torchrun started."""
        return self._process_group

    @property
    def shard(self) -> Shard:
        """Row i of a window belongs to rank ``i % world_size``."""
        return Shard(self._process_group.rank, self._process_group.world_size)

    @property
    def trunk_runner(self) -> TrunkRunner:
        """On a CPU a single process divides large batches; see ``CpuTrunkRunner``."""
        return select_trunk_runner(self._device, self._process_group)

    def parallelize(self, model: nn.Module, table_optimizer: TableOptimizer) -> ParallelModel:
        """Replaces each table collection by a replicated collection, and moves everything else to the device."""
        fuse_tables(model, table_optimizer, self._device, ReplicatedTables)
        return DataParallelModel(model)

    @classmethod
    def estimate_layout(
        cls, config: Any, model: nn.Module, table_optimizer: TableOptimizer, workload: Workload, cluster: Cluster
    ) -> Layout:
        """Places everything on every process; see ``exfm.parallel.LayoutEstimator``."""
        if cluster.group not in (None, 1):
            raise ValueError(
                f"{cls.name} keeps the whole model on every process, so there are no groups of {cluster.group}; "
                "name a plan that shards, such as hsdp_2d"
            )
        collections = {use.collection for use in workload.tables}
        # By identity, because comparing tensors compares their elements.
        sparse: set[int] = set()
        for path in collections:
            sparse.update(map(id, model.get_submodule(path).parameters()))
        dense = 0
        for weight in model.parameters():
            if weight.requires_grad and id(weight) not in sparse:
                dense += weight.numel()
        average = estimate_gradient_reduction(dense + workload.extra_parameters, cluster.count, workload.accumulate)
        collectives = select_collectives([*estimate_replicated_tables(workload, cluster.count), average])
        return Layout(1, replicated_tables(workload, 1), collectives=collectives)
