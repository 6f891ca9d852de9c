"""ParallelPlan: how one model is spread over the processes of a job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from exfm.interfaces.component import Component, ComponentConfig
from exfm.interfaces.data_source import Shard


class TableOptimizer(BaseModel):
    """The optimizer of the embedding tables. It runs fused with the backward pass: there is no step to call."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["adagrad", "rowwise_adagrad", "sgd"] = Field(
        "adagrad", description="adagrad keeps one accumulator per weight, rowwise_adagrad one per row."
    )
    lr: float = Field(0.1, gt=0, description="Learning rate.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the accumulator.")


class ParallelPlan(Component, ABC):
    """Places a model on devices and keeps its copies in step.

    The model handed to ``apply`` holds TorchRec ``EmbeddingBagCollection`` modules on the meta device for its tables
    and ordinary modules for the rest; the plan gives the tables memory, their fused optimizer and a place.
    """

    kind: ClassVar[str] = "parallel_plan"
    is_default: ClassVar[bool] = False
    """Whether an experiment that names no plan gets this one."""

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where this process computes."""

    @property
    @abstractmethod
    def shard(self) -> Shard:
        """The part of every window's rows this process reads."""

    @abstractmethod
    def apply(self, model: nn.Module, tables: TableOptimizer) -> nn.Module:
        """Gives the tables memory and their optimizer, moves the rest to the device, and wraps what must be wrapped."""

    @abstractmethod
    def after_step(self, model: nn.Module) -> None:
        """Called after every optimizer step: where replicas are brought in step."""

    @abstractmethod
    def table_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The table optimizer's state, unsharded, on the CPU, by a name that no plan or world size changes."""

    @abstractmethod
    def load_table_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Puts back what ``table_state`` gave."""
