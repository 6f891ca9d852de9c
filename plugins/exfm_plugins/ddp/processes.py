"""The processes that torchrun starts, connected by torch.distributed: gloo between CPUs, NCCL between GPUs.

Legend: n own rows, B rows of all processes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.distributed.rendezvous import rendezvous

import exfm
from exfm_plugins.ddp.meeting import meeting_store


class Processes(exfm.Ranks):
    """What torchrun started, or this process alone where nothing did.

    Args:
        device: where this process computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ours = not dist.is_initialized()
        if self._ours:
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            if "WORLD_SIZE" in os.environ:
                store, rank, count = next(rendezvous("env://"))
                store = meeting_store(store, rank, count)
                dist.init_process_group(backend, store=store, rank=rank, world_size=count)
            else:
                alone = dist.HashStore()  # type: ignore[attr-defined]
                dist.init_process_group(backend, store=alone, rank=0, world_size=1)
        self.index = dist.get_rank()
        self.count = dist.get_world_size()

    def all_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all processes; see ``exfm.Ranks``."""
        return gather(rows, list(counts))

    def all_columns(self, columns: Sequence[Tensor], counts: Sequence[int]) -> Sequence[Tensor]:
        """The same of several columns, with gradients; see ``exfm.Ranks``."""
        whole: Sequence[Tensor] = _AllColumns.apply(list(counts), self.index, *columns)  # type: ignore[no-untyped-call]
        return whole

    def to_first(self, data: bytes) -> list[bytes]:
        """What each process gave, on the first one."""
        sizes = self.each(torch.tensor(len(data))).tolist()
        own = torch.zeros(max(sizes), dtype=torch.uint8)
        own[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else own[:0]
        received = [torch.empty_like(own) for _ in sizes] if self.is_first else None
        dist.gather(own, received)
        return [part[:size].numpy().tobytes() for part, size in zip(received or [], sizes, strict=False)]

    def close(self) -> None:
        """Ends the connection, where this has made it."""
        if self._ours:
            dist.destroy_process_group()


def gather(rows: Tensor, counts: list[int]) -> Tensor:
    """Rows of all processes, those of the first one first; ``counts`` says how many each has."""
    longest = max(counts)
    own = rows.contiguous()
    if own.shape[0] < longest:
        own = torch.cat([own, own.new_zeros(longest - own.shape[0], *own.shape[1:])])
    parts = [torch.empty_like(own) for _ in counts]
    dist.all_gather(parts, own)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


class _AllColumns(torch.autograd.Function):
    """Gathers columns (n, K) to (B, K); of the gradient, which every process has whole, each takes its own rows."""

    @staticmethod
    def forward(ctx: FunctionCtx, counts: list[int], index: int, *columns: Tensor) -> tuple[Tensor, ...]:
        start = sum(counts[:index])
        ctx.own = (start, start + counts[index], len(counts))  # type: ignore[attr-defined]
        ctx.set_materialize_grads(False)
        whole = gather(torch.cat(columns, dim=1), counts)
        return torch.split(whole, [column.shape[1] for column in columns], dim=1)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        start, end, count = ctx.own  # type: ignore[attr-defined]
        # Gradients are averaged over processes, of which each has only its own rows' share.
        return None, None, *(None if one is None else one[start:end] * count for one in gradients)


def local_device(name: str) -> torch.device:
    """The device of a plan's ``device`` field: with GPUs, the one of this process's number on its machine."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
