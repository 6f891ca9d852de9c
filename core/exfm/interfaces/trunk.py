"""Trunk: the encoders and the backbone of a model, and the runner of a parallel plan that calls them in training.

Legend: B examples, N tokens, D width, R width of the representation, which has a dimension of T tasks too, (B, T, R),
where the backbone gives each task a representation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from torch import Tensor, nn

from exfm.interfaces.backbone import Backbone
from exfm.interfaces.jagged import JaggedSequence

Sequences = Mapping[str, JaggedSequence]

RunBackbone = Callable[[Backbone, Tensor, Sequences], Tensor]
"""Maps a backbone, its tokens (B, N, D) and its sequences to the representation (B, R)."""


def run_backbone(backbone: Backbone, tokens_BND: Tensor, sequences: Sequences) -> Tensor:
    """Calls a backbone with the whole batch."""
    representation_BR: Tensor = backbone(tokens_BND, sequences)
    return representation_BR


RunEncoder = Callable[[nn.Module, JaggedSequence, Tensor], Tensor]
"""Maps an encoder, its sequence and context tokens (B, N, D) to summary tokens (B, K, D)."""


def run_encoder(encoder: nn.Module, sequence: JaggedSequence, context_BND: Tensor) -> Tensor:
    """Calls an encoder with the history of each example."""
    tokens_BKD: Tensor = encoder(sequence, context_BND)
    return tokens_BKD


class Trunk(Protocol):
    """The layers of a model between its tables and its heads. Its forward pass is re-entrant.

    Attributes:
        low_precision: whether ``represent`` enters bfloat16 autocast.
    """

    low_precision: bool

    def represent(
        self, inputs: Sequence[Tensor], sequences: Sequences, run_backbone: RunBackbone = run_backbone
    ) -> Tensor:
        """Maps looked-up tokens, each of ``inputs`` (B, ..., D), and sequences by name to the representation (B, R)."""

    def trunk_parameters(self) -> Iterator[nn.Parameter]:
        """Yields every parameter that ``represent`` uses."""

    def multiplications(self, examples: int, sequences: Sequences) -> int:
        """Estimates the multiplications of ``represent`` for so many examples and their sequences."""


RunTrunk = Callable[[Trunk, Sequence[Tensor], Sequences], Tensor]
"""Maps a trunk, its inputs and its sequences to the representation (B, R)."""


def run_trunk(trunk: Trunk, inputs: Sequence[Tensor], sequences: Sequences) -> Tensor:
    """Calls a trunk with the whole batch."""
    return trunk.represent(inputs, sequences)


class TrunkRunner:
    """Runs the trunk on the whole batch. A subclass may divide the batch where that is faster on a device.

    Only training steps use it: predictions and captured graphs call the model alone.
    """

    @contextmanager
    def training_step(self, examples: int) -> Iterator[RunTrunk]:
        """Enters a training step, from its forward pass to the steps of the optimizers.

        Args:
            examples: B, of this process.
        """
        yield run_trunk
