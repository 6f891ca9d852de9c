"""Backbone: maps the tokens of features to a representation of each example."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor, nn

from exfm.interfaces.blocks import listed_blocks
from exfm.interfaces.component import ComponentConfig
from exfm.interfaces.jagged import JaggedSequence
from exfm.interfaces.network import Network


@dataclass(frozen=True)
class SequenceShape:
    """Describes a sequence to the constructor of a module that reads it.

    Attributes:
        name: the sequence's name.
        max_length: the longest history, in events.
        targets: indices of the tokens that share an embedding table with the sequence: the candidate item the history
            is compared with. May be empty.
        times: whether the stream has the times of the events.
    """

    name: str
    max_length: int
    targets: tuple[int, ...] = ()
    times: bool = False


@dataclass(frozen=True)
class BackboneInputs:
    """Describes the inputs of a backbone to its constructor.

    Attributes:
        tokens: name of each of the N tokens, in order: a feature's name, ``dense`` for the token of all dense features
            together, ``SEQUENCE:k`` for the k-th summary of a sequence.
        dim: width D of every token and event.
        sequences: the raw sequences that ``forward`` takes; empty unless the class sets ``consumes_sequences``.
        tasks: names of the model's T tasks; empty for a backbone inside another component, which has no tasks.
    """

    tokens: tuple[str, ...]
    dim: int
    sequences: tuple[SequenceShape, ...] = ()
    tasks: tuple[str, ...] = ()


class Backbone(Network):
    """Base of interaction architectures of a ranking model.

    A subclass sets ``name``, usually a ``Config``, and ``output_dim`` in its constructor. Its output for an example
    depends on that example alone. The output is the same in training and evaluation mode, because on a stream that is
    seen once the forward pass that trains is also the prediction that is scored. ``forward`` is re-entrant: it writes
    nothing to the module.

    A backbone may give each task a representation: it sets ``per_task``, refuses with a ValueError inputs that name no
    tasks, and ``forward`` returns (B, T, R). A task's head reads the task's representation. Transfer strategies and
    stored embeddings read the mean over the tasks.

    Attributes:
        consumes_sequences: whether ``forward`` reads the raw sequences; otherwise it gets an empty mapping.
        per_task: whether ``forward`` returns a representation per task.
        output_dim: width R of a representation.
        reads_times: whether ``forward`` reads the events' ages; sequences have none otherwise.
        layer_dims: width of each layer that a teacher's states may be read from, by the name of the submodule; none by
            default. The submodule is called once in a forward pass, and its output, the first where it has several, is
            (B, ...) with so many numbers per example.
    """

    kind: ClassVar[str] = "backbone"
    consumes_sequences: ClassVar[bool] = False
    per_task: ClassVar[bool] = False
    config: ComponentConfig
    inputs: BackboneInputs
    output_dim: int
    layer_dims: Mapping[str, int] = MappingProxyType({})

    def __init__(self, config: ComponentConfig, inputs: BackboneInputs) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.inputs = inputs

    def blocks(self) -> list[nn.Module]:
        """Lists the modules that are recomputed in backward, sharded and compiled separately.

        By default these are the elements of every ``nn.ModuleList`` that is a direct child.
        """
        return listed_blocks(self)

    @abstractmethod
    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """Maps tokens (B, N, D) and raw sequences by name to the representation, (B, R) or per task (B, T, R)."""
