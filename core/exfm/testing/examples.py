"""Inputs of a network, one example at a time, so that any examples can be put in a batch in any order.

Legend: B examples, N tokens, T events of an example, E events of all examples, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exfm.interfaces.jagged import JaggedSequence


@dataclass(frozen=True)
class Examples:
    """B examples.

    Attributes:
        tokens_BND: a backbone's tokens, or an encoder's context.
        events: of each sequence by name, every example's events (T, D), oldest first.
        max_length: the longest history there may be, in events.
    """

    tokens_BND: Tensor
    events: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    max_length: int = 50

    @property
    def count(self) -> int:
        """B."""
        return self.tokens_BND.shape[0]

    def sequences(self) -> dict[str, JaggedSequence]:
        """The events as a network gets them."""
        return {name: self._jagged(events) for name, events in self.events.items()}

    def take(self, rows: Sequence[int]) -> Examples:
        """The examples at these places, in this order."""
        events = {name: [of_each[row] for row in rows] for name, of_each in self.events.items()}
        return Examples(self.tokens_BND[torch.tensor(rows, dtype=torch.long)], events, self.max_length)

    def to(self, dtype: torch.dtype) -> Examples:
        """The same numbers in another precision."""
        events = {name: [one.to(dtype) for one in of_each] for name, of_each in self.events.items()}
        return Examples(self.tokens_BND.to(dtype), events, self.max_length)

    def requires_grad(self) -> Examples:
        """The same numbers as leaves that gradients reach."""
        events = {name: [_leaf(one) for one in of_each] for name, of_each in self.events.items()}
        return Examples(_leaf(self.tokens_BND), events, self.max_length)

    def _jagged(self, events: Sequence[Tensor]) -> JaggedSequence:
        offsets = torch.tensor([0, *(len(one) for one in events)]).cumsum(0)
        nothing_0D = self.tokens_BND.new_zeros(0, self.tokens_BND.shape[-1])
        return JaggedSequence(torch.cat([nothing_0D, *events]), offsets, self.max_length)


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
    """Standard normal tokens and events.

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

    events = {name: [normal(length, dim) for length in of_each] for name, of_each in (lengths or {}).items()}
    return Examples(normal(count, tokens, dim), events, max_length)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()
