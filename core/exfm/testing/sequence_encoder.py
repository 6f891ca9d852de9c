"""Tests of the contract of sequence encoders."""

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
from exfm.testing.names import renamed_group
from exfm.testing.network import MAX_LENGTH
from exfm.testing.side_effects import SideEffectTests


class SequenceEncoderTests(BehaviourTests, ExecutionTests, SideEffectTests):
    """Tests of a sequence encoder; see ``exfm.testing`` for how to use them.

    Attributes:
        sequence: the sequence's name.
        targets: indices of the candidate item's tokens in ``tokens``.
    """

    interface: ClassVar[type[Component]] = SequenceEncoder
    sequence: ClassVar[str] = "clicks"
    targets: ClassVar[tuple[int, ...]] = (2,)

    @property
    def sequence_names(self) -> tuple[str, ...]:
        """The sequence that the encoder reads."""
        return (self.sequence,)

    def called(self, names: Mapping[str, str]) -> Self:
        """Returns these tests with other names for features and the sequence."""
        other: Any = copy(self)
        other.tokens = renamed_group(self.tokens, names)
        other.sequence = names.get(self.sequence, self.sequence)
        return other  # type: ignore[no-any-return]

    def inputs(self, max_length: int) -> EncoderInputs:
        """Describes the sequence and the context to the constructor."""
        return EncoderInputs(self.sequence, self.dim, max_length, self.tokens, self.targets, times=True)

    def inputs_without_times(self) -> EncoderInputs:
        """Describes the sequence and the context of a stream without times of events."""
        return EncoderInputs(self.sequence, self.dim, MAX_LENGTH, self.tokens, self.targets)

    def call(self, module: nn.Module, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """Returns the summary tokens (B, K, D)."""
        summary_BKD: Tensor = module(sequences[self.sequence], tokens_BND)
        return summary_BKD

    def output_shape(self, module: SequenceEncoder) -> tuple[int, ...]:
        """Returns (K, D)."""
        return (module.num_tokens, self.dim)

    def test_without_a_candidate_item(self, fields: Mapping[str, Any]) -> None:
        """An encoder works without tokens that share a table with the sequence, or raises a ValueError."""
        inputs = EncoderInputs(self.sequence, self.dim, MAX_LENGTH, self.tokens, targets=(), times=True)
        try:
            module = self.make(fields, inputs=inputs)
        except ValueError:
            return
        output = self.run(module, self.examples())
        assert output.isfinite().all(), "the summary is not finite where no token is the candidate item's"
