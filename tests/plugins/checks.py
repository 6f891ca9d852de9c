"""What every backbone and sequence encoder must hold, as plain functions over the public interfaces.

A check gets ``make``, which builds the component, and a case: inputs of B examples from which any rows can be taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Protocol

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from exfm import Backbone, Component, JaggedSequence, SequenceEncoder

Make = Callable[[], nn.Module]


class Case(Protocol):
    """Inputs of ``count`` examples."""

    count: int

    def run(self, module: nn.Module, rows: Tensor) -> Tensor:
        """The module's output for the given rows."""


@dataclass(frozen=True)
class BackboneCase:
    """Tokens (B, N, D) for a backbone that does not consume raw sequences."""

    tokens_BND: Tensor

    @property
    def count(self) -> int:
        return self.tokens_BND.shape[0]

    def run(self, module: nn.Module, rows: Tensor) -> Tensor:
        return module(self.tokens_BND[rows], {})


@dataclass(frozen=True)
class EncoderCase:
    """Events of each example, (T_i, D), and context tokens (B, N, D)."""

    events: tuple[Tensor, ...]
    context_BND: Tensor

    @property
    def count(self) -> int:
        return len(self.events)

    def run(self, module: nn.Module, rows: Tensor) -> Tensor:
        return module(self.sequence(rows), self.context_BND[rows])

    def sequence(self, rows: Tensor | None = None) -> JaggedSequence:
        picked = self.events if rows is None else [self.events[row] for row in rows.tolist()]
        return jagged(picked, like=self.context_BND)


def jagged(events: tuple[Tensor, ...] | list[Tensor], like: Tensor) -> JaggedSequence:
    """A JaggedSequence of one (T_i, D) tensor per example."""
    lengths = torch.tensor([0, *(len(event) for event in events)], dtype=torch.long)
    values_ED = torch.cat([like.new_zeros(0, like.shape[-1]), *events])
    return JaggedSequence(values_ED, lengths.cumsum(0), max_length=int(lengths.max()))


