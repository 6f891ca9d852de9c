"""Parallel plans as a third party writes them: of public names alone, a test checks that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingBagCollection

import exfm
from exfm.parallel import DataParallelModel, DataParallelPlan, ReplicatedTables, SingleProcessPlan, fuse_tables


class OneByOne(DataParallelPlan):
    """Data parallel, with an all-reduce for each gradient."""

    name: ClassVar[str] = "one_by_one"

    def parallelize(
        self, model: nn.Module, table_optimizer: exfm.parallel.TableOptimizer
    ) -> exfm.parallel.ParallelModel:
        """Places a model as the base does, under a separate handle."""
        fuse_tables(model, table_optimizer, self.device, ReplicatedTables)
        return OneByOneModel(model)


class OneByOneModel(DataParallelModel):
    """Averages each gradient by itself."""

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Averages gradients over the processes."""
        for parameter in parameters:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()


class Renamed(SingleProcessPlan):
    """The base under another name: nothing else is needed."""

    name: ClassVar[str] = "renamed"


class Unfused(exfm.ParallelPlan):
    """From scratch: tables in ordinary modules, which torch's Adagrad steps after each backward pass."""

    name: ClassVar[str] = "unfused"

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @property
    def shard(self) -> exfm.sources.Shard:
        """All rows."""
        return exfm.sources.Shard()

    def parallelize(
        self, model: nn.Module, table_optimizer: exfm.parallel.TableOptimizer
    ) -> exfm.parallel.ParallelModel:
        """Allocates the tables, and draws their weights in the order in which other plans draw them."""
        collections = [module for module in model.modules() if isinstance(module, EmbeddingBagCollection)]
        for collection in collections:
            collection.to_empty(device=self.device)
            for config in collection.embedding_bag_configs():
                weight = collection.embedding_bags[config.name].weight
                nn.init.uniform_(weight, config.get_weight_init_min(), config.get_weight_init_max())
        return UnfusedModel(model, collections, table_optimizer)


class UnfusedModel(exfm.parallel.ParallelModel):
    """Owns the tables' optimizer."""

    def __init__(
        self, module: nn.Module, tables: list[EmbeddingBagCollection], table_optimizer: exfm.parallel.TableOptimizer
    ) -> None:
        super().__init__(module)
        assert table_optimizer.name == "adagrad"
        sparse = {id(weight) for collection in tables for weight in collection.parameters()}
        self._weights = {name: weight for name, weight in module.named_parameters() if id(weight) in sparse}
        self._optimizer = torch.optim.Adagrad(self._weights.values(), lr=table_optimizer.lr, eps=table_optimizer.eps)

    def sync_tables(self) -> None:
        """Steps the tables, whose gradients the backward pass has left."""
        self._optimizer.step()
        self._optimizer.zero_grad()

    def table_optimizer_state_dict(self) -> dict[str, exfm.parallel.StateTensor]:
        """Returns Adagrad's sums, by weight."""
        return {f"{name}.sum": self._optimizer.state[weight]["sum"] for name, weight in self._weights.items()}
