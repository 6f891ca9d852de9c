"""Places each table's shards inside a group of processes by TorchRec's planner, under constraints per table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import nn
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed.remote_device import _remote_device
from torchrec import EmbeddingBagCollection
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.stats import NoopEmbeddingStats
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    ParameterConstraints,
    PlannerError,
    Topology,
    TopologyFactory,
    TrainerConfig,
)
from torchrec.distributed.types import EmbeddingModuleShardingPlan, EnumerableShardingSpec, ParameterSharding
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

import exfm

ShardingType = Literal["table_wise", "column_wise", "row_wise", "table_row_wise", "table_column_wise"]
_ON_CPU: tuple[ShardingType, ...] = ("table_wise", "column_wise")
_ON_CUDA: tuple[ShardingType, ...] = ("table_wise", "column_wise", "row_wise", "table_row_wise", "table_column_wise")
_KERNEL, _RESERVED, _UNLIMITED = "fused", 0.15, 1 << 60
"""The kernel with a fused optimizer, the share of memory for all but tables (TorchRec's default), and bytes enough."""
_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adagrad": torch.optim.Adagrad,
    "rowwise_adagrad": RowWiseAdagrad,
    "sgd": torch.optim.SGD,
}


class TableConstraint(BaseModel):
    """Limits the planner's choices for a table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sharding: tuple[ShardingType, ...] = Field(
        (),
        description="Sharding types to choose from; empty: all of the device; a CPU has table_wise, column_wise.",
    )
    columns: PositiveInt | None = Field(
        None, multiple_of=4, description="Least width of a shard of columns; by default the planner's."
    )


class Placement:
    """Plans a sharding group; the other groups are copies of it.

    Args:
        process_group: all processes.
        group_size: the number of processes of a group.
        first: the rank of this group's first process.
        device: the device of the processes.
        tables: constraints by table.
        otherwise: the constraint of the other tables.
        cluster: the processes to plan for instead of ``process_group``, such as for an estimate.
    """

    def __init__(
        self,
        process_group: exfm.parallel.ProcessGroup,
        group_size: int,
        first: int,
        device: torch.device,
        tables: Mapping[str, TableConstraint],
        otherwise: TableConstraint,
        cluster: exfm.parallel.Cluster | None = None,
    ) -> None:
        self.process_group, self.group_size = process_group, group_size
        self.first, self.device = first, device
        self.tables, self._otherwise, self._cluster = dict(tables), otherwise, cluster
        self._allowed = _ON_CUDA if device.type == "cuda" else _ON_CPU
        for name, constraint in [*self.tables.items(), ("", otherwise)]:
            refused = [sharding_type for sharding_type in constraint.sharding if sharding_type not in self._allowed]
            if refused:
                prefix = f"tables.{name}." if name else ""
                raise ValueError(
                    f"{prefix}sharding: {refused[0]} does not work on {device.type}; "
                    f"allowed: {', '.join(self._allowed)}"
                )

    @property
    def spreading(self) -> list[ShardingType]:
        """Sharding types that spread a table over many processes and plan fast, where the config has others."""
        if not (self.tables or self._otherwise.sharding):
            return []
        quick: tuple[ShardingType, ...] = ("table_row_wise", "column_wise")
        allowed = [sharding_type for sharding_type in quick if sharding_type in self._allowed]
        return [sharding_type for sharding_type in allowed if self._otherwise.sharding != (sharding_type,)]

    def plan(
        self, model: nn.Module, sharder: EmbeddingBagCollectionSharder, optimizer: str
    ) -> dict[str, EmbeddingModuleShardingPlan]:
        """Plans each of a model's collections, with the ranks of this process's group.

        The planner may choose another of equally good plans in each process, so rank 0's plan is broadcast.

        Raises:
            ValueError: the tables do not fit.
        """
        is_rank_zero = self.process_group.is_rank_zero
        planned = json.dumps(self.search(model, sharder, optimizer)).encode() if is_rank_zero else b""
        tables_by_path = json.loads(self.process_group.broadcast_bytes(planned))
        plans: dict[str, EmbeddingModuleShardingPlan] = {}
        for path, tables in tables_by_path.items():
            shardings = {table: self._sharding(**sharding) for table, sharding in tables.items()}
            plans[path] = EmbeddingModuleShardingPlan(shardings)
        return plans

    def search(self, model: nn.Module, sharder: EmbeddingBagCollectionSharder, optimizer: str) -> dict[str, Any]:
        """Searches a plan, as JSON: each table's sharding type, and its shards with offsets, sizes and process.

        Raises:
            ValueError: the tables do not fit.
        """
        planner = EmbeddingShardingPlanner(
            topology=self._topology(),
            storage_reservation=FixedPercentageStorageReservation(_RESERVED),
            constraints={name: self._constraint(name) for name in _table_names(model)},
            stats=NoopEmbeddingStats(),
            debug=False,
        )
        try:
            with _counted(model, optimizer):
                plan = planner.plan(model, [sharder])
        except PlannerError as error:
            reason = " ".join(str(error).partition("Planner evaluated")[0].split())
            raise ValueError(f"the tables do not fit on {self.group_size} processes of a group: {reason}") from error
        tables_by_path: dict[str, dict[str, Any]] = {}
        for path, tables in plan.plan.items():
            tables_by_path[path] = {}
            for table, sharding in tables.items():
                shards: list[list[Any]] = []
                for shard in sharding.sharding_spec.shards:
                    shards.append([list(shard.shard_offsets), list(shard.shard_sizes), shard.placement.rank()])
                tables_by_path[path][table] = {"sharding_type": sharding.sharding_type, "shards": shards}
        return tables_by_path

    def _sharding(self, sharding_type: str, shards: list[tuple[list[int], list[int], int]]) -> ParameterSharding:
        metadata = [ShardMetadata(offsets, sizes, self._device(rank)) for offsets, sizes, rank in shards]
        owners = [rank + self.first for _, _, rank in shards]
        return ParameterSharding(sharding_type, _KERNEL, owners, EnumerableShardingSpec(metadata))

    def _device(self, rank: int) -> _remote_device:
        owner = rank + self.first
        # Without an index on a CPU, because ShardedTensor refuses `cpu:1`.
        device = f"cuda:{owner % self._per_machine}" if self.device.type == "cuda" else "cpu"
        return _remote_device(f"rank:{owner}/{device}")

    @property
    def _per_machine(self) -> int:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", self.process_group.world_size))
        return local if self._cluster is None else self._cluster.per_machine

    @property
    def local_size(self) -> int:
        """The number of processes of a group on each machine."""
        return min(self.group_size, self._per_machine)

    def _constraint(self, name: str) -> ParameterConstraints:
        constraint = self.tables.get(name.removeprefix("table_"), self._otherwise)
        # Never data parallel: such tables would have no fused optimizer.
        return ParameterConstraints(
            sharding_types=list(constraint.sharding or self._allowed),
            compute_kernels=[_KERNEL],
            min_partition=constraint.columns,
        )

    def _topology(self) -> Topology:
        on_gpus, memory = self.device.type == "cuda", None
        if self._cluster is not None:
            memory = self._cluster.memory or _UNLIMITED
        elif on_gpus:
            memory = torch.cuda.get_device_properties(self.device).total_memory
        return TopologyFactory.create_topology(
            TrainerConfig(world_size=self.group_size, local_world_size=self.local_size),
            HardwareConfig(hbm_cap_bytes=memory) if on_gpus else HardwareConfig(ddr_cap_bytes=memory),
            KernelConfig(compute_device=self.device.type),
        )


@contextmanager
def _counted(model: nn.Module, optimizer: str) -> Iterator[None]:
    """Sets the optimizer on the tables' parameters, where the planner looks it up to count the optimizer's memory."""
    parameters: list[Any] = []  # parameters do not declare the attribute
    for module in model.modules():
        if isinstance(module, EmbeddingBagCollection):
            parameters += module.parameters()
    for parameter in parameters:
        parameter._optimizer_classes = [_OPTIMIZERS[optimizer]]
    try:
        yield
    finally:
        for parameter in parameters:
            del parameter._optimizer_classes


def _table_names(model: nn.Module) -> list[str]:
    collections = [module for module in model.modules() if isinstance(module, EmbeddingBagCollection)]
    return [config.name for collection in collections for config in collection.embedding_bag_configs()]
