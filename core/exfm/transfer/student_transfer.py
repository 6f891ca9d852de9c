"""All that transfer adds to a student in training: its strategies, their adapters, and the parameters it takes.

Legend: B examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from exfm.interfaces.distillation_strategy import DistillationStrategy, LabelAdapter, StudentOutput, TeacherOutput
from exfm.interfaces.parallel_model import ParallelModel
from exfm.interfaces.transfer_strategy import TransferStrategy
from exfm.transfer.merge_teachers import merge_teacher_outputs
from exfm.transfer.soft_label_metrics import SoftLabelMetrics
from exfm.transfer.student_parameters import StudentParameters

STRATEGIES = "transfer."
"""State-dict prefix of the strategies' parameters and buffers."""


class StudentTransfer:
    """Computes the terms that a student's strategies add to its loss, and steps their label adapters.

    Args:
        strategies: in the order of the file, placed.
        parameters: what they take.
        parallel_model: averages the gradients of adapters over the processes.

    Attributes:
        modules: the strategies as a module.
        soft_labels: the metrics of the student's soft labels since ``begin``.
    """

    def __init__(
        self, strategies: Sequence[TransferStrategy], parameters: StudentParameters, parallel_model: ParallelModel
    ) -> None:
        self.modules = nn.ModuleList(strategies)
        self.strategies = tuple(strategies)
        self.parameters = parameters
        self._parallel_model = parallel_model
        self._adapters = {
            number: strategy.adapter_optimizer()
            for number, strategy in enumerate(strategies)
            if isinstance(strategy, LabelAdapter)
        }
        self.begin()

    def begin(self) -> None:
        """Starts the metrics of a window."""
        self.soft_labels = SoftLabelMetrics(self.strategies)

    def dense_parameters(self) -> Iterator[nn.Parameter]:
        """Yields the strategies' parameters that the student's optimizer trains."""
        adapted = {id(parameter) for _, optimizer in self.optimizers() for parameter in parameters_of(optimizer)}
        return (parameter for parameter in self.modules.parameters() if id(parameter) not in adapted)

    def optimizers(self) -> Iterator[tuple[int, torch.optim.Optimizer]]:
        """Yields the optimizers of label adapters, each with the number of its strategy."""
        yield from self._adapters.items()

    def losses(
        self,
        output: StudentOutput,
        teachers: Mapping[str, TeacherOutput],
        labels: Mapping[str, Tensor],
        learned: Mapping[str, Tensor],
    ) -> list[Tensor]:
        """Steps the label adapters, and returns the terms of the student's loss.

        Args:
            output: the student's forward pass.
            teachers: output of the same examples, by teacher; a teacher without any is left out.
            labels: (B,) by task.
            learned: those that are learned from by now.
        """
        losses = []
        for number, strategy in enumerate(self.strategies):
            teacher = merge_teacher_outputs(strategy, teachers)
            if teacher is None:
                continue
            adapter = strategy if isinstance(strategy, LabelAdapter) else None
            self.soft_labels.add(number, teacher, labels, None if adapter is None else adapter.adapt(teacher))
            if adapter is not None:
                self._step(self._adapters[number], adapter.adapter_loss(teacher, learned))
            if isinstance(strategy, DistillationStrategy):
                losses.append(strategy.loss(output, teacher, learned))
        return losses

    def _step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._parallel_model.reduce_gradients(parameters_of(optimizer))
        optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Returns the state that the next start needs, beside that of the optimizers."""
        strategies = {f"{STRATEGIES}{key}": value for key, value in self.modules.state_dict().items()}
        return strategies | self.parameters.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what ``state`` returned.

        Raises:
            KeyError, RuntimeError: it is the state of other strategies, or of another version of them.
        """
        strategies = {key.removeprefix(STRATEGIES): value for key, value in state.items() if key.startswith(STRATEGIES)}
        self.modules.load_state_dict(strategies)
        self.parameters.load_state(state)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Lists the parameters that an optimizer steps, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
