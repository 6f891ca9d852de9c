"""Base classes of parallel plans, for a single process and for several, and the modules that they are built of.

Everything here is public, and none of it is a component: a plugin derives its plan from these classes.
"""

from __future__ import annotations

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
    "CpuTrunkRunner",
    "DataParallelModel",
    "DataParallelPlan",
    "DeviceConfig",
    "FusedModel",
    "FusedTables",
    "ReplicatedTables",
    "SingleProcessPlan",
    "TorchProcessGroup",
    "estimate_gradient_reduction",
    "estimate_replicated_tables",
    "fuse_tables",
    "replicated_tables",
    "select_collectives",
    "select_trunk_runner",
]
