"""Jagged sequences: one variable-length list of events per example, without padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class JaggedSequence:
    """Events of B examples, one after the other.

    Legend: E events in all, B examples, D width, T longest kept history.

    ``values_ED[offsets[i]:offsets[i + 1]]`` are example i's events, oldest first::

        lengths    2        0   3
        values_ED  [a0 a1]  []  [c0 c1 c2]
        offsets    0        2   2           5
    """

    values_ED: Tensor
    offsets: Tensor
    max_length: int

    @property
    def lengths(self) -> Tensor:
        """Events per example, (B,)."""
        return self.offsets.diff()

    @property
    def batch_size(self) -> int:
        """B."""
        return self.offsets.shape[0] - 1

    def example_index(self) -> Tensor:
        """The example each event belongs to, (E,)."""
        index = torch.arange(self.batch_size, device=self.offsets.device)
        return torch.repeat_interleave(index, self.lengths, output_size=self.values_ED.shape[0])

    def positions(self) -> Tensor:
        """How many events lie between each event and the newest one of its example, (E,): the newest has 0."""
        ends = self.offsets[1:][self.example_index()]
        return ends - 1 - torch.arange(self.values_ED.shape[0], device=ends.device)
