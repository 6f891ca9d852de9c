"""Embedding tables that every process stores whole, and that stay equal.

Legend: F keys, B bags of a key on this process or on all of them, b bags of a key on another process, D width.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torchrec import KeyedJaggedTensor, KeyedTensor
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

from exfm.parallel.changed_rows import ChangedRows, tables_by_key
from exfm.parallel.torch_process_group import all_gather_rows


class ReplicatedTables(FusedEmbeddingBagCollection):  # type: ignore[misc]
    """A fused collection that every process updates with the gradients of the whole batch.

    The optimizer runs inside the backward pass, so there is no gradient to average afterwards. Instead each process
    looks up the bags of all processes, returns the rows of its bags, and gathers the gradients of all: the update is
    that of a single process with the whole batch, whatever the optimizer. Processes send ids and the gradients of
    looked-up rows, never a table.

    Attributes:
        changed: receives the rows that lookups with gradients change, those of all processes; None where nobody asks.
    """

    changed: ChangedRows | None = None

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Looks up this process's bags."""
        # Without gradients nothing is updated, so each process may look up its bags alone.
        if not torch.is_grad_enabled():
            return super().forward(features)
        counts, everyone = _all_gather_bags(features)
        if self.changed is not None:
            self.changed.add_lookups(everyone, self._tables)
        rows = super().forward(everyone)
        values = _LocalRows.apply(rows.values(), counts, dist.get_rank())  # type: ignore[no-untyped-call]
        return KeyedTensor(keys=rows.keys(), length_per_key=rows.length_per_key(), values=values)

    @cached_property
    def _tables(self) -> dict[str, str]:
        return tables_by_key(self.embedding_bag_configs())


def _all_gather_bags(features: KeyedJaggedTensor) -> tuple[list[int], KeyedJaggedTensor]:
    """Gathers the bags of all processes, and the number of bags of a key in each."""
    keys, stride = features.keys(), features.stride()
    lengths_FB = features.lengths().view(len(keys), stride)
    values = features.values()
    # The sizes first, because an all-gather needs to know how many rows each process sends.
    single_rows = [1] * dist.get_world_size()
    sizes = all_gather_rows(torch.tensor([[stride, values.numel()]], device=values.device), single_rows)
    counts, value_counts = sizes.T.tolist()
    lengths_BF = all_gather_rows(lengths_FB.T.contiguous(), counts)
    # The values arrive by process, and in it by key; a KeyedJaggedTensor has them by key, and in it by process.
    value_sizes: list[int] = []
    for lengths_bF in torch.split(lengths_BF, counts):
        value_sizes += lengths_bF.sum(dim=0).tolist()

    def gather_by_key(values: Tensor) -> Tensor:
        by_process = torch.split(all_gather_rows(values, value_counts), value_sizes)
        by_key: list[Tensor] = []
        for key in range(len(keys)):
            by_key += by_process[key :: len(keys)]
        return torch.cat(by_key)

    weights = features.weights_or_none()
    gathered = KeyedJaggedTensor(
        keys=keys,
        values=gather_by_key(values),
        lengths=lengths_BF.T.contiguous().flatten(),
        stride=sum(counts),
        weights=None if weights is None else gather_by_key(weights),
    )
    return counts, gathered


class _LocalRows(torch.autograd.Function):
    """Selects this process's rows of the lookups of all; their gradients go to every process."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.counts = counts  # type: ignore[attr-defined]
        start = sum(counts[:rank])
        # A copy, because autograd forbids in-place writes to a view that a custom function returns.
        return rows[start : start + counts[rank]].clone()

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        counts = ctx.counts  # type: ignore[attr-defined]
        # Divided, because the loss of the batch is the mean of the processes' losses.
        return all_gather_rows(gradient, counts) / len(counts), None, None
