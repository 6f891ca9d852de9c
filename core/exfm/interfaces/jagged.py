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

    def with_values(self, values_ED: Tensor) -> JaggedSequence:
        """Other values (E, D') of the same events."""
        return JaggedSequence(values_ED, self.offsets, self.max_length)

    def recent(self, count: int) -> JaggedSequence:
        """The newest ``count`` events of each example, or all it has where these are fewer."""
        if count >= self.max_length:
            return self
        kept_E = self.positions() < count
        lengths_B = self.lengths.clamp(max=count)
        offsets = torch.cat([self.offsets[:1], lengths_B.cumsum(0)])
        return JaggedSequence(self.values_ED[kept_E], offsets, count)

    def prepend(self, tokens_BKD: Tensor) -> JaggedSequence:
        """K further events before each example's oldest one: tokens (B, K, D)."""
        size, count, width = tokens_BKD.shape
        steps_B = count * torch.arange(1, size + 1, device=self.offsets.device)
        events = self.values_ED.shape[0]
        event_places_E = torch.arange(events, device=self.offsets.device) + steps_B[self.example_index()]
        starts_B = self.offsets[:-1] + steps_B - count
        token_places_BK = starts_B.unsqueeze(1) + torch.arange(count, device=self.offsets.device)
        places = torch.cat([event_places_E, token_places_BK.flatten()])
        values = torch.cat([self.values_ED, tokens_BKD.reshape(-1, width).to(self.values_ED.dtype)])
        offsets = torch.cat([self.offsets[:1], self.offsets[1:] + steps_B])
        merged = torch.empty_like(values).index_copy(0, places, values)
        return JaggedSequence(merged, offsets, self.max_length + count)
