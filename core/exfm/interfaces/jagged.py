"""JaggedSequence: a list of events of variable length for each example, without padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class JaggedSequence:
    """Events of B examples, concatenated.

    Legend: E events in all, B examples, D width, K added or newest events of each example, T longest kept history.

    ``values_ED[offsets[i]:offsets[i + 1]]`` are example i's events, oldest first::

        lengths    2        0   3
        values_ED  [a0 a1]  []  [c0 c1 c2]
        offsets    0        2   2           5

    Attributes:
        values_ED: the events.
        offsets: index of each example's first event, and the end of the last example's events, (B + 1,).
        max_length: T.
        ages_E: whole seconds from each event to its example, int64; None where the stream has no times of events, or
            nothing in the model reads them (``reads_times``).
    """

    values_ED: Tensor
    offsets: Tensor
    max_length: int
    ages_E: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """Events per example, (B,)."""
        return self.offsets.diff()

    @property
    def batch_size(self) -> int:
        """B."""
        return self.offsets.shape[0] - 1

    def example_index(self) -> Tensor:
        """Returns the example that each event belongs to, (E,)."""
        return example_index(self.offsets, self.values_ED.shape[0])

    def positions(self) -> Tensor:
        """Counts positions from the newest event of each example, which has 0, to older events, (E,)."""
        ends = self.offsets[1:][self.example_index()]
        return ends - 1 - torch.arange(self.values_ED.shape[0], device=ends.device)

    def mean(self) -> Tensor:
        """Averages each example's events, (B, D); zeros without events."""
        values_ED = self.values_ED
        sums_BD = values_ED.new_zeros(self.batch_size, values_ED.shape[1])
        sums_BD = sums_BD.index_add(0, self.example_index(), values_ED)
        # At least 1, so that an example without events gives zeros and not NaN.
        return sums_BD / self.lengths.clamp(min=1).to(values_ED.dtype).unsqueeze(1)

    def with_values(self, values_ED: Tensor) -> JaggedSequence:
        """Returns a sequence with other values (E, D') of the same events."""
        return JaggedSequence(values_ED, self.offsets, self.max_length, self.ages_E)

    def slice(self, start: int, stop: int) -> JaggedSequence:
        """Returns the sequences of successive examples; the events are not copied."""
        offsets = self.offsets[start : stop + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        ages_E = None if self.ages_E is None else self.ages_E[first:last]
        return JaggedSequence(self.values_ED[first:last], offsets - first, self.max_length, ages_E)

    def recent(self, count: int) -> JaggedSequence:
        """Selects the newest ``count`` events of each example, or all of its events where they are fewer."""
        if count >= self.max_length:
            return self
        indices = (self.positions() < count).nonzero().squeeze(1)
        lengths_B = self.lengths.clamp(max=count)
        offsets = torch.cat([self.offsets[:1], lengths_B.cumsum(0)])
        # index_select's backward pass is a good deal cheaper than that of a boolean mask.
        ages_E = None if self.ages_E is None else self.ages_E.index_select(0, indices)
        return JaggedSequence(self.values_ED.index_select(0, indices), offsets, count, ages_E)

    def newest(self, count: int) -> Tensor:
        """Stacks the newest ``count`` events of each example, newest first, (B, count, D); zeros where it has fewer."""
        back_K = torch.arange(count, device=self.offsets.device)
        exists_BK = back_K < self.lengths.unsqueeze(1)
        # Row 0 is a row of zeros prepended to the events, so event i is row i + 1.
        rows_BK = torch.where(exists_BK, self.offsets[1:].unsqueeze(1) - back_K, 0)
        values = torch.nn.functional.pad(self.values_ED, (0, 0, 1, 0))
        return values.index_select(0, rows_BK.flatten()).view(self.batch_size, count, values.shape[1])

    def prepend(self, tokens_BKD: Tensor) -> JaggedSequence:
        """Inserts tokens (B, K, D) before each example's oldest event, as events of the same age."""
        return self._joined(tokens_BKD, before=True)

    def append(self, tokens_BKD: Tensor) -> JaggedSequence:
        """Appends tokens (B, K, D) after each example's newest event, the last token as the newest event.

        Their age is 0, because they belong to the time of the example.
        """
        return self._joined(tokens_BKD, before=False)

    def _joined(self, tokens_BKD: Tensor, *, before: bool) -> JaggedSequence:
        """Interleaves the events of each example with its K tokens, by two scatters instead of a loop over examples."""
        size, count, width = tokens_BKD.shape
        device = self.offsets.device
        added = count * torch.arange(size + 1, device=device)
        offsets = self.offsets + added
        # Events move by the tokens of all earlier examples, and of their example where its tokens come first.
        shift_B = added[1:] if before else added[:-1]
        event_rows_E = torch.arange(self.values_ED.shape[0], device=device) + shift_B[self.example_index()]
        starts_B = offsets[:-1] if before else offsets[1:] - count
        token_rows_BK = starts_B.unsqueeze(1) + torch.arange(count, device=device)
        indices = torch.cat([event_rows_E, token_rows_BK.flatten()])
        values = torch.cat([self.values_ED, tokens_BKD.reshape(-1, width).to(self.values_ED.dtype)])
        # Every index occurs exactly once, so no element of the uninitialised tensor remains.
        merged = torch.empty_like(values).index_copy(0, indices, values)
        ages_E = None
        if self.ages_E is not None:
            added_B = self._oldest_ages() if before else offsets.new_zeros(size)
            ages = torch.cat([self.ages_E, added_B.repeat_interleave(count)])
            ages_E = torch.empty_like(ages).index_copy(0, indices, ages)
        return JaggedSequence(merged, offsets, self.max_length + count, ages_E)

    def _oldest_ages(self) -> Tensor:
        """Returns the age of each example's oldest event, (B,); 0 without events."""
        assert self.ages_E is not None
        ages = torch.nn.functional.pad(self.ages_E, (1, 0))  # row 0 stands for no event
        return ages.index_select(0, torch.where(self.lengths > 0, self.offsets[:-1] + 1, 0))


def example_index(offsets: Tensor, events: int) -> Tensor:
    """Returns the example that each of E events belongs to, (E,).

    Args:
        offsets: index of each of B examples' first event, and E, (B + 1,).
        events: E.
    """
    if torch.compiler.is_exporting():  # ONNX has no repeat_interleave with output_size
        # Counts at each event how many examples have ended before or at it.
        ends_B = offsets[1:]
        return offsets.new_zeros(events + 1).scatter_add(0, ends_B, torch.ones_like(ends_B)).cumsum(0)[:-1]
    index = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    # output_size avoids a copy of the sum to the CPU, which would wait for the GPU.
    return torch.repeat_interleave(index, offsets.diff(), output_size=events)
