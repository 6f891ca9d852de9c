"""Tests of the contract of backbones."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, ClassVar, Self

import pytest
import torch
from torch import Tensor, nn

from exfm.interfaces.backbone import Backbone, BackboneInputs, SequenceShape
from exfm.interfaces.component import Component
from exfm.interfaces.jagged import JaggedSequence
from exfm.testing.behaviour import BehaviourTests
from exfm.testing.execution import ExecutionTests
from exfm.testing.names import renamed_group
from exfm.testing.network import MAX_LENGTH, check_bits
from exfm.testing.side_effects import SideEffectTests


class BackboneTests(BehaviourTests, ExecutionTests, SideEffectTests):
    """Tests of a backbone; see ``exfm.testing`` for how to use them.

    Attributes:
        sequences: names of the sequences that a backbone with ``consumes_sequences`` gets.
        targets: indices of the candidate item's tokens in ``tokens``.
        tasks: names of the model's tasks.
    """

    interface: ClassVar[type[Component]] = Backbone
    sequences: ClassVar[tuple[str, ...]] = ("clicks", "buys")
    targets: ClassVar[tuple[int, ...]] = (2,)
    tasks: ClassVar[tuple[str, ...]] = ("click", "conversion", "like")

    @property
    def sequence_names(self) -> tuple[str, ...]:
        """The sequences that the backbone reads."""
        return self.sequences if self.component.consumes_sequences else ()

    def called(self, names: Mapping[str, str]) -> Self:
        """Returns these tests with other names for features and sequences."""
        other: Any = copy(self)
        other.tokens = renamed_group(self.tokens, names)
        other.sequences = renamed_group(self.sequences, names)
        return other  # type: ignore[no-any-return]

    def _shapes(
        self, max_length: int, targets: tuple[int, ...] = (), *, times: bool = False
    ) -> tuple[SequenceShape, ...]:
        return tuple(SequenceShape(name, max_length, targets, times=times) for name in self.sequence_names)

    def inputs(self, max_length: int) -> BackboneInputs:
        """Describes the tokens and sequences to the constructor."""
        shapes = self._shapes(max_length, self.targets, times=True)
        return BackboneInputs(self.tokens, self.dim, shapes, self.tasks)

    def inputs_without_times(self) -> BackboneInputs:
        """Describes the tokens and sequences of a stream without times of events."""
        shapes = self._shapes(MAX_LENGTH, self.targets)
        return BackboneInputs(self.tokens, self.dim, shapes, self.tasks)

    def call(self, module: nn.Module, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """Returns the representation (B, R), or (B, T, R) per task."""
        representation: Tensor = module(tokens_BND, sequences)
        return representation

    def output_shape(self, module: Backbone) -> tuple[int, ...]:
        """Returns (R,), or (T, R) per task."""
        return (len(self.tasks), module.output_dim) if module.per_task else (module.output_dim,)

    def test_without_sequences(self, fields: Mapping[str, Any]) -> None:
        """A backbone works without sequences, or its constructor raises a ValueError."""
        try:
            module = self.make(fields, inputs=BackboneInputs(self.tokens, self.dim, tasks=self.tasks))
        except ValueError:
            return
        output = module(self.examples().tokens_BND, {})
        assert output.isfinite().all(), "the output is not finite where the stream has no sequences"

    def test_without_a_candidate_item(self, fields: Mapping[str, Any]) -> None:
        """A backbone works without tokens that share a table with a sequence, or raises a ValueError."""
        shapes = self._shapes(MAX_LENGTH, times=True)
        try:
            module = self.make(fields, inputs=BackboneInputs(self.tokens, self.dim, shapes, self.tasks))
        except ValueError:
            return
        output = self.run(module, self.examples())
        assert output.isfinite().all(), "the output is not finite where no token is the candidate item's"

    def test_tasks_are_read_as_declared(self, fields: Mapping[str, Any]) -> None:
        """A backbone per task refuses inputs without tasks, and its representations differ; any other ignores tasks."""
        shapes = self.inputs(MAX_LENGTH).sequences
        without = BackboneInputs(self.tokens, self.dim, shapes)
        if self.component.per_task:
            with pytest.raises(ValueError, match="task"):
                self.make(fields, inputs=without)
            first, second = self.run(self.make_moved(fields), self.examples()).unbind(1)[:2]
            assert not torch.equal(first, second), "two tasks have one representation; leave per_task unset"
        else:
            module, inner = self.make(fields), self.make(fields, inputs=without)
            inner.load_state_dict(module.state_dict())
            output = self.run(inner, self.examples())
            check_bits(output, self.run(module, self.examples()), "without tasks, against with them")

    def test_named_layers_are_as_wide_as_it_says(self, fields: Mapping[str, Any]) -> None:
        """A forward pass calls each layer in ``layer_dims`` once, because a teacher's states are its output."""
        module, examples = self.make(fields), self.examples()
        outputs: dict[str, list[Any]] = {name: [] for name in module.layer_dims}
        for name in outputs:
            # The default argument binds the name of this iteration.
            def keep_output(_: Any, __: Any, output: Any, name: str = name) -> None:
                outputs[name].append(output[0] if isinstance(output, tuple) else output)

            module.get_submodule(name).register_forward_hook(keep_output)
        size = self.run(module, examples).shape[0]
        for name, width in module.layer_dims.items():
            calls = len(outputs[name])
            assert calls == 1, f"layer_dims: {name} is called {calls} times in a forward pass"
            shape = tuple(outputs[name][0].flatten(1).shape)
            assert shape == (size, width), f"layer_dims: {name} gives {shape}, not {(size, width)}"

    def test_gradient_reaches_the_tokens(self, fields: Mapping[str, Any]) -> None:
        """Every token has a gradient, because the tables of a token are trained by its gradient alone."""
        module, examples = self.make_moved(fields), self.examples().requires_grad()
        (gradient_BND,) = torch.autograd.grad(self.run(module, examples).square().sum(), examples.tokens_BND)
        without: list[str] = []
        for name, gradient_BD in zip(self.tokens, gradient_BND.unbind(1), strict=True):
            if not gradient_BD.any():
                without.append(name)
        assert not without, f"no gradient reaches the tokens {', '.join(without)}"
