"""Inputs of a network, one example at a time, so that any examples can be put in a batch in any order.

Legend: B examples, N tokens, T events of an example, E events of all examples, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from exfm.interfaces.jagged import JaggedSequence


@dataclass(frozen=True)
class Examples:
    """B examples.

    Attributes:
        tokens_BND: a backbone's tokens, or an encoder's context.
        events: of each sequence by name, every example's events (T, D), oldest first.
        ages: of each sequence by name, the seconds from every example's events to the example, (T,).
        max_length: the longest history there may be, in events.
    """

    tokens_BND: Tensor
    events: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    max_length: int = 50
    ages: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """B."""
        return self.tokens_BND.shape[0]

    def sequences(self) -> dict[str, JaggedSequence]:
        """The events as a network gets them."""
        return {name: self._jagged(events, self.ages.get(name)) for name, events in self.events.items()}

    def take(self, rows: Sequence[int]) -> Examples:
        """The examples at these places, in this order."""
        events = {name: [of_each[row] for row in rows] for name, of_each in self.events.items()}
        ages = {name: [of_each[row] for row in rows] for name, of_each in self.ages.items()}
        return Examples(self.tokens_BND[torch.tensor(rows, dtype=torch.long)], events, self.max_length, ages)

    def to(self, dtype: torch.dtype) -> Examples:
        """The same numbers in another precision."""
        events = {name: [one.to(dtype) for one in of_each] for name, of_each in self.events.items()}
        return replace(self, tokens_BND=self.tokens_BND.to(dtype), events=events)

    def requires_grad(self) -> Examples:
        """The same numbers as leaves that gradients reach."""
        events = {name: [_leaf(one) for one in of_each] for name, of_each in self.events.items()}
        return replace(self, tokens_BND=_leaf(self.tokens_BND), events=events)

    def without_ages(self) -> Examples:
        """The same of a stream that does not say when events happened."""
        return replace(self, ages={})

    def _jagged(self, events: Sequence[Tensor], ages: Sequence[Tensor] | None) -> JaggedSequence:
        offsets = torch.tensor([0, *(len(one) for one in events)]).cumsum(0)
        nothing_0D = self.tokens_BND.new_zeros(0, self.tokens_BND.shape[-1])
        ages_E = None if ages is None else torch.cat([offsets[:0], *ages])
        return JaggedSequence(torch.cat([nothing_0D, *events]), offsets, self.max_length, ages_E)


def random_examples(
    count: int,
    tokens: int,
    dim: int,
    lengths: Mapping[str, Sequence[int]] | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    max_length: int = 50,
) -> Examples:
    """Standard normal tokens and events, and ages of events from seconds to years.

    Args:
        count: B.
        tokens: N.
        dim: D.
        lengths: how many events each example has, by sequence.
        seed: of the random numbers.
        dtype: of tokens and events.
        max_length: the longest history there may be.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    lengths = lengths or {}
    events = {name: [normal(length, dim) for length in of_each] for name, of_each in lengths.items()}
    tokens_BND = normal(count, tokens, dim)
    ages = {name: [_ages(length, generator) for length in of_each] for name, of_each in lengths.items()}
    return Examples(tokens_BND, events, max_length, ages)


def _ages(length: int, generator: torch.Generator) -> Tensor:
    """Draws ages, the oldest first: sums of steps from no time to a month."""
    steps = (15 * torch.rand(length, generator=generator, dtype=torch.float64)).exp().long() - 1
    return steps.cumsum(0).flip(0)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()
