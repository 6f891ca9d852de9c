"""Embedding tables that every process keeps whole, and that stay equal.

Legend: F keys, B bags of a key on this process, D width.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torchrec import KeyedJaggedTensor, KeyedTensor
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection

from exfm.parallel.torch_process_group import all_gather_rows


class ReplicatedTables(FusedEmbeddingBagCollection):  # type: ignore[misc]
    """A fused collection that every process updates with the gradients of the whole batch.

    The optimizer runs inside the backward pass, so there is no gradient to average afterwards. Instead each process
    looks up the bags of all processes, returns the rows of its bags, and gathers the gradients of all: the update is
    that of a single process with the whole batch, whatever the optimizer. Processes send ids and the gradients of
    looked-up rows, never a table.
    """

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Looks up this process's bags."""
        if not torch.is_grad_enabled():
            return super().forward(features)
        counts, everyone = _all_gather_bags(features)
        rows = super().forward(everyone)
        values = _LocalRows.apply(rows.values(), counts, dist.get_rank())  # type: ignore[no-untyped-call]
        return KeyedTensor(keys=rows.keys(), length_per_key=rows.length_per_key(), values=values)


def _all_gather_bags(features: KeyedJaggedTensor) -> tuple[list[int], KeyedJaggedTensor]:
    """Gathers the bags of all processes, and the number of bags of a key in each."""
    keys, stride = features.keys(), features.stride()
    lengths_FB = features.lengths().view(len(keys), stride)
    values = features.values()
    ones = [1] * dist.get_world_size()
    sizes = all_gather_rows(torch.tensor([[stride, values.numel()]], device=values.device), ones)
    counts, value_counts = sizes.T.tolist()
    lengths_BF = all_gather_rows(lengths_FB.T.contiguous(), counts)
    # The values arrive by process, and in it by key; a KeyedJaggedTensor has them by key, and in it by process.
    value_sizes = [size for lengths in torch.split(lengths_BF, counts) for size in lengths.sum(dim=0).tolist()]
    all_values = torch.split(all_gather_rows(values, value_counts), value_sizes)
    by_key = [all_values[process * len(keys) + key] for key in range(len(keys)) for process in range(len(counts))]
    lengths = lengths_BF.T.contiguous().flatten()
    return counts, KeyedJaggedTensor(keys=keys, values=torch.cat(by_key), lengths=lengths, stride=sum(counts))


class _LocalRows(torch.autograd.Function):
    """Selects this process's rows of the lookups of all; their gradients go to every process."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.counts = counts  # type: ignore[attr-defined]
        start = sum(counts[:rank])
        return rows[start : start + counts[rank]].clone()

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        counts = ctx.counts  # type: ignore[attr-defined]
        return all_gather_rows(gradient, counts) / len(counts), None, None
