"""The processes that torchrun starts, connected by torch.distributed: gloo between CPUs, NCCL between GPUs.

Legend: n rows of this process, B rows of all processes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.distributed.rendezvous import rendezvous

from exfm.interfaces.process_group import ProcessGroup
from exfm.parallel.rendezvous import rendezvous_store


class TorchProcessGroup(ProcessGroup):
    """The processes that torchrun started, or this process alone where torchrun did not start it.

    Args:
        device: the device on which this process computes.
        group: the connection to use; by default that of all collectives.
    """

    def __init__(self, device: torch.device, group: dist.ProcessGroup | None = None) -> None:
        self._device = device
        self._group = group
        self._for_thread: TorchProcessGroup | None = None
        self._ours = not dist.is_initialized()
        if self._ours:
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            if "WORLD_SIZE" in os.environ:
                store, rank, count = next(rendezvous("env://"))
                # Under a prefix, because torchrun keeps the store of processes that it starts again.
                store = rendezvous_store(store, rank, count)
                dist.init_process_group(backend, store=store, rank=rank, world_size=count)
            else:
                alone = dist.HashStore()  # type: ignore[attr-defined]
                dist.init_process_group(backend, store=alone, rank=0, world_size=1)
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def all_gather_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Gathers rows of all processes; see ``exfm.parallel.ProcessGroup``."""
        return all_gather_rows(rows, list(counts), self._group)

    def all_gather_columns(self, columns: Sequence[Tensor], counts: Sequence[int]) -> Sequence[Tensor]:
        """Gathers rows of several columns, with gradients; see ``exfm.parallel.ProcessGroup``."""
        whole: Sequence[Tensor] = _AllGatherColumns.apply(list(counts), self.rank, *columns)  # type: ignore[no-untyped-call]
        return whole

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Gathers the bytes of every process on rank 0."""
        sizes = self.all_gather(torch.tensor(len(data))).tolist()
        # dist.gather requires tensors of the same size.
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        if data:  # torch.frombuffer refuses an empty buffer
            padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if not self.is_rank_zero:
            dist.gather(padded, group=self._group)
            return []
        received = [torch.empty_like(padded) for _ in sizes]
        dist.gather(padded, received, group=self._group)
        return [buffer[:size].numpy().tobytes() for buffer, size in zip(received, sizes, strict=True)]

    def for_thread(self) -> TorchProcessGroup:
        """Connects the processes once more, on their CPUs; see ``exfm.parallel.ProcessGroup``."""
        if self._for_thread is None:
            self._for_thread = TorchProcessGroup(self._device, dist.new_group(backend="gloo"))
        return self._for_thread

    def all_to_all_bytes(self, buffers: Sequence[bytes | memoryview]) -> list[memoryview]:
        """Sends a buffer to every process; see ``exfm.parallel.ProcessGroup``."""
        sizes = torch.tensor([len(buffer) for buffer in buffers])
        received_sizes = torch.empty_like(sizes)
        dist.all_to_all_single(received_sizes, sizes, group=self._group)
        sent = torch.empty(int(sizes.sum()), dtype=torch.uint8)
        np.concatenate([np.frombuffer(buffer, np.uint8) for buffer in buffers], out=sent.numpy())
        received = torch.empty(int(received_sizes.sum()), dtype=torch.uint8)
        dist.all_to_all_single(received, sent, received_sizes.tolist(), sizes.tolist(), group=self._group)
        return [rows.data for rows in np.split(received.numpy(), np.cumsum(received_sizes.tolist()[:-1]))]

    def close(self) -> None:
        """Closes the connections that this object has opened."""
        if self._for_thread is not None:
            dist.destroy_process_group(self._for_thread._group)
        if self._ours:
            dist.destroy_process_group()


def all_gather_rows(rows: Tensor, counts: list[int], group: dist.ProcessGroup | None = None) -> Tensor:
    """Gathers rows of all processes, in the order of the ranks; ``counts`` has the number of rows of each.

    Args:
        group: the connection to use; by default that of all collectives.
    """
    # Padded to the longest, because all-gather requires tensors of the same shape.
    longest = max(counts)
    padded = rows.contiguous()
    if padded.shape[0] < longest:
        padded = torch.cat([padded, padded.new_zeros(longest - padded.shape[0], *padded.shape[1:])])
    received = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(received, padded, group=group)
    return torch.cat([rows[:count] for rows, count in zip(received, counts, strict=True)])


class _AllGatherColumns(torch.autograd.Function):
    """Gathers columns (n, K) to (B, K); each process keeps its rows of the gradient, which every process has whole."""

    @staticmethod
    def forward(ctx: FunctionCtx, counts: list[int], rank: int, *columns: Tensor) -> tuple[Tensor, ...]:
        start = sum(counts[:rank])
        ctx.rows = (start, start + counts[rank], len(counts))  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)  # a column that no loss uses has no gradient, not zeros
        whole = all_gather_rows(torch.cat(columns, dim=1), counts)
        return torch.split(whole, [column.shape[1] for column in columns], dim=1)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        start, end, count = ctx.rows  # type: ignore[attr-defined]
        local: list[Tensor | None] = []
        for gradient in gradients:
            # Multiplied, because gradients are averaged over processes that each have the gradient of their rows only.
            local.append(None if gradient is None else gradient[start:end] * count)
        return None, None, *local
