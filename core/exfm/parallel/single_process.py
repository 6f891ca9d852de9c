"""The base of parallel plans of a single process on a single device."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch
from torch import nn

from exfm.interfaces.data_source import Shard
from exfm.interfaces.layout import Cluster, Layout, Workload
from exfm.interfaces.parallel_model import ParallelModel
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.interfaces.table_optimizer import TableOptimizer
from exfm.interfaces.trunk import TrunkRunner
from exfm.parallel.cpu_trunk_runner import select_trunk_runner
from exfm.parallel.device import DeviceConfig, select_device
from exfm.parallel.estimate import replicated_tables
from exfm.parallel.fused_model import FusedModel, fuse_tables
from exfm.parallel.fused_tables import FusedTables


class SingleProcessPlan(ParallelPlan):
    """Trains in a single process on a single device: every table collection becomes fused FBGEMM calls.

    A subclass sets ``name``; it may extend ``Config`` and override any method.

    Raises:
        ValueError: torchrun started several processes.
    """

    resets_rows: ClassVar[bool] = True

    class Config(DeviceConfig):
        """Fields of a plan of a single process."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        # torchrun sets WORLD_SIZE; processes that do not communicate would all write the same run.
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started > 1:
            raise ValueError(
                f"{self.name} computes in one process, and {started} were started; name a plan of several, such as ddp"
            )
        self._device = select_device(config.device)

    @property
    def device(self) -> torch.device:
        """The CPU or the GPU."""
        return self._device

    @property
    def shard(self) -> Shard:
        """All rows."""
        return Shard()

    @property
    def trunk_runner(self) -> TrunkRunner:
        """On a CPU a single process divides large batches; see ``CpuTrunkRunner``."""
        return select_trunk_runner(self._device, self.process_group)

    def parallelize(self, model: nn.Module, table_optimizer: TableOptimizer) -> ParallelModel:
        """Replaces each table collection by a fused collection, and moves everything else to the device."""
        fuse_tables(model, table_optimizer, self._device, FusedTables)
        return FusedModel(model)

    @classmethod
    def estimate_layout(
        cls, config: Any, model: nn.Module, table_optimizer: TableOptimizer, workload: Workload, cluster: Cluster
    ) -> Layout:
        """Places everything on the single process; see ``exfm.parallel.LayoutEstimator``."""
        if cluster.count > 1:
            raise ValueError(
                f"{cls.name} computes in one process, and {cluster.count} are planned for; name a plan of several, "
                "such as ddp"
            )
        return Layout(1, replicated_tables(workload, 1))
