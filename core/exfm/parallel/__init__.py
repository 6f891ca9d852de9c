"""Base classes of parallel plans, for a single process and for several, and the modules that they are built of.

Everything here is public, and none of it is a component: a plugin derives its plan from these classes.
"""

from __future__ import annotations

from exfm.interfaces.layout import (
    Cluster,
    Collective,
    Layout,
    LayoutEstimator,
    TableShard,
    TableSharding,
    TableUse,
    Workload,
)
from exfm.interfaces.local_shards import LocalShards, StateTensor
from exfm.interfaces.parallel_model import ParallelModel
from exfm.interfaces.process_group import ProcessGroup
from exfm.interfaces.table_optimizer import TableOptimizer
from exfm.interfaces.trunk import TrunkRunner
from exfm.parallel.changed_rows import ChangedRows, WriteCounts, tables_by_key
from exfm.parallel.cpu_trunk_runner import CpuTrunkRunner, select_trunk_runner
from exfm.parallel.data_parallel import DataParallelModel, DataParallelPlan
from exfm.parallel.device import DeviceConfig
from exfm.parallel.estimate import (
    FLOAT_BYTES,
    ID_BYTES,
    LENGTH_BYTES,
    estimate_gradient_reduction,
    estimate_replicated_tables,
    replicated_tables,
    select_collectives,
)
from exfm.parallel.fused_model import FusedModel, fuse_tables
from exfm.parallel.fused_tables import FusedTables
from exfm.parallel.replicated_tables import ReplicatedTables
from exfm.parallel.single_process import SingleProcessPlan
from exfm.parallel.torch_process_group import TorchProcessGroup

__all__ = [
    "FLOAT_BYTES",
    "ID_BYTES",
    "LENGTH_BYTES",
    "ChangedRows",
    "Cluster",
    "Collective",
    "CpuTrunkRunner",
    "DataParallelModel",
    "DataParallelPlan",
    "DeviceConfig",
    "FusedModel",
    "FusedTables",
    "Layout",
    "LayoutEstimator",
    "LocalShards",
    "ParallelModel",
    "ProcessGroup",
    "ReplicatedTables",
    "SingleProcessPlan",
    "StateTensor",
    "TableOptimizer",
    "TableShard",
    "TableSharding",
    "TableUse",
    "TorchProcessGroup",
    "TrunkRunner",
    "Workload",
    "WriteCounts",
    "estimate_gradient_reduction",
    "estimate_replicated_tables",
    "fuse_tables",
    "replicated_tables",
    "select_collectives",
    "select_trunk_runner",
    "tables_by_key",
]
