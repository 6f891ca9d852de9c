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
    """A fused collection whose every process makes the update of the whole batch.

    The optimizer runs inside the backward pass, so there is no gradient to average afterwards. Instead each process
    looks up the bags of all processes, hands on its own, and gathers their gradients: the update is that of one process
    with the whole batch, whatever the optimizer. Over the wire go ids and the looked-up rows' gradients, never a table.
    """

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Looks up this process's bags."""
        if not torch.is_grad_enabled():
            return super().forward(features)
        counts, everyone = _all_bags(features)
        found = super().forward(everyone)
        own = _OwnBags.apply(found.values(), counts, dist.get_rank())  # type: ignore[no-untyped-call]
        return KeyedTensor(keys=found.keys(), length_per_key=found.length_per_key(), values=own)


def _all_bags(features: KeyedJaggedTensor) -> tuple[list[int], KeyedJaggedTensor]:
    """How many bags of a key each process has, and the bags of all processes."""
    keys, stride = features.keys(), features.stride()
    lengths_FB = features.lengths().view(len(keys), stride)
    values = features.values()
    sizes = all_gather_rows(torch.tensor([[stride, values.numel()]], device=values.device), [1] * dist.get_world_size())
    counts, value_counts = sizes.T.tolist()
    lengths_BF = all_gather_rows(lengths_FB.T.contiguous(), counts)
    # By process, and in it by key; wanted is by key, and in it by process.
    parts = [size for part in torch.split(lengths_BF, counts) for size in part.sum(dim=0).tolist()]
    all_values = torch.split(all_gather_rows(values, value_counts), parts)
    by_key = [all_values[process * len(keys) + key] for key in range(len(keys)) for process in range(len(counts))]
    lengths = lengths_BF.T.contiguous().flatten()
    return counts, KeyedJaggedTensor(keys=keys, values=torch.cat(by_key), lengths=lengths, stride=sum(counts))


class _OwnBags(torch.autograd.Function):
    """This process's rows of what was looked up for all; their gradients go to every process."""

    @staticmethod
    def forward(ctx: FunctionCtx, found: Tensor, counts: list[int], index: int) -> Tensor:
        ctx.counts = counts  # type: ignore[attr-defined]
        start = sum(counts[:index])
        return found[start : start + counts[index]].clone()

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        counts = ctx.counts  # type: ignore[attr-defined]
        return all_gather_rows(gradient, counts) / len(counts), None, None
