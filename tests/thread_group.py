"""A group of processes that are threads, for tests of collectives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from exfm.interfaces.process_group import ProcessGroup

Slots = list[Any]
Result = TypeVar("Result")


class ThreadGroup(ProcessGroup):
    """A process of several, which are threads here."""

    def __init__(self, rank: int, slots: Slots, barrier: threading.Barrier) -> None:
        self.rank, self.world_size, self._slots, self._barrier = rank, len(slots), slots, barrier

    def all_gather_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        assert rows.shape[0] == counts[self.rank]
        return torch.cat(self._exchange(rows))

    def gather_bytes(self, data: bytes) -> list[bytes]:
        gathered: list[bytes] = self._exchange(data)
        return gathered if self.is_rank_zero else []

    def _exchange(self, value: Any) -> Slots:
        self._slots[self.rank] = value
        self._barrier.wait()
        gathered = list(self._slots)
        self._barrier.wait()
        return gathered


def in_threads(function: Callable[[ProcessGroup], Result], processes: int) -> list[Result]:
    """Calls a function in each of some processes; returns the results by rank, or raises the first error."""
    slots: Slots = [None] * processes
    barrier = threading.Barrier(processes)

    def call(rank: int) -> Result:
        try:
            return function(ThreadGroup(rank, slots, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(processes) as threads:
        calls = [threads.submit(call, rank) for rank in range(processes)]
        errors = [error for done in calls if (error := done.exception()) is not None]
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error
        return [done.result() for done in calls]
