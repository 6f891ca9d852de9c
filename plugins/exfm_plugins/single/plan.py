"""One process: fused tables on one device."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

import exfm
from exfm_plugins.single.tables import FusedTables

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adagrad": torch.optim.Adagrad,
    "rowwise_adagrad": RowWiseAdagrad,
    "sgd": torch.optim.SGD,
}


class Single(exfm.ParallelPlan):
    """One process on one device: every table collection becomes one fused FBGEMM call."""

    name: ClassVar[str] = "single"
    is_default: ClassVar[bool] = True
    starts_rows: ClassVar[bool] = True

    class Config(exfm.ComponentConfig):
        """Fields of `single`."""

        device: Literal["auto", "cpu", "cuda"] = Field(
            "auto", description="Where to compute; auto takes a GPU when there is one."
        )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started > 1:
            raise ValueError(
                f"single computes in one process, and {started} were started; name a plan of several, such as ddp"
            )
        name = config.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(name)

    @property
    def device(self) -> torch.device:
        """The CPU or the GPU."""
        return self._device

    @property
    def shard(self) -> exfm.Shard:
        """All rows."""
        return exfm.Shard()

    def apply(self, model: nn.Module, tables: exfm.TableOptimizer) -> nn.Module:
        """Replaces each table collection by a fused one and moves the rest to the device."""
        options: dict[str, Any] = {"lr": tables.lr}
        if tables.name != "sgd":
            options["eps"] = tables.eps
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, EmbeddingBagCollection):
                    setattr(parent, name, self._fused(child.embedding_bag_configs(), _OPTIMIZERS[tables.name], options))
        return model.to(self._device)

    @classmethod
    def layout(
        cls, config: Any, model: nn.Module, tables: exfm.TableOptimizer, step: exfm.TrainingStep, cluster: exfm.Cluster
    ) -> exfm.Layout:
        """Everything on the one process there is."""
        if cluster.count > 1:
            raise ValueError(
                f"single computes in one process, and {cluster.count} are planned for; name a plan of several, "
                "such as ddp"
            )
        places = [
            exfm.TablePlace(use.collection, use.table, "whole", (exfm.TableShard(0, 0, 0, use.rows, use.width),))
            for use in step.tables
        ]
        return exfm.Layout(1, tuple(places))

    def _fused(
        self, configs: list[EmbeddingBagConfig], optimizer: type[torch.optim.Optimizer], options: dict[str, Any]
    ) -> nn.Module:
        """A collection's tables, placed."""
        fused: nn.Module = FusedTables(configs, optimizer, options, device=self._device)
        return fused

    def after_step(self, model: nn.Module) -> None:
        """Nothing to synchronise with one process."""

    @torch.no_grad()
    def start_rows(self, model: nn.Module, table: str, rows: Tensor, like: Tensor) -> None:
        """Copies weights inside of the table, and zeroes accumulators."""
        for key, state in _accumulators(model):
            if f".{table}.weight." in key:
                state[rows] = 0
        for module in model.modules():
            if isinstance(module, FusedOptimizerModule) and table in module.embedding_bags:
                weight = module.embedding_bags[table].weight
                weight[rows] = weight[like]

    def table_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The fused optimizers' accumulators, by table."""
        return {key: state.detach().cpu() for key, state in _accumulators(model)}

    def table_memory(self, model: nn.Module) -> dict[str, Tensor]:
        """The accumulators themselves."""
        return dict(_accumulators(model))

    def load_table_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Copies the accumulators back in place."""
        for key, current in _accumulators(model):
            current.copy_(state[key])


def _accumulators(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        if isinstance(module, FusedOptimizerModule):
            for table, states in module.fused_optimizer().state_dict()["state"].items():
                for name, value in states.items():
                    yield f"{path}.{table}.{name}", value
