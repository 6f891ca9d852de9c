"""ParallelPlan: how one model is spread over the processes of a job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from exfm.interfaces.component import Component, ComponentConfig
from exfm.interfaces.data_source import Shard
from exfm.interfaces.layout import Cluster, Layout, TrainingStep
from exfm.interfaces.ranks import ALONE, Ranks


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

    Every process of a job builds the same plan and calls it in the same order. Each predicts its own rows of a batch;
    the loss is computed of all rows by every process (``Ranks.all_rows``), so gradients are averaged over processes:
    those of tables in the backward pass, all others in ``before_step``. What is stored is whole: it has the names and
    shapes that one process alone would give it, so that another plan on any number of processes can go on from it.

    Raises:
        ValueError: the constructor refuses the number of processes, or ``apply`` the model.
    """

    kind: ClassVar[str] = "parallel_plan"
    is_default: ClassVar[bool] = False
    """Whether an experiment that names no plan gets this one."""
    starts_rows: ClassVar[bool] = False
    """Whether it has ``start_rows``, without which ids cannot be managed."""

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

    @property
    def ranks(self) -> Ranks:
        """The processes of the job; by default this one alone."""
        return ALONE

    @abstractmethod
    def apply(self, model: nn.Module, tables: TableOptimizer) -> nn.Module:
        """Gives the tables memory and their optimizer, moves the rest to the device, and wraps what must be wrapped."""

    @classmethod
    def layout(
        cls, config: Any, model: nn.Module, tables: TableOptimizer, step: TrainingStep, cluster: Cluster
    ) -> Layout:
        """Where ``apply`` would put a model on processes that need not exist: what `exfm plan` tells.

        Args:
            config: the plan's own.
            model: without memory, on the meta device; it is not changed.
            tables: the optimizer of its tables.
            step: what a process does in a training step.
            cluster: the processes.

        Raises:
            ValueError: the plan refuses the cluster, or has no place for the tables in its memory.
            NotImplementedError: the plan does not tell.
        """
        raise NotImplementedError

    def before_backward(self, model: nn.Module, last: bool) -> None:
        """Called before every backward pass.

        Args:
            last: whether a step follows; until then gradients add up, and need not be averaged over replicas.
        """

    def before_step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Called before the optimizer steps: averages the gradients that are not averaged yet over the processes.

        Args:
            parameters: what the optimizer is about to step; those without a gradient have none on any process.
        """

    @abstractmethod
    def after_step(self, model: nn.Module) -> None:
        """Called after every batch, as every backward pass updates tables: where replicas are brought in step."""

    def start_rows(self, model: nn.Module, table: str, rows: Tensor, like: Tensor) -> None:
        """Gives rows of a table another meaning: needed where ids are managed, see ``starts_rows``.

        Every process calls it with the same rows, wherever they lie, once a batch has been learned from.

        Args:
            table: its name in its collection.
            rows: (N,), each once. They take the weights of the rows ``like`` (N,), none of which starts itself, and
                their optimizer's state is zeros.
        """
        raise NotImplementedError

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The model's state dict, whole, on the CPU; on any process but the first it may lack entries."""
        return {name: self.whole(value) for name, value in model.state_dict().items()}

    def load_weights(self, model: nn.Module, weights: Mapping[str, Tensor], strict: bool = True) -> None:
        """Puts back what ``weights`` gave on the first process.

        Args:
            weights: whole, on every process.
            strict: whether every entry must be there; otherwise those that are not stay as they are.
        """
        model.load_state_dict(dict(weights), strict=strict)

    def table_memory(self, model: nn.Module) -> dict[str, Tensor]:
        """What of the table optimizer's state lies whole in this process, by the names of ``table_state``.

        A snapshot is read into it, so that a large table is not in memory twice; by default there is none.
        """
        return {}

    def whole(self, tensor: Tensor) -> Tensor:
        """A parameter, or a tensor that an optimizer keeps for one, whole and on the CPU."""
        return tensor.detach().cpu()

    def place(self, value: Tensor, parameter: Tensor) -> Tensor:
        """This process's part of what an optimizer keeps for a parameter: ``whole``, undone."""
        return value.to(parameter.device, copy=True)

    @abstractmethod
    def table_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The table optimizer's state, whole, on the CPU, by a name that no plan or world size changes.

        Two of the name's parts, between dots, are the table's (``table_user.weight``), and the first dimension is its
        rows. On any process but the first it may lack entries.
        """

    @abstractmethod
    def load_table_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Puts back what ``table_state`` gave on the first process."""
