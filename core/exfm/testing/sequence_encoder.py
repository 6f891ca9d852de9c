"""What every sequence encoder must hold."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from exfm.interfaces.component import Component
from exfm.interfaces.jagged import JaggedSequence
from exfm.interfaces.sequence_encoder import EncoderInputs, SequenceEncoder
from exfm.testing.behaviour import BehaviourTests
from exfm.testing.execution import ExecutionTests
from exfm.testing.network import MAX_LENGTH
from exfm.testing.side_effects import SideEffectTests


class SequenceEncoderTests(BehaviourTests, ExecutionTests, SideEffectTests):
    """Tests of a sequence encoder; see ``exfm.testing`` for how to use them.

    Attributes:
        sequence: the sequence's name.
        targets: places of the candidate item's tokens among ``tokens``.
    """

    interface: ClassVar[type[Component]] = SequenceEncoder
    sequence: ClassVar[str] = "clicks"
    targets: ClassVar[tuple[int, ...]] = (2,)

    @property
    def sequence_names(self) -> tuple[str, ...]:
        """The sequence it reads."""
        return (self.sequence,)

    def called(self, names: Mapping[str, str]) -> Self:
        """These tests where features and the sequence are called otherwise."""
        other: Any = copy(self)
        other.tokens = tuple(names.get(name, name) for name in self.tokens)
        other.sequence = names.get(self.sequence, self.sequence)
        return other  # type: ignore[no-any-return]

    def inputs(self, max_length: int) -> EncoderInputs:
        """The sequence and the context."""
        return EncoderInputs(self.sequence, self.dim, max_length, self.tokens, self.targets, times=True)

    def inputs_without_times(self) -> EncoderInputs:
        """The same of a stream that does not say when events happened."""
        return EncoderInputs(self.sequence, self.dim, MAX_LENGTH, self.tokens, self.targets)

    def call(self, module: nn.Module, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """The summary tokens (B, K, D)."""
        summary_BKD: Tensor = module(sequences[self.sequence], tokens_BND)
        return summary_BKD

    def output_shape(self, module: SequenceEncoder) -> tuple[int, ...]:
        """(K, D)."""
        return (module.num_tokens, self.dim)

    def test_without_a_candidate_item(self, fields: Mapping[str, Any]) -> None:
        """No token may share a table with the sequence: an encoder does without, or refuses with a ValueError."""
        inputs = EncoderInputs(self.sequence, self.dim, MAX_LENGTH, self.tokens, targets=(), times=True)
        try:
            module = self.make(fields, inputs=inputs)
        except ValueError:
            return
        output = self.run(module, self.examples())
        assert output.isfinite().all(), "the summary is not finite where no token is the candidate item's"
