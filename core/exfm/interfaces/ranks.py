"""Ranks: the processes that train one model together, and the few things they tell each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Ranks:
    """One process alone; a plan for several gives a subclass.

    Every process calls the same methods in the same order: each of them waits for all.

    Attributes:
        index: which process this is, from 0. The first one writes what is stored.
        count: how many there are.
    """

    index: int = 0
    count: int = 1

    def all_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all processes, those of the first one first, on every process.

        Args:
            rows: (n, ...), n the entry of ``counts`` that is this process's.
            counts: how many rows each process has.
        """
        return rows

    def all_columns(self, columns: Sequence[Tensor], counts: Sequence[int]) -> Sequence[Tensor]:
        """The same of several columns (n, K) in one exchange, with gradients to this process's own rows.

        They come back multiplied by ``count``, because plans average the gradients of parameters over processes. So a
        loss of all rows, which every process computes, has the gradient that it would have in one process. A column
        that no loss uses gets no gradient, not even zeros.
        """
        return columns

    def to_first(self, data: bytes) -> list[bytes]:
        """What each process gave, on the first one; nothing on the others."""
        return [data]

    def close(self) -> None:
        """Ends the connection between the processes."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is stored."""
        return self.index == 0

    def each(self, values: Tensor) -> Tensor:
        """A tensor of one shape from every process, stacked: (count, ...)."""
        return self.all_rows(values.unsqueeze(0), (1,) * self.count)

    def agree(self, value: int) -> int:
        """The first process's value: what all go by where they could see different things."""
        return value if self.count == 1 else int(self.each(torch.tensor(value))[0])

    def all_agree(self, value: bool) -> bool:
        """Whether a value is true on every process."""
        return value if self.count == 1 else bool(self.each(torch.tensor(int(value))).min())

    def broadcast(self, data: bytes) -> bytes:
        """Sends the first process's bytes to every process, which all return them."""
        if self.count == 1:
            return data
        size = self.agree(len(data))
        sent = torch.zeros(size, dtype=torch.uint8)
        if self.is_first and size:
            sent.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return self.each(sent)[0].numpy().tobytes() if size else b""

    def wait(self) -> None:
        """Returns when every process has called it."""
        self.agree(0)


ALONE = Ranks()
