"""A batch through a module in shares, each on a thread of its own, forward and backward.

Torch spreads every single operation over its threads, which wait for each other at its end and look on while one does
what cannot be spread. A share goes through the whole module by itself.

Legend: B examples, N tokens, D width, E events of a sequence, R width of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exfm.interfaces.jagged import JaggedSequence
from exfm.parallel.threads import worker_threads

Sequences = Mapping[str, JaggedSequence]
Call = Callable[[Sequence[Tensor], Sequences], Tensor]


@dataclass(frozen=True)
class _Share:
    """Inputs of a share, cut off from what they were made of, and what was made of them."""

    inputs: list[Tensor]
    result_BR: Tensor


def in_shares(
    call: Call, rows: Sequence[Tensor], sequences: Sequences, parameters: Sequence[Tensor], count: int
) -> Tensor:
    """What ``call`` makes of a batch, (B, R), each example by itself.

    The gradients of a parameter are added in the order of the shares: a run can be repeated.

    Args:
        call: takes ``rows`` and ``sequences`` of a share; several threads call it at once.
        rows: tensors (B, ...).
        sequences: by name.
        parameters: all that ``call`` uses.
        count: how many shares, at most B.
    """
    events = [sequence.values_ED for sequence in sequences.values()]
    tensors = (*rows, *events, *parameters)
    result_BR: Tensor = _InShares.apply(call, len(rows), sequences, count, *tensors)  # type: ignore[no-untyped-call]
    return result_BR


class _InShares(torch.autograd.Function):
    """One node of the caller's graph; the graphs of the shares are their threads' own."""

    @staticmethod
    def forward(ctx: Any, call: Call, rows: int, sequences: Sequences, count: int, *tensors: Tensor) -> Tensor:
        ctx.needed = ctx.needs_input_grad[4:]
        ctx.parameters = tensors[rows + len(sequences) :]
        size = tensors[0].shape[0]
        bounds = [size * number // count for number in range(count + 1)]

        def share(start: int, stop: int) -> _Share:
            cut = {name: sequence.slice(start, stop) for name, sequence in sequences.items()}
            taken = [*(one[start:stop] for one in tensors[:rows]), *(sequence.values_ED for sequence in cut.values())]
            inputs = [one.detach().requires_grad_(need) for one, need in zip(taken, ctx.needed, strict=False)]
            events = zip(cut.items(), inputs[rows:], strict=True)
            with torch.enable_grad():
                result_BR = call(inputs[:rows], {name: one.with_values(values) for (name, one), values in events})
            return _Share(inputs, result_BR)

        ctx.shares = list(worker_threads(count).map(share, bounds[:-1], bounds[1:]))
        return torch.cat([one.result_BR.detach() for one in ctx.shares])

    @staticmethod
    def backward(ctx: Any, gradient_BR: Tensor) -> tuple[Tensor | None, ...]:
        shares: list[_Share] = ctx.shares

        def gradients(share: _Share, part_BR: Tensor) -> list[Tensor | None]:
            learned = [one for one, need in zip((*share.inputs, *ctx.parameters), ctx.needed, strict=True) if need]
            found = iter(torch.autograd.grad(share.result_BR, learned, part_BR, allow_unused=True))
            return [next(found) if need else None for need in ctx.needed]

        parts = torch.split(gradient_BR, [one.result_BR.shape[0] for one in shares])
        found = list(worker_threads(len(shares)).map(gradients, shares, parts))
        inputs = len(shares[0].inputs)
        joined = [_joined([one.inputs[i] for one in shares], [own[i] for own in found]) for i in range(inputs)]
        added = [_added([own[i] for own in found]) for i in range(inputs, len(ctx.needed))]
        return (None, None, None, None, *joined, *added)


def _joined(inputs: list[Tensor], gradients: list[Tensor | None]) -> Tensor | None:
    """The gradient of an input, of those of its parts."""
    if all(gradient is None for gradient in gradients):
        return None
    pairs = zip(inputs, gradients, strict=True)
    return torch.cat([torch.zeros_like(one) if gradient is None else gradient for one, gradient in pairs])


def _added(gradients: list[Tensor | None]) -> Tensor | None:
    given = [gradient for gradient in gradients if gradient is not None]
    return sum(given[1:], start=given[0]) if given else None
