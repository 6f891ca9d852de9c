"""Dense layers sharded by FSDP2, block by block, on a mesh of replicas and shards."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

import exfm
from exfm_plugins.ddp.layout import FLOAT, table_exchanges, told, whole_tables
from exfm_plugins.ddp.plan import Ddp
from exfm_plugins.hsdp.layout import ShardedDense, check_replicas, group_size


class Hsdp(Ddp):
    """Hybrid sharded data parallel (FSDP2): memory for dense layers falls with the processes of a group.

    The processes form ``replicas`` groups. Inside a group each process keeps its share of every block of the encoders
    and the backbone, and of its optimizer's state; a block's weights are gathered when it computes, and dropped
    afterwards. Gradients are reduced and scattered inside the group, then averaged over the groups. What is not in a
    block or around one, as heads and projections, is small, and every process keeps it; so are tables, as in `ddp`.
    """

    name: ClassVar[str] = "hsdp"

    class Config(Ddp.Config):
        """Fields of `hsdp`."""

        replicas: PositiveInt = Field(
            1, description="Copies of the dense layers: so many groups of processes each keep one of them together."
        )
        gradients: Literal["fp32", "bf16"] = Field(
            "fp32", description="The numbers in which gradients of blocks travel; bf16 halves the bytes."
        )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        count = self.ranks.count
        check_replicas(self.name, config.replicas, count)
        # What encoders put out is concatenated, never changed in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        shape = (config.replicas, count // config.replicas)
        self.mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=("replicate", "shard"))
        self._precision = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if config.gradients == "bf16" else None)

    def apply(self, model: nn.Module, tables: exfm.TableOptimizer) -> nn.Module:
        """Places tables and the rest as `ddp` does, then shards the encoders' and the backbone's blocks."""
        model = super().apply(model, tables)
        mesh = self.mesh if self.mesh["replicate"].size() > 1 else self.mesh["shard"]
        for module in _bottom_up(model):
            # Dropped after every forward pass: what is loaded between two of them is what the second computes with.
            fully_shard(module, mesh=mesh, mp_policy=self._precision, reshard_after_forward=True)
        return model

    @classmethod
    def layout(
        cls, config: Any, model: nn.Module, tables: exfm.TableOptimizer, step: exfm.TrainingStep, cluster: exfm.Cluster
    ) -> exfm.Layout:
        """Blocks sharded inside a group, tables whole on every process."""
        group, settings = group_size(cls.name, config.replicas, cluster)
        dense, exchanges = cls._dense_layout(config, model, step, cluster.count, group)
        exchanges = [*table_exchanges(step, cluster.count), *exchanges]
        return exfm.Layout(group, whole_tables(step, group), dense, told(exchanges), settings)

    @classmethod
    def _dense_layout(
        cls, config: Any, model: nn.Module, step: exfm.TrainingStep, count: int, group: int
    ) -> tuple[dict[str, tuple[int, ...]], list[exfm.Exchange]]:
        """What each process of a group keeps of the sharded parameters, and what dense layers have to tell."""
        dense = ShardedDense(model, tuple(_bottom_up(model)), group, count)
        collections = {use.collection for use in step.tables}
        tables = [one for path in collections for one in model.get_submodule(path).parameters()]
        exchanges = dense.exchanges(tables, step, 2 if config.gradients == "bf16" else FLOAT)
        return dense.kept(), exchanges

    def before_backward(self, model: nn.Module, last: bool) -> None:
        """Has blocks average over the groups only the sum of what adds up; inside a group it is scattered each time."""
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_is_last_backward(last)
                module.set_requires_all_reduce(last, recurse=False)

    def load_weights(self, model: nn.Module, weights: Mapping[str, Tensor], strict: bool = True) -> None:
        """Puts back what ``weights`` gave, each process its share."""
        current = model.state_dict()
        placed = {name: self.place(value, current[name]) for name, value in weights.items() if name in current}
        super().load_weights(model, {**weights, **placed}, strict)

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor of all shares."""
        return super().whole(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor)

    def place(self, value: Tensor, parameter: Tensor) -> Tensor:
        """This process's share."""
        value = super().place(value, parameter)
        if not isinstance(parameter, DTensor):
            return value
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _bottom_up(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks of encoders and backbones, and these themselves, each once and after what is inside of it."""
    parts = [module for module in model.modules() if isinstance(module, exfm.Backbone | exfm.SequenceEncoder)]
    chosen = {id(module) for part in parts for module in (part, *part.blocks())}
    for module in reversed(list(model.modules())):
        if id(module) in chosen and next(module.parameters(), None) is not None:
            yield module
