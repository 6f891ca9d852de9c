"""Holds everything that transfer adds to a student in training: strategies, label adapters, taken parameters.

Legend: B examples, D width of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from exfm.interfaces.distillation_strategy import DistillationStrategy, LabelAdapter, StudentOutput, TeacherOutput
from exfm.interfaces.parallel_model import ParallelModel
from exfm.interfaces.schema import LabelKind
from exfm.interfaces.transfer_strategy import TransferStrategy
from exfm.mappings import add_prefix, strip_prefix
from exfm.modeling.labels import Labels
from exfm.modeling.sampling import LogSampling
from exfm.transfer.merge_teachers import merge_teacher_outputs
from exfm.transfer.soft_label_metrics import SoftLabelMetrics
from exfm.transfer.student_parameters import StudentParameters

STRATEGIES = "transfer."
"""Prefixes the strategies' parameters and buffers in the state dict."""


class StudentTransfer:
    """Computes the terms that a student's strategies add to its loss, and steps their label adapters.

    Args:
        strategies: the strategies on their devices, in the order of the file.
        parameters: the parameters that the student takes from its teachers.
        parallel_model: averages the gradients of adapters over the processes.
        sampling: converts teachers' probabilities to those of the student's log.
        kinds: the kind of each task's label; a task without an entry is binary.

    Attributes:
        modules: the strategies as a module.
        teachers: names of the teachers that the strategies learn from.
        features: the student's features whose tokens the strategies read.
        soft_labels: the metrics of the student's soft labels since ``begin``.
    """

    def __init__(
        self,
        strategies: Sequence[TransferStrategy],
        parameters: StudentParameters,
        parallel_model: ParallelModel,
        sampling: LogSampling,
        kinds: Mapping[str, LabelKind] | None = None,
    ) -> None:
        self._kinds = kinds or {}
        self.modules = nn.ModuleList(strategies)
        self.strategies = tuple(strategies)
        self.teachers = frozenset(name for strategy in strategies for name in strategy.config.teachers)
        self.features = frozenset(feature for strategy in strategies for feature in strategy.reads_features)
        self._reads_age = any(strategy.reads_age for strategy in strategies)
        self.parameters = parameters
        self._parallel_model, self._sampling = parallel_model, sampling
        self._adapters: dict[int, torch.optim.Optimizer] = {}
        for number, strategy in enumerate(strategies):
            if isinstance(strategy, LabelAdapter):
                self._adapters[number] = strategy.adapter_optimizer()
        self.begin()

    def begin(self) -> None:
        """Starts the metrics of a window."""
        self.soft_labels = SoftLabelMetrics(self.strategies, self._kinds)

    def dense_parameters(self) -> Iterator[nn.Parameter]:
        """Yields the strategies' parameters that the student's optimizer trains."""
        # By identity, because == of two tensors compares their elements.
        adapted = {id(parameter) for _, optimizer in self.optimizers() for parameter in parameters_of(optimizer)}
        return (parameter for parameter in self.modules.parameters() if id(parameter) not in adapted)

    def optimizers(self) -> Iterator[tuple[int, torch.optim.Optimizer]]:
        """Yields the optimizers of label adapters, each with the number of its strategy."""
        yield from self._adapters.items()

    def read_by_losses(self, outputs: Mapping[str, TeacherOutput]) -> dict[str, TeacherOutput]:
        """Selects what the losses read of the teachers' output, because all of it is gathered from the processes.

        Teachers whose embedding is an input alone are left out, and ages that no strategy reads.
        """
        read: dict[str, TeacherOutput] = {}
        for name, output in outputs.items():
            if name in self.teachers:
                read[name] = output if self._reads_age else replace(output, age_s=None)
        return read

    def losses(
        self,
        output: StudentOutput,
        teachers: Mapping[str, TeacherOutput],
        labels: Mapping[str, Tensor],
        learned: Labels,
        tokens: Mapping[str, Tensor],
    ) -> list[Tensor]:
        """Steps the label adapters, and returns the terms of the student's loss.

        Args:
            output: the student's forward pass, with the logits of its log.
            teachers: output of the same examples, by teacher; a teacher without output is left out.
            labels: (B,) by task, NaN where a label is not known.
            learned: the labels that have arrived and are learned from.
            tokens: the student's tokens (B, D) of ``features``, by feature, without gradient.
        """
        losses = []
        for number, strategy in enumerate(self.strategies):
            teacher = merge_teacher_outputs(strategy, teachers, tokens)
            if teacher is None:
                continue
            predicted = replace(teacher, weight=learned.row_weight)
            teacher = self._sampling.teacher_in_log(predicted)
            # Scored before the adapter steps on the same labels: it would seem better than it is.
            if isinstance(strategy, LabelAdapter):
                adapted = self._sampling.of_all_traffic(strategy.adapt(teacher))
                self.soft_labels.add(number, predicted, labels, adapted, learned.all_weights)
                labelled, values = _labelled(teacher, learned)
                self._step(self._adapters[number], strategy.adapter_loss(labelled, values))
            else:
                self.soft_labels.add(number, predicted, labels, None, learned.all_weights)
            if isinstance(strategy, DistillationStrategy):
                losses.append(strategy.loss(output, teacher, learned.values))
        return losses

    def _step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """Steps an adapter on all processes' gradients."""
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._parallel_model.reduce_gradients(parameters_of(optimizer))
        optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Returns the state that the next start needs, without the optimizers' state."""
        strategies = add_prefix(STRATEGIES, self.modules.state_dict())
        return strategies | self.parameters.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores the result of ``state``.

        Raises:
            KeyError, RuntimeError: it is the state of other strategies, or of another version of them.
        """
        strategies = strip_prefix(STRATEGIES, state)
        self.modules.load_state_dict(strategies)
        self.parameters.load_state(state)


def _labelled(teacher: TeacherOutput, labels: Labels) -> tuple[TeacherOutput, dict[str, Tensor]]:
    """Returns the teacher's output, without hits where a label is not known, and labels without NaN."""
    hit = dict(teacher.hit)
    for task in labels.weights.keys() & hit.keys():
        hit[task] = hit[task] & (labels.weights[task] > 0)
    return replace(teacher, hit=hit), {task: labels.filled(task) for task in labels.values}


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Lists the parameters that an optimizer steps, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
