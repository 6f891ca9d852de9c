"""Where each table's shards go inside a group of processes: TorchRec's planner, under constraints per table."""

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
_KERNEL, _RESERVED, _PLENTY = "fused", 0.15, 1 << 60
_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adagrad": torch.optim.Adagrad,
    "rowwise_adagrad": RowWiseAdagrad,
    "sgd": torch.optim.SGD,
}


class TableConstraint(BaseModel):
    """What the planner may do with one table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sharding: tuple[ShardingType, ...] = Field(
        (), description="How it may be cut; without any, each way that the device knows. On a CPU: table, column wise."
    )
    columns: PositiveInt | None = Field(
        None, multiple_of=4, description="Least width of a shard that is cut by columns; the planner's by default."
    )


class Placement:
    """Plans one sharding group; the other groups are copies of it.

    Args:
        process_group: all processes.
        group_size: how many of them a group has.
        first: the number of this group's first process.
        device: what they compute on.
        tables: constraints by table.
        otherwise: the constraint of the other tables.
        cluster: the processes that it is for, where it is not for these.
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
            refused = [one for one in constraint.sharding if one not in self._allowed]
            if refused:
                raise ValueError(
                    f"{f'tables.{name}.' if name else ''}sharding: {refused[0]} does not work on {device.type}; "
                    f"allowed: {', '.join(self._allowed)}"
                )

    @property
    def spreading(self) -> list[ShardingType]:
        """Ways that cut a table over many processes and that the planner is quick with, where others are asked for."""
        if not (self.tables or self._otherwise.sharding):
            return []
        quick: tuple[ShardingType, ...] = ("table_row_wise", "column_wise")
        return [way for way in quick if way in self._allowed and self._otherwise.sharding != (way,)]

    def plan(
        self, model: nn.Module, sharder: EmbeddingBagCollectionSharder, optimizer: str
    ) -> dict[str, EmbeddingModuleShardingPlan]:
        """A TorchRec sharding plan for each of a model's collections, with places in this process's group.

        Of equally good plans the planner takes another one in each process, so the first process's counts.

        Raises:
            ValueError: the tables do not fit.
        """
        is_rank_zero = self.process_group.is_rank_zero
        planned = json.dumps(self.search(model, sharder, optimizer)).encode() if is_rank_zero else b""
        tables_by_path = json.loads(self.process_group.broadcast_bytes(planned))
        return {
            path: EmbeddingModuleShardingPlan({table: self._sharding(**one) for table, one in tables.items()})
            for path, tables in tables_by_path.items()
        }

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
        return {
            path: {
                table: {
                    "sharding_type": sharding.sharding_type,
                    "shards": [
                        [list(shard.shard_offsets), list(shard.shard_sizes), shard.placement.rank()]
                        for shard in sharding.sharding_spec.shards
                    ],
                }
                for table, sharding in tables.items()
            }
            for path, tables in plan.plan.items()
        }

    def _sharding(self, sharding_type: str, shards: list[tuple[list[int], list[int], int]]) -> ParameterSharding:
        parts = [ShardMetadata(offsets, sizes, self._place(rank)) for offsets, sizes, rank in shards]
        owners = [rank + self.first for _, _, rank in shards]
        return ParameterSharding(sharding_type, _KERNEL, owners, EnumerableShardingSpec(parts))

    def _place(self, rank: int) -> _remote_device:
        owner = rank + self.first
        # Of a CPU the rank alone: ShardedTensor refuses `cpu:1`.
        device = f"cuda:{owner % self._per_machine}" if self.device.type == "cuda" else "cpu"
        return _remote_device(f"rank:{owner}/{device}")

    @property
    def _per_machine(self) -> int:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", self.process_group.world_size))
        return local if self._cluster is None else self._cluster.per_machine

    @property
    def local_size(self) -> int:
        """How many processes of a group one machine has."""
        return min(self.group_size, self._per_machine)

    def _constraint(self, name: str) -> ParameterConstraints:
        given = self.tables.get(name.removeprefix("table_"), self._otherwise)
        # Never data parallel: such tables would have no fused optimizer.
        return ParameterConstraints(
            sharding_types=list(given.sharding or self._allowed), compute_kernels=[_KERNEL], min_partition=given.columns
        )

    def _topology(self) -> Topology:
        on_gpus, memory = self.device.type == "cuda", None
        if self._cluster is not None:
            memory = self._cluster.memory or _PLENTY
        elif on_gpus:
            memory = torch.cuda.get_device_properties(self.device).total_memory
        return TopologyFactory.create_topology(
            TrainerConfig(world_size=self.group_size, local_world_size=self.local_size),
            HardwareConfig(hbm_cap_bytes=memory) if on_gpus else HardwareConfig(ddr_cap_bytes=memory),
            KernelConfig(compute_device=self.device.type),
        )


@contextmanager
def _counted(model: nn.Module, optimizer: str) -> Iterator[None]:
    """Has the planner count the state of the tables' optimizer, which it looks for at the parameters."""
    tables = [module for module in model.modules() if isinstance(module, EmbeddingBagCollection)]
    parameters = [parameter for module in tables for parameter in module.parameters()]
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
