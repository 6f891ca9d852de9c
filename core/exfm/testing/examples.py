"""Inputs of a network, stored by example, so that a batch can have any examples in any order.

Legend: B examples, N tokens, T events of an example, E events of all examples, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from exfm.interfaces.jagged import JaggedSequence

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Examples:
    """B examples.

    Attributes:
        tokens_BND: a backbone's tokens, or an encoder's context.
        events: of each sequence by name, every example's events (T, D), oldest first.
        ages: of each sequence by name, the seconds from every example's events to the example, (T,).
        max_length: the longest possible history, in events.
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
        """Concatenates the events of each sequence, as a network takes them."""
        return {name: self._jagged(events, self.ages.get(name)) for name, events in self.events.items()}

    def take(self, rows: Sequence[int]) -> Examples:
        """Selects the examples with these indices, in this order."""
        events, ages = _select(self.events, rows), _select(self.ages, rows)
        return Examples(self.tokens_BND[torch.tensor(rows, dtype=torch.long)], events, self.max_length, ages)

    def to(self, dtype: torch.dtype) -> Examples:
        """Converts tokens and events to another dtype; ages stay integers."""
        events = _map_values(lambda events_TD: events_TD.to(dtype), self.events)
        return replace(self, tokens_BND=self.tokens_BND.to(dtype), events=events)

    def requires_grad(self) -> Examples:
        """Copies tokens and events to leaves that require gradients."""
        events = _map_values(_leaf, self.events)
        return replace(self, tokens_BND=_leaf(self.tokens_BND), events=events)

    def without_ages(self) -> Examples:
        """Returns the examples without ages, as in a stream without times of events."""
        return replace(self, ages={})

    def _jagged(self, events: Sequence[Tensor], ages: Sequence[Tensor] | None) -> JaggedSequence:
        offsets = torch.tensor([0, *map(len, events)]).cumsum(0)
        # An empty tensor first, because torch.cat refuses an empty list.
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
    """Draws standard normal tokens and events, and ages of events from seconds to years.

    Args:
        count: B.
        tokens: N.
        dim: D.
        lengths: the number of events of each example, by sequence.
        seed: of the random numbers.
        dtype: of tokens and events.
        max_length: the longest possible history, in events.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    lengths = lengths or {}
    # In this order, because all numbers are drawn from a single generator.
    events = _map_values(lambda length: normal(length, dim), lengths)
    tokens_BND = normal(count, tokens, dim)
    ages = _map_values(lambda length: _ages(length, generator), lengths)
    return Examples(tokens_BND, events, max_length, ages)


def _ages(length: int, generator: torch.Generator) -> Tensor:
    """Draws ages, the oldest first, as sums of steps from 0 seconds to a month (exp(15) seconds are 38 days)."""
    steps = (15 * torch.rand(length, generator=generator, dtype=torch.float64)).exp().long() - 1
    return steps.cumsum(0).flip(0)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def _select(sequences: Mapping[str, Sequence[Tensor]], rows: Sequence[int]) -> dict[str, list[Tensor]]:
    return {name: [examples[row] for row in rows] for name, examples in sequences.items()}


def _map_values(
    function: Callable[[_Value], Tensor], sequences: Mapping[str, Sequence[_Value]]
) -> dict[str, list[Tensor]]:
    return {name: list(map(function, values)) for name, values in sequences.items()}
