"""A model whose tables are fused FBGEMM calls, whole in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from exfm.interfaces.local_shards import StateTensor
from exfm.interfaces.parallel_model import ParallelModel
from exfm.interfaces.table_optimizer import TableOptimizer
from exfm.parallel.changed_rows import ChangedRows, WriteCounts
from exfm.parallel.fused_tables import FusedTables
from exfm.parallel.replicated_tables import ReplicatedTables

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adagrad": torch.optim.Adagrad,
    "rowwise_adagrad": RowWiseAdagrad,
    "sgd": torch.optim.SGD,
}

Fuse = Callable[..., nn.Module]
"""Builds a fused collection of table configs, an optimizer's class, its options and ``device``; with ``is_weighted``
where ids have weights."""


def fuse_tables(model: nn.Module, table_optimizer: TableOptimizer, device: torch.device, fuse: Fuse) -> None:
    """Replaces each table collection of a model by a fused collection, and moves everything else to a device, in place.

    Args:
        fuse: the class of the fused collections, such as ``FusedTables``.
    """
    options: dict[str, Any] = {"lr": table_optimizer.lr}
    if table_optimizer.name != "sgd":
        options["eps"] = table_optimizer.eps
    optimizer = _OPTIMIZERS[table_optimizer.name]
    # Lists, because modules are replaced during the iteration.
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, EmbeddingBagCollection):
                more = {"is_weighted": True} if child.is_weighted() else {}
                setattr(parent, name, fuse(child.embedding_bag_configs(), optimizer, options, device=device, **more))
    model.to(device)


class FusedModel(ParallelModel):
    """A model with fused table collections, each of them whole in this process."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._changed = ChangedRows(self._count_writes)

    def take_changed_rows(self) -> dict[str, Tensor]:
        """Returns the rows that were looked up for training, or reset, of tables that nobody else has written to."""
        self._record_lookups()
        return self._changed.take()

    def _record_lookups(self) -> None:
        """Lets the collections record lookups from now on, as somebody asks for them."""
        for module in self.module.modules():
            if isinstance(module, FusedTables | ReplicatedTables):
                module.changed = self._changed

    def _count_writes(self) -> WriteCounts:
        """Counts torch's writes to each table and its accumulators."""
        counts: WriteCounts = {}
        for module in self.module.modules():
            if isinstance(module, FusedTables | ReplicatedTables):
                for table, embedding in module.embedding_bags.items():
                    counts.setdefault(table, []).append(embedding.weight._version)
        for name, accumulator in self._accumulators():
            table = name.rpartition(".weight.")[0].rpartition(".")[2]
            if table in counts:
                counts[table].append(accumulator._version)
        return counts

    @torch.no_grad()
    def reset_rows(self, table: str, rows: Tensor, source_rows: Tensor) -> None:
        """Copies weights inside the table, and zeroes accumulators."""
        self._changed.add(table, rows)
        with self._changed.writing():
            # The accumulators and weights are those that FBGEMM's kernels use, so they are written in place.
            for name, accumulator in self._accumulators():
                if f".{table}.weight." in name:
                    accumulator[rows] = 0
            for module in self.module.modules():
                if isinstance(module, FusedOptimizerModule) and table in module.embedding_bags:
                    weight = module.embedding_bags[table].weight
                    # Indexing copies before it assigns; a row of source_rows is never in rows.
                    weight[rows] = weight[source_rows]

    def table_optimizer_state_dict(self) -> dict[str, StateTensor]:
        """Returns the fused optimizers' accumulators, by table."""
        return dict(self._accumulators())

    def _accumulators(self) -> Iterator[tuple[str, Tensor]]:
        """Yields each accumulator of a fused optimizer with its name in the state dict."""
        for path, module in self.module.named_modules():
            if isinstance(module, FusedOptimizerModule):
                for table, states in module.fused_optimizer().state_dict()["state"].items():
                    for name, accumulator in states.items():
                        yield f"{path}.{table}.{name}", accumulator