def random_encoder_case(
    lengths: list[int], context: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> EncoderCase:
    """Standard normal events and context tokens."""
    generator = torch.Generator().manual_seed(seed)
    events = tuple(torch.randn(length, dim, generator=generator, dtype=dtype) for length in lengths)
    return EncoderCase(events, torch.randn(len(lengths), context, dim, generator=generator, dtype=dtype))


def random_backbone_case(
    batch: int, tokens: int, dim: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> BackboneCase:
    """Standard normal tokens."""
    generator = torch.Generator().manual_seed(seed)
    return BackboneCase(torch.randn(batch, tokens, dim, generator=generator, dtype=dtype))


def check_offers(plugin: ModuleType, component: type[Component]) -> None:
    """The plugin's hook offers the component under its name, and the offer leads to that very class."""
    hooks = [value for name, value in vars(plugin).items() if name.startswith("exfm_register_")]
    offers = {offer.name: offer.target for hook in hooks for offer in hook()}
    module, _, attribute = offers[component.name].partition(":")
    assert getattr(import_module(module), attribute) is component


def check_examples_are_independent(make: Make, case: Case) -> None:
    """Batch order, neighbours and batch size change nothing; batches of none and of one work."""
    torch.manual_seed(0)
    module = make()
    everything = torch.arange(case.count)
    expected = case.run(module, everything)
    shuffled = torch.randperm(case.count, generator=torch.Generator().manual_seed(1))
    for rows in (shuffled, everything.flip(0)[: case.count // 2], everything[:1], everything[-1:], everything[:0]):
        torch.testing.assert_close(case.run(module, rows), expected[rows], rtol=1e-10, atol=1e-12)


def check_gradients_reach_every_parameter(make: Make, case: Case) -> None:
    """Every parameter gets a finite gradient that is not all zeros."""
    torch.manual_seed(0)
    module = make()
    if not any(True for _ in module.parameters()):
        return
    output = case.run(module, torch.arange(case.count))
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=output.dtype)
    (output * weights).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def check_training_is_evaluation(make: Make, case: Case) -> None:
    """The forward pass that trains is bit for bit the one that predicts."""
    module, rows = make(), torch.arange(case.count)
    assert torch.equal(case.run(module.train(), rows), case.run(module.eval(), rows))


def check_seed_and_state_give_equal_bits(make: Make, case: Case) -> None:
    """One seed builds one module; state saved without pickle and loaded into another module gives the same output."""
    rows = torch.arange(case.count)
    torch.manual_seed(7)
    first = make()
    torch.manual_seed(7)
    same = make()
    other = make()
    expected = case.run(first, rows)
    assert torch.equal(case.run(same, rows), expected)
    other.load_state_dict(load(save(first.state_dict())))
    assert torch.equal(case.run(other, rows), expected)


def check_autocast(make: Make, case: Case) -> None:
    """In bfloat16 autocast the output is that of float32, but for rounding. The case is in float32."""
    torch.manual_seed(0)
    module, rows = make().float(), torch.arange(case.count)
    expected = case.run(module, rows)
    with torch.autocast("cpu", torch.bfloat16):
        actual = case.run(module, rows).float()
    assert (actual - expected).norm() <= 0.05 * expected.norm()


def check_backbone_exports(make: Callable[[], Backbone], case: BackboneCase) -> None:
    """torch.export captures the whole graph, for any batch size."""

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make()

        def forward(self, tokens_BND: Tensor) -> Tensor:
            return self.inner(tokens_BND, {})

    wrapper = Wrapper()
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(wrapper, (case.tokens_BND,), dynamic_shapes=shapes)
    fewer = case.tokens_BND[: case.count // 2]
    torch.testing.assert_close(program.module()(fewer), wrapper(fewer))


def check_encoder_exports(make: Callable[[], SequenceEncoder], case: EncoderCase) -> None:
    """torch.export captures the whole graph, for any number of examples and events."""

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make()

        def forward(self, values_ED: Tensor, offsets: Tensor, context_BND: Tensor) -> Tensor:
            return self.inner(JaggedSequence(values_ED, offsets, max_length=50), context_BND)

    def arguments(of: EncoderCase) -> tuple[Tensor, Tensor, Tensor]:
        sequence = of.sequence()
        return sequence.values_ED, sequence.offsets, of.context_BND

    wrapper = Wrapper()
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(wrapper, arguments(case), dynamic_shapes=({0: dynamic}, {0: dynamic}, {0: dynamic}))
    fewer = EncoderCase(case.events[1:3], case.context_BND[1:3])
    torch.testing.assert_close(program.module()(*arguments(fewer)), wrapper(*arguments(fewer)))


def check_backbone(make: Callable[[], Backbone], tokens: int, dim: int) -> None:
    """All that a backbone which consumes summary tokens only must hold, on random tokens (float64)."""
    case = random_backbone_case(7, tokens, dim)
    module = make()
    assert case.run(module, torch.arange(3)).shape == (3, module.output_dim)
    check_examples_are_independent(make, case)
    check_gradients_reach_every_parameter(make, case)
    check_training_is_evaluation(make, case)
    check_seed_and_state_give_equal_bits(make, case)
    check_backbone_exports(make, case)
    check_autocast(make, random_backbone_case(7, tokens, dim, dtype=torch.float32))


def check_encoder(make: Callable[[], SequenceEncoder], context: int, dim: int) -> None:
    """All that a sequence encoder must hold, on random events (float64), histories without events among them."""
    case = random_encoder_case([3, 0, 5, 1, 0, 12], context, dim)
    module = make()
    summary = case.run(module, torch.arange(case.count))
    assert summary.shape == (case.count, module.num_tokens, dim)
    assert summary.isfinite().all()
    nobody = random_encoder_case([0, 0], context, dim)
    assert nobody.run(module, torch.arange(2)).isfinite().all()
    check_examples_are_independent(make, case)
    check_gradients_reach_every_parameter(make, case)
    check_training_is_evaluation(make, case)
    check_seed_and_state_give_equal_bits(make, case)
    check_encoder_exports(make, case)
    check_autocast(make, random_encoder_case([3, 0, 40], context, dim, dtype=torch.float32))
