"""Every process keeps the whole model and computes its rows of each batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torchrec import EmbeddingBagConfig

import exfm
from exfm_plugins.ddp.layout import gradients, table_exchanges, told, whole_tables
from exfm_plugins.ddp.processes import Processes, local_device
from exfm_plugins.ddp.tables import ReplicatedTables
from exfm_plugins.single.plan import Single


class Ddp(Single):
    """Data parallel: every process keeps the whole model, and all make the same step.

    Gradients of dense layers are averaged over the processes after the backward pass; each of them updates all tables
    with the looked-up rows' gradients of all. Losses, predictions and weights are those of `single` with the same
    batches, but for the order in which numbers are added. For models that fit on one device.
    """

    name: ClassVar[str] = "ddp"
    is_default: ClassVar[bool] = False

    class Config(Single.Config):
        """Fields of `ddp`."""

    def __init__(self, config: Config) -> None:
        exfm.ParallelPlan.__init__(self, config)
        self._device = local_device(config.device)
        self._ranks = Processes(self._device)

    @property
    def ranks(self) -> exfm.Ranks:
        """All processes that torchrun started."""
        return self._ranks

    @property
    def shard(self) -> exfm.Shard:
        """Every so many rows, as many as there are processes."""
        return exfm.Shard(self._ranks.index, self._ranks.count)

    @classmethod
    def layout(
        cls, config: Any, model: nn.Module, tables: exfm.TableOptimizer, step: exfm.TrainingStep, cluster: exfm.Cluster
    ) -> exfm.Layout:
        """Everything on every process."""
        if cluster.group not in (None, 1):
            raise ValueError(
                f"{cls.name} keeps the whole model on every process, so there are no groups of {cluster.group}; "
                "name a plan that shards, such as hsdp_2d"
            )
        collections = {use.collection for use in step.tables}
        sparse = {id(one) for path in collections for one in model.get_submodule(path).parameters()}
        dense = sum(one.numel() for one in model.parameters() if one.requires_grad and id(one) not in sparse)
        average = gradients(dense + step.beside, cluster.count, step.accumulate)
        return exfm.Layout(1, whole_tables(step, 1), exchanges=told([*table_exchanges(step, cluster.count), average]))

    def _fused(
        self, configs: list[EmbeddingBagConfig], optimizer: type[torch.optim.Optimizer], options: dict[str, Any]
    ) -> nn.Module:
        return ReplicatedTables(configs, optimizer, options, device=self._device)

    def before_step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Averages gradients in one exchange for each type of number; those of sharded parameters are averaged."""
        gradients = [one.grad for one in parameters if one.grad is not None and not isinstance(one.grad, DTensor)]
        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
            group = [gradient for gradient in gradients if gradient.dtype == dtype]
            flat = torch.cat([gradient.flatten() for gradient in group])
            dist.all_reduce(flat)
            flat /= self._ranks.count
            means = torch.split(flat, [gradient.numel() for gradient in group])
            for gradient, mean in zip(group, means, strict=True):
                gradient.copy_(mean.view_as(gradient))
