"""Dense layers sharded by FSDP2, block by block, on a mesh of replicas and shards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from pydantic import Field, PositiveInt
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

import exfm
from exfm.parallel import (
    FLOAT_BYTES,
    DataParallelModel,
    DataParallelPlan,
    ReplicatedTables,
    estimate_replicated_tables,
    fuse_tables,
    replicated_tables,
    select_collectives,
    select_trunk_runner,
)
from exfm_plugins.parallel.hsdp.layout import ShardedDense, check_replicas, group_size


class Hsdp(DataParallelPlan):
    """Hybrid sharded data parallel (FSDP2): memory for dense layers falls with the processes of a group.

    The processes form ``replicas`` groups. Inside a group each process stores its shard of every block of the encoders
    and the backbone, and of their optimizer states. A block's weights are gathered when it computes, and freed
    afterwards. Gradients are reduced and scattered inside the group, then averaged over the groups. Every process
    stores all other layers whole, such as heads and projections, because they are small; tables too, as in `ddp`.
    """

    name: ClassVar[str] = "hsdp"

    class Config(DataParallelPlan.Config):
        """Fields of `hsdp`."""

        replicas: PositiveInt = Field(
            1, description="Copies of the dense layers: the number of groups of processes, each of which stores a copy."
        )
        gradients: Literal["fp32", "bf16"] = Field(
            "fp32", description="The dtype in which gradients of blocks are sent; bf16 halves the bytes."
        )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        count = self.process_group.world_size
        check_replicas(self.name, config.replicas, count)
        # FSDP2 warns about in-place writes to a block's output; outputs of encoders are concatenated, never written to.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        shape = (config.replicas, count // config.replicas)
        self.mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=("replicate", "shard"))
        self._precision = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if config.gradients == "bf16" else None)

    @property
    def trunk_runner(self) -> exfm.parallel.TrunkRunner:
        """On a CPU a single process divides large batches, on a single thread: FSDP2's hooks are not re-entrant."""
        return select_trunk_runner(self.device, self.process_group, threads=1)

    def parallelize(
        self, model: nn.Module, table_optimizer: exfm.parallel.TableOptimizer
    ) -> exfm.parallel.ParallelModel:
        """Places tables and everything else as `ddp` does, then shards the encoders' and the backbone's blocks."""
        fuse_tables(model, table_optimizer, self.device, ReplicatedTables)
        self.shard_blocks(model)
        return HsdpModel(model)

    def shard_blocks(self, model: nn.Module) -> None:
        """Shards the encoders' and the backbone's blocks, in place."""
        mesh = self.mesh if self.mesh["replicate"].size() > 1 else self.mesh["shard"]
        for module in _bottom_up(model):
            # Freed after every forward pass, or weights loaded between two passes would not be gathered for the second.
            fully_shard(module, mesh=mesh, mp_policy=self._precision, reshard_after_forward=True)

    @classmethod
    def estimate_layout(
        cls,
        config: Any,
        model: nn.Module,
        table_optimizer: exfm.parallel.TableOptimizer,
        workload: exfm.parallel.Workload,
        cluster: exfm.parallel.Cluster,
    ) -> exfm.parallel.Layout:
        """Shards blocks inside a group, and places tables whole on every process; see ``LayoutEstimator``."""
        group, settings = group_size(cls.name, config.replicas, cluster)
        dense, collectives = cls._estimate_dense(config, model, workload, cluster.count, group)
        collectives = [*estimate_replicated_tables(workload, cluster.count), *collectives]
        return exfm.parallel.Layout(
            group, replicated_tables(workload, group), dense, select_collectives(collectives), settings
        )

    @classmethod
    def _estimate_dense(
        cls, config: Any, model: nn.Module, workload: exfm.parallel.Workload, count: int, group: int
    ) -> tuple[dict[str, tuple[int, ...]], list[exfm.parallel.Collective]]:
        """Estimates the size of each process's shards of the dense parameters, and the dense collectives."""
        dense = ShardedDense(model, tuple(_bottom_up(model)), group, count)
        collections = {use.collection for use in workload.tables}
        tables: list[nn.Parameter] = []
        for path in collections:
            tables += model.get_submodule(path).parameters()
        collectives = dense.collectives(tables, workload, 2 if config.gradients == "bf16" else FLOAT_BYTES)
        return dense.shard_sizes(), collectives


class HsdpModel(DataParallelModel):
    """A model whose blocks are sharded inside a group of processes."""

    def set_gradient_sync(self, enabled: bool) -> None:
        """Lets blocks average gradients over the groups once accumulated; inside a group each batch's are scattered."""
        for module in self.module.modules():
            if isinstance(module, FSDPModule):
                module.set_is_last_backward(enabled)
                module.set_requires_all_reduce(enabled, recurse=False)

    def clip_gradients(self, parameters: Sequence[nn.Parameter], max_norm: float) -> None:
        """Scales gradients down to a norm, to which every process of a group adds that of its shards."""
        sharded = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
        whole = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
        gradients = [parameter.grad for parameter in whole if parameter.grad is not None]
        square = nn.utils.get_total_norm(gradients).square()
        shards = [parameter.grad for parameter in sharded if isinstance(parameter.grad, DTensor)]
        if shards:
            # Of local tensors, because a norm of DTensors would be an all-reduce for each of them.
            local = nn.utils.get_total_norm([shard.to_local() for shard in shards]).square()
            dist.all_reduce(local, group=shards[0].device_mesh.get_group("shard"))
            square = square.to(local.device) + local
        # In two calls, because torch scales either DTensors or tensors in a call.
        for kind in (sharded, whole):
            nn.utils.clip_grads_with_norm_(kind, max_norm, square.sqrt())


def _bottom_up(model: nn.Module) -> Iterator[nn.Module]:
    """Yields encoders, backbones and their blocks, inner modules first, because FSDP2 shards bottom-up."""
    chosen: set[int] = set()
    for module in model.modules():
        if isinstance(module, exfm.Backbone | exfm.SequenceEncoder):
            chosen.update(map(id, (module, *module.blocks())))
    # A module comes before its children in modules(), which has each module once.
    for module in reversed(list(model.modules())):
        if id(module) in chosen and next(module.parameters(), None) is not None:
            yield module
