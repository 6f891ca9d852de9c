"""Holds everything that transfer adds to a student in training: strategies, label adapters, taken parameters.

Legend: B examples, D width of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from exfm.data.batch import Batch
from exfm.distributed.batch_gatherer import BatchGatherer, BatchSums
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
from exfm.transfer.taught_batch import ROWS, TaughtBatch, labelled, shard_adapter_loss, sums_prefix

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
        self.parameters = parameters
        self._parallel_model, self._sampling = parallel_model, sampling
        self._adapters: dict[int, torch.optim.Optimizer] = {}
        # Asked once, because asking a protocol takes as long as several operations of a small batch.
        self._adapting: dict[int, LabelAdapter] = {}
        self._losses: set[int] = set()
        for number, strategy in enumerate(strategies):
            if isinstance(strategy, LabelAdapter):
                self._adapting[number] = strategy
                self._adapters[number] = strategy.adapter_optimizer()
            if isinstance(strategy, DistillationStrategy):
                self._losses.add(number)
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

    def join(self, outputs: Mapping[str, TeacherOutput]) -> list[TaughtBatch]:
        """Merges the output of each strategy's teachers for a chunk, or a batch; leaves out strategies without any.

        Args:
            outputs: output of the examples, by teacher; a teacher without output is left out.
        """
        taught: list[TaughtBatch] = []
        for number, strategy in enumerate(self.strategies):
            teacher = merge_teacher_outputs(strategy, outputs)
            if teacher is not None:
                taught.append(TaughtBatch(number, strategy, teacher))
        return taught

    def score(self, taught: Sequence[TaughtBatch], seen: Batch, sizes: Sequence[int]) -> None:
        """Counts the teachers' labels of a chunk's rows of this process.

        Args:
            taught: of ``join``.
            seen: labels and weights of the rows.
            sizes: the number of rows in each batch of the chunk.
        """
        for chunk in taught:
            self.soft_labels.add_teacher(chunk.number, chunk.teacher, seen.labels, seen.weights, sizes)

    def slice(self, taught: Sequence[TaughtBatch], rows: slice) -> list[TaughtBatch]:
        """Slices the rows of a batch from a chunk, of the strategies that compute something in each batch."""
        computing = self._adapting.keys() | self._losses
        return [chunk.slice(rows) for chunk in taught if chunk.number in computing]

    def prepare(
        self, taught: Sequence[TaughtBatch], tokens: Mapping[str, Tensor], row_weight: Tensor | None
    ) -> list[TaughtBatch]:
        """Adds to teachers' output what strategies read of the student's batch, and converts it to the student's log.

        Args:
            taught: of ``slice``, or of ``join`` for a batch.
            tokens: the student's tokens (B, D) of ``features``, by feature, without gradient.
            row_weight: (B,) the weight of each example; None where each weighs 1.
        """
        batches: list[TaughtBatch] = []
        for batch in taught:
            batch = batch.with_inputs(tokens, row_weight)
            batches.append(replace(batch, teacher=self._sampling.teacher_in_log(batch.teacher)))
        return batches

    @torch.no_grad()
    def sums(self, output: StudentOutput, batches: Sequence[TaughtBatch]) -> dict[str, Tensor]:
        """Returns the sums over the examples that the strategies' losses need of the whole batch, by name."""
        sums: dict[str, Tensor] = {}
        for batch in batches:
            if isinstance(batch.strategy, DistillationStrategy):
                sums |= add_prefix(sums_prefix(batch.number), batch.strategy.sums(output, batch.teacher))
        return sums

    def losses(
        self,
        output: StudentOutput,
        batches: Sequence[TaughtBatch],
        labels: Mapping[str, Tensor],
        learned: Labels,
        sums: BatchSums,
        gatherer: BatchGatherer,
    ) -> list[Tensor]:
        """Steps the label adapters, and returns the terms of the loss of the batch, which is their mean over processes.

        Args:
            output: the student's forward pass of this process's rows, with the logits of its log.
            batches: of ``prepare``, of the same rows.
            labels: (B,) by task, NaN where a label is not known.
            learned: the labels that have arrived and are learned from.
            sums: of ``sums``; of several processes of ``shard_sums`` too.
            gatherer: gathers the batch for strategies that need all of it.
        """
        losses: list[Tensor] = []
        whole = _WholeBatch(output, learned, gatherer)
        is_shard = gatherer.processes > 1
        for batch in batches:
            strategy, teacher = batch.strategy, batch.teacher
            if sums.whole:
                teacher = replace(teacher, sums=strip_prefix(sums_prefix(batch.number), sums.whole))
            seen, seen_labels = output, learned
            needs_whole = is_shard and isinstance(strategy, DistillationStrategy) and not strategy.decomposes
            if needs_whole:
                seen, teacher, seen_labels = whole.output, gatherer.teacher(teacher), whole.labels
            adapter = self._adapting.get(batch.number)
            if adapter is not None:
                # Scored before the adapter steps on the same labels: it would seem better than it is.
                adapted = self._sampling.of_all_traffic(adapter.adapt(batch.teacher))
                self.soft_labels.add_corrected(batch.number, adapted, labels, learned.all_weights)
                supervised = labelled(teacher, seen_labels)
                if is_shard and not needs_whole:
                    loss = shard_adapter_loss(adapter, batch.number, *supervised, sums)
                else:
                    loss = adapter.adapter_loss(*supervised)
                self._step(self._adapters[batch.number], loss)
            if isinstance(strategy, DistillationStrategy):
                loss = strategy.loss(seen, teacher, seen_labels.values)
                losses.append(loss * sums.share(ROWS) if is_shard and not needs_whole else loss)
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


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Lists the parameters that an optimizer steps, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class _WholeBatch:
    """Gathers the student's output and the labels of a whole batch when a strategy first needs them."""

    def __init__(self, output: StudentOutput, learned: Labels, gatherer: BatchGatherer) -> None:
        self._output, self._learned, self._gatherer = output, learned, gatherer

    @cached_property
    def output(self) -> StudentOutput:
        """Returns the output of all rows, with gradients to this process's."""
        return self._gatherer.output(self._output)

    @cached_property
    def labels(self) -> Labels:
        """Returns the labels of all rows that are learned."""
        learned = self._learned
        values, weights = self._gatherer.labels(learned.values), self._gatherer.labels(learned.weights)
        return Labels(values, weights, heads=learned.heads)
