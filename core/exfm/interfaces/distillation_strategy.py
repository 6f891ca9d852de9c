"""Declares DistillationStrategy, the kind of transfer that adds a loss.

Legend: B examples, R width of the representation, K width of a state, E width of an embedding, D width of a token.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from exfm.interfaces.transfer_strategy import TransferStrategy


@dataclass(frozen=True)
class StudentOutput:
    """Holds a forward pass of the student: representation (B, R), logits (B,) by task, states (B, K) by entity.

    The logits of a task with an entry in ``StudentSpec.heads`` are the outputs of its head, which that entry explains.
    """

    representation_BR: Tensor
    logits: Mapping[str, Tensor]
    states: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TeacherOutput:
    """Holds a teacher's stored predictions, aligned with the rows of the student's batch.

    Attributes:
        probabilities: (B,) by task; of a label that is not binary its predictions, see ``TaskHead``. Where ``hit`` is
            false the value is meaningless (and finite).
        hit: (B,) bool by task, whether the teacher has supervised the example: it had seen the example, and labels of
            the task before it. A miss is a mask, never a zero.
        embedding: (B, E) float32, the teacher's representation as it is stored; zeros where no task is hit. None where
            the teacher stores none.
        age_s: (B,) float32, how old the teacher was: seconds from its newest example to this one. Where ``hit`` is
            false the value is meaningless (and finite). None unless the strategy's ``reads_age`` is true.
        tokens: (B, D) by feature of the student, its token of the feature as it is before the step, without gradient;
            of the features in the strategy's ``reads_features``.
        weight: (B,) float32, the weight of each example in the mean of a loss; None where each weighs 1.
        sums: the strategy's ``sums`` over the whole batch, of which several processes may each have some rows. Empty
            where nobody has asked for them: the rows are then the whole batch.
    """

    probabilities: Mapping[str, Tensor]
    hit: Mapping[str, Tensor]
    embedding: Tensor | None = None
    age_s: Tensor | None = None
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None
    sums: Mapping[str, Tensor] = field(default_factory=dict)


class DistillationStrategy(TransferStrategy):
    """Adds a term to the student's loss.

    With several teachers, ``teacher`` is their merged output: each example has that of the first teacher with a row. A
    strategy that implements ``LabelAdapter`` corrects the teacher's labels before they are learned.
    """

    _extends_a_kind: ClassVar[bool] = True

    @property
    def decomposes(self) -> bool:
        """Returns whether the next loss is a mean of terms of single examples, and changes buffers by ``sums`` alone.

        Each of several processes then computes the loss of its rows, and the core weighs these losses by the rows, or
        by their weights. A strategy whose loss compares examples with each other, or that keeps statistics otherwise,
        returns False, for all batches or for some, such as the first: every process then gets the whole batch.

        Where a ``LabelAdapter`` decomposes, so does its loss: it is a sum over the tasks of means over their hits.
        """
        return True

    def sums(self, student: StudentOutput, teacher: TeacherOutput) -> Mapping[str, Tensor]:
        """Returns sums over the examples that the next loss needs of the whole batch, by name; by default none.

        ``loss`` finds the sums of the whole batch in ``teacher.sums``. Statistics of the stream that are updated from
        these, and not from the rows, are the same in every process. A name has the same shape in each batch. Called
        without gradient, before ``adapter_loss``; it changes nothing.
        """
        return {}

    @abstractmethod
    def loss(self, student: StudentOutput, teacher: TeacherOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """Returns the mean of the term over the batch, a scalar; an example without teacher output counts 0.

        Where examples have weights, it is their weighted mean, as of ``exfm.layers.batch_mean``.

        Args:
            student: the forward pass that is being trained, with gradients.
            teacher: its stored output of the same examples.
            labels: (B,) by task, of the tasks whose labels have arrived: 0, 1 or as the kind of label says, or NaN for
                an example whose label is not known.
        """


@runtime_checkable
class LabelAdapter(Protocol):
    """Corrects a teacher's labels by fresh labels before they are learned; an optional capability of a strategy.

    For each batch the core scores ``adapt(teacher)`` for the report, steps ``adapter_optimizer`` on ``adapter_loss``,
    and then computes ``loss`` from the teacher's uncorrected output.
    """

    def adapt(self, teacher: TeacherOutput) -> TeacherOutput:
        """Returns the teacher's output with corrected probabilities, without gradient and without changing anything."""
        ...

    def adapter_optimizer(self) -> torch.optim.Optimizer:
        """Builds the optimizer of the adapter's parameters, which the student's optimizer does not train.

        Called once, after the strategy has been moved to its device; its state is saved with the student's.
        """
        ...

    def adapter_loss(self, teacher: TeacherOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """Returns the scalar that ``adapter_optimizer`` minimises; without hits or labels it reaches no parameter.

        Args:
            teacher: its stored output. Examples whose label is not known are no hits.
            labels: (B,) by task, of the tasks whose labels have arrived, without NaN.
        """
        ...
