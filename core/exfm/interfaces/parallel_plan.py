"""ParallelPlan: distributes a model over the processes of a job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import nn

from exfm.interfaces.component import Component, ComponentConfig
from exfm.interfaces.data_source import Shard
from exfm.interfaces.parallel_model import ParallelModel
from exfm.interfaces.process_group import SINGLE_PROCESS, ProcessGroup
from exfm.interfaces.table_optimizer import TableOptimizer
from exfm.interfaces.trunk import TrunkRunner


class ParallelPlan(Component, ABC):
    """Places models on devices, and returns the handle by which each is trained and saved.

    Every process of a job builds the same plan, and calls it and its models in the same order. Each process predicts
    its own rows of a batch, and computes their loss, scaled so that the loss of the batch is the mean over the
    processes. Losses that need whole batches are computed by every process (``ProcessGroup.all_gather_columns``).

    A plan whose class also has ``estimate_layout`` (``exfm.parallel.LayoutEstimator``) works with `exfm plan`.
    ``exfm.parallel`` has plans to derive from, for a single process and for several.

    Raises:
        ValueError: the constructor refuses the number of processes, or ``parallelize`` the model.
    """

    kind: ClassVar[str] = "parallel_plan"
    is_default: ClassVar[bool] = False
    """Whether an experiment that names no plan gets this plan."""
    resets_rows: ClassVar[bool] = False
    """Whether its models implement ``ParallelModel.reset_rows``, without which ids cannot be managed."""

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device on which this process computes."""

    @property
    @abstractmethod
    def shard(self) -> Shard:
        """The rows of every window that this process reads."""

    @property
    def process_group(self) -> ProcessGroup:
        """The processes of the job; by default a single process."""
        return SINGLE_PROCESS

    @property
    def trunk_runner(self) -> TrunkRunner:
        """How training steps run a model between its tables and its heads; by default on the whole batch."""
        return TrunkRunner()

    @abstractmethod
    def parallelize(self, model: nn.Module, table_optimizer: TableOptimizer) -> ParallelModel:
        """Allocates the tables with their optimizer, and moves everything else to the device, in place.

        Args:
            model: TorchRec ``EmbeddingBagCollection`` modules on the meta device for its tables, and ordinary modules
                for everything else.
            table_optimizer: fused with the backward pass of the tables.

        Returns:
            The handle of this model, which owns all that the plan keeps for it; its ``module`` is ``model``.
        """
