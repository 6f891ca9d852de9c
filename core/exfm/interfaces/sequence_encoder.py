"""SequenceEncoder: maps an activity history to a few summary tokens."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from exfm.interfaces.blocks import listed_blocks
from exfm.interfaces.component import ComponentConfig
from exfm.interfaces.jagged import JaggedSequence
from exfm.interfaces.network import Network


@dataclass(frozen=True)
class EncoderInputs:
    """Describes the inputs of an encoder to its constructor.

    Attributes:
        sequence: the sequence's name.
        dim: width D of events, context tokens and summary tokens.
        max_length: the longest history, in events.
        context: names of the N context tokens, the example's other features.
        targets: indices of the context tokens that share an embedding table with the sequence: the candidate item
            the history is compared with. May be empty.
        times: whether the stream has the times of the events.
    """

    sequence: str
    dim: int
    max_length: int
    context: tuple[str, ...]
    targets: tuple[int, ...]
    times: bool = False


class SequenceEncoder(Network):
    """Base of encoders that summarise a jagged sequence in K tokens.

    A subclass sets ``name``, usually a ``Config``, and ``num_tokens`` in its constructor where K is not 1. The tokens
    of an example without history are finite, and the tokens of an example depend on that example alone. ``forward``
    is re-entrant: it writes nothing to the module.

    Attributes:
        num_tokens: K.
        reads_times: whether ``forward`` reads the events' ages; a sequence has none otherwise.
    """

    kind: ClassVar[str] = "sequence_encoder"
    config: ComponentConfig
    inputs: EncoderInputs
    num_tokens: int = 1

    def __init__(self, config: ComponentConfig, inputs: EncoderInputs) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.inputs = inputs

    def blocks(self) -> list[nn.Module]:
        """Lists the modules that are recomputed in backward, sharded and compiled separately.

        By default these are the elements of every ``nn.ModuleList`` that is a direct child.
        """
        return listed_blocks(self)

    @abstractmethod
    def forward(self, sequence: JaggedSequence, context_BND: Tensor) -> Tensor:
        """Maps events (E, D) with offsets, and context tokens (B, N, D), to summary tokens (B, K, D)."""
