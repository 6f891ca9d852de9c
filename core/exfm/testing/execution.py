"""Tests of a network's execution: on the meta device, in low precision, recomputed, exported, and its cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes

from exfm.interfaces.jagged import JaggedSequence
from exfm.layers.flops import count_flops
from exfm.modeling.recompute import recompute
from exfm.testing.examples import Examples
from exfm.testing.network import MAX_LENGTH, NetworkTests, check_close
from exfm.testing.operations import Operations

_LARGE = (513, 5_000)
"""Batch sizes beyond those at which code may switch to another algorithm."""

_WASTE = 2.0
"""Limit of a batch's cost over the sum of its examples' costs; above 1, as buckets of similar lengths pad a little."""

_TWICE = 2.2
"""Limit of the ratio of result sizes between a batch and a batch of half its size."""


class ExecutionTests(NetworkTests):
    """Tests of the modes in which the core runs a network."""

    def test_builds_without_memory(self, fields: Mapping[str, Any]) -> None:
        """The constructor works on the meta device, on which ``exfm validate`` builds every model without memory."""
        with torch.device("meta"):
            module = self.build(fields)
        real = [name for name, parameter in module.named_parameters() if not parameter.is_meta]
        assert not real, f"built on the meta device, {', '.join(real)} took memory; leave the device to torch's default"

    def test_low_precision_is_close(self, fields: Mapping[str, Any]) -> None:
        """The output under bfloat16 autocast is close to float32, so sums over long histories are in float32."""
        module, examples = self.make(fields, dtype=torch.float32), self.examples().to(torch.float32)
        with torch.no_grad():
            expected = self.run(module, examples)
            with torch.autocast("cpu", torch.bfloat16):
                actual = self.run(module, examples).float()
        # 5%: bfloat16 has 8 bits of precision, whose rounding errors add up over the layers.
        error, size = (actual - expected).norm().item(), expected.norm().item()
        assert error <= 0.05 * size, (
            f"under bfloat16 autocast an output of norm {size:.3g} is {error:.3g} off, 5% allowed"
        )

    def test_blocks_are_modules_of_its_own(self, fields: Mapping[str, Any]) -> None:
        """No module in ``blocks()`` contains another, because the core recomputes and shards each separately."""
        module = self.make(fields)
        names = {submodule: name for name, submodule in module.named_modules()}
        block_names: dict[nn.Module, str] = {}
        for block in module.blocks():
            assert names.get(block), f"blocks(): {type(block).__name__} is not a submodule of the component"
            for child in block.modules():
                first = block_names.get(child)
                assert first is None, f"blocks(): {names[child]} is in {first} and in {names[block]}"
                block_names[child] = names[block]

    def test_recomputing_blocks_changes_nothing(self, fields: Mapping[str, Any]) -> None:
        """Activation checkpointing, which repeats each block's forward pass in backward, gives the same gradients."""
        module, examples, called = self.make(fields), self.examples().requires_grad(), set[nn.Module]()
        blocks = module.blocks()
        for block in blocks:
            block.register_forward_hook(lambda block, _, __: called.add(block))
        leaves = [examples.tokens_BND, *module.parameters()]
        results = []
        for _ in range(2):
            output = self.run(module, examples)
            gradients = torch.autograd.grad(output.square().sum(), leaves, allow_unused=True, materialize_grads=True)
            results.append([output.detach(), *gradients])
            # The second round runs with recomputation.
            for block in blocks:
                recompute(block)
        missed = [type(block).__name__ for block in blocks if block not in called]
        assert not missed, f"blocks(): nobody calls {missed[0]}, so none of it is recomputed; call the block itself"
        for plain, recomputed in zip(*results, strict=True):
            check_close(recomputed, plain, "with the blocks recomputed in backward against without")

    def test_exports(self, fields: Mapping[str, Any]) -> None:
        """``torch.export`` captures the component for any number of examples and events, as `exfm export` does.

        Where a batch of a single example is refused, an operation copies for some sizes and not for others, such as
        ``flatten`` of an expanded or transposed tensor.
        """
        if self.supports_export is not True:
            pytest.skip(str(self.supports_export))
        exported = _Exported(self, self.make(fields))
        examples = self.examples()
        free = {0: torch.export.Dim.DYNAMIC}
        shapes = (free, *(dict.fromkeys(self.sequence_names, free) for _ in range(3)))
        # Otherwise torch.export specialises on sizes of 0 and 1.
        with symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            program = torch.export.export(exported, _tensors(examples), dynamic_shapes=shapes).module()
        sizes = {"one": [2], "fewer": [1, 2], "more": [5, 4, 3, 2, 1, 0, 0, 1, 2, 4]}
        large = _LARGE[:1] if self.sequence_names else _LARGE  # a captured graph pads every history to the longest
        sizes |= {f"{count:,}": [row % examples.count for row in range(count)] for count in large}
        for title, rows in sizes.items():
            tensors = _tensors(examples.take(rows))
            check_close(
                program(*tensors), exported(*tensors), f"exported, with {title} examples, traced with {examples.count}"
            )

    def test_cost_is_counted(self, fields: Mapping[str, Any]) -> None:
        """A component with matrices has FLOPs, which ``exfm show`` and ``results.json`` report."""
        module = self.make(fields, dtype=torch.float32)
        matrices = [name for name, parameter in module.named_parameters() if parameter.dim() > 1]
        if matrices:
            flops = self._cost(module, self.examples())
            assert flops, f"it has matrices ({matrices[0]}), but no FLOPs: torch's counter does not know its kernels"

    def test_cost_follows_the_events(self, fields: Mapping[str, Any]) -> None:
        """The cost grows with the events and not with padding, because most histories are short."""
        many, longest = (0, 1, 2, 3, 4) * 6, (MAX_LENGTH,)
        module = self.make(fields, dtype=torch.float32)
        # The cost without events, which is counted once on both sides.
        nothing = self._cost(module, self.examples((0,) * len(many + longest)))
        short = self._cost(module, self.examples(many))
        apart = short + self._cost(module, self.examples(longest)) - nothing
        together = self._cost(module, self.examples(many + longest)) - nothing
        factor = together / max(apart, 1)
        assert factor <= _WASTE, (
            f"{len(many)} short histories cost {factor:.1f} times as much in a batch with a long one"
        )
        longer = self.make(fields, dtype=torch.float32, max_length=10 * MAX_LENGTH)
        factor = self._cost(longer, self.examples(many, max_length=10 * MAX_LENGTH)) / max(short, 1)
        assert factor <= _WASTE, (
            f"the same histories cost {factor:.1f} times as much where ten times longer ones may be"
        )

    def test_work_follows_the_batch(self, fields: Mapping[str, Any]) -> None:
        """No result grows faster than the batch, as it would in an operation that compares all examples or all events.

        Within an example's history, events may be compared with each other.
        """
        module, examples = self.make(fields), self.examples()
        rows = list(range(examples.count))
        once, twice = (self._sizes(module, examples.take(some)) for some in (rows, rows + rows))
        if [name for name, _ in once] != [name for name, _ in twice]:
            # A component that computes micro-batches has other operations in a larger batch.
            once, twice = _largest(once), _largest(twice)
        for (name, before), (_, after) in zip(once, twice, strict=False):
            assert after <= _TWICE * before, (
                f"in a batch twice as large, the result of {name} has {after} numbers instead of {before}, "
                f"{after / max(before, 1):.1f} times as many; let no example meet another"
            )

    def _sizes(self, module: nn.Module, examples: Examples) -> list[tuple[str, int]]:
        """Lists the operations of a call, and the number of elements of each operation's largest result."""
        with torch.no_grad(), Operations() as operations:
            self.run(module, examples)
        sizes: list[tuple[str, int]] = operations.sizes
        return sizes

    def _cost(self, module: nn.Module, examples: Examples) -> int:
        examples = examples.to(torch.float32)
        return count_flops(lambda: self.run(module, examples))


def _largest(sizes: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Returns the largest result of all calls of each operation."""
    largest: dict[str, int] = {}
    for name, size in sizes:
        largest[name] = max(size, largest.get(name, 0))
    return sorted(largest.items())


class _Exported(nn.Module):
    """A component with tensors as inputs and output, as torch.export requires."""

    def __init__(self, tests: NetworkTests, module: nn.Module) -> None:
        super().__init__()
        self._call, self.module = tests.call, module

    def forward(
        self,
        tokens_BND: Tensor,
        values: dict[str, Tensor],
        offsets: dict[str, Tensor],
        ages: dict[str, Tensor | None],
    ) -> Tensor:
        sequences = {name: JaggedSequence(values[name], offsets[name], MAX_LENGTH, ages[name]) for name in values}
        return self._call(self.module, tokens_BND, sequences)


def _tensors(
    examples: Examples,
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor | None]]:
    sequences = examples.sequences()
    values = {name: sequence.values_ED for name, sequence in sequences.items()}
    offsets = {name: sequence.offsets for name, sequence in sequences.items()}
    return examples.tokens_BND, values, offsets, {name: sequence.ages_E for name, sequence in sequences.items()}
