"""Runs a module on slices of a batch, each on a separate thread, forward and backward.

Torch spreads every operation over its threads, which wait for each other at its end, and idle during operations that
cannot be spread. Here each thread takes a slice of the batch through the whole module.

Legend: B examples, D width, E events of a sequence, R width of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from exfm.interfaces.jagged import JaggedSequence
from exfm.interfaces.trunk import Sequences
from exfm.mappings import defined
from exfm.parallel.cast_weights import kept_casts
from exfm.parallel.threads import worker_threads

Call = Callable[[Sequence[Tensor], Sequences], Tensor]


@dataclass(frozen=True)
class _Slice:
    """Detached inputs of a slice of the batch, and its output."""

    inputs: list[Tensor]
    output_BR: Tensor


def threaded_forward(
    call: Call, inputs: Sequence[Tensor], sequences: Sequences, parameters: Sequence[Tensor], threads: int
) -> Tensor:
    """Calls a re-entrant function on slices of a batch, and concatenates their outputs (B, R).

    The gradients of a parameter are added in the order of the slices, whichever thread is ahead, so that a run can be
    repeated.

    Args:
        call: maps ``inputs`` and ``sequences`` of a slice to its output; each example by itself.
        inputs: tensors (B, ...).
        sequences: by name.
        parameters: all that ``call`` uses.
        threads: the number of threads and slices, at most B.
    """
    events = [sequence.values_ED for sequence in sequences.values()]
    tensors = (*inputs, *events, *parameters)
    output_BR: Tensor = _ThreadedForward.apply(  # type: ignore[no-untyped-call]
        call, len(inputs), sequences, threads, *tensors
    )
    return output_BR


class _ThreadedForward(torch.autograd.Function):
    """A single node of the caller's graph; each thread has its own graph of its slice."""

    @staticmethod
    def forward(ctx: Any, call: Call, inputs: int, sequences: Sequences, threads: int, *tensors: Tensor) -> Tensor:
        # The first four arguments are not tensors.
        ctx.needed = ctx.needs_input_grad[4:]
        ctx.parameters = tensors[inputs + len(sequences) :]
        size = tensors[0].shape[0]
        bounds = [size * number // threads for number in range(threads + 1)]

        def run_slice(start: int, stop: int) -> _Slice:
            cut = {name: sequence.slice(start, stop) for name, sequence in sequences.items()}
            sliced = [tensor[start:stop] for tensor in tensors[:inputs]]
            sliced += [sequence.values_ED for sequence in cut.values()]
            # Detached, so that the backward pass of a thread ends here and not in the caller's graph.
            leaves = [tensor.detach().requires_grad_(need) for tensor, need in zip(sliced, ctx.needed, strict=False)]
            detached: dict[str, JaggedSequence] = {}
            for (name, sequence), values_ED in zip(cut.items(), leaves[inputs:], strict=True):
                detached[name] = sequence.with_values(values_ED)
            # Set here, because gradient mode is a setting of the thread.
            with torch.enable_grad(), kept_casts():
                return _Slice(leaves, call(leaves[:inputs], detached))

        ctx.slices = list(worker_threads(threads).map(run_slice, bounds[:-1], bounds[1:]))
        return torch.cat([slice_.output_BR.detach() for slice_ in ctx.slices])

    @staticmethod
    def backward(ctx: Any, gradient_BR: Tensor) -> tuple[Tensor | None, ...]:
        slices: list[_Slice] = ctx.slices

        def differentiate(slice_: _Slice, gradient: Tensor) -> list[Tensor | None]:
            tensors = (*slice_.inputs, *ctx.parameters)
            trained = list(compress(tensors, ctx.needed))
            gradients = iter(torch.autograd.grad(slice_.output_BR, trained, gradient, allow_unused=True))
            return [next(gradients) if need else None for need in ctx.needed]

        sizes = [slice_.output_BR.shape[0] for slice_ in slices]
        by_slice = list(worker_threads(len(slices)).map(differentiate, slices, torch.split(gradient_BR, sizes)))
        inputs = list(zip(*(slice_.inputs for slice_ in slices), strict=True))
        # By tensor instead of by slice: inputs are cut into slices, parameters are shared by all slices.
        by_tensor = list(zip(*by_slice, strict=True))
        input_gradients = map(_concatenated, inputs, by_tensor[: len(inputs)])
        parameter_gradients = map(_added, by_tensor[len(inputs) :])
        return (None, None, None, None, *input_gradients, *parameter_gradients)


def _concatenated(inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor | None:
    """Concatenates the gradients of an input's slices; zeros for a slice that does not use the input."""
    if all(gradient is None for gradient in gradients):
        return None
    filled: list[Tensor] = []
    for tensor, gradient in zip(inputs, gradients, strict=True):
        filled.append(torch.zeros_like(tensor) if gradient is None else gradient)
    return torch.cat(filled)


def _added(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """Adds up the gradients of a parameter in the order of the slices."""
    # Without a start of 0, which would make a new tensor of the first gradient.
    terms = defined(gradients)
    return sum(terms[1:], start=terms[0]) if terms else None
