"""Shares a batch between the processes that have its rows: sums over it, and the whole batch where a loss needs it.

Each process runs the model on its shard only, and computes the losses of its shard, scaled so that their mean over the
processes is the loss of the batch. They all need some sums over the batch, such as the number of known labels, which
travel together in a single small all-gather. A loss that compares examples with each other needs the whole batch:
every process then computes it.

Legend: n rows of this process, B rows of the whole batch, K columns, R processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exfm.interfaces.distillation_strategy import StudentOutput, TeacherOutput
from exfm.interfaces.process_group import ProcessGroup
from exfm.mappings import take_rows
from exfm.modeling.read_states import ModelOutput


@dataclass(frozen=True)
class BatchSums:
    """Holds sums over the rows of a batch, by name.

    Attributes:
        local: over the n rows of this process.
        whole: over all rows.
        processes: R.
    """

    local: Mapping[str, Tensor]
    whole: Mapping[str, Tensor]
    processes: int

    def share(self, name: str) -> float:
        """Returns the factor of a mean over this process's rows, whose divisor is a sum: 1 on average.

        The mean over the processes of the scaled means is the mean over the batch.
        """
        whole = float(self.whole[name])
        return float(self.local[name]) * self.processes / whole if whole else 0.0


@dataclass(frozen=True)
class BatchGatherer:
    """Sums and all-gathers the rows of a batch.

    Args:
        process_group: the processes.
        counts: number of rows of the batch on each process. A process without rows has computed with a blank example,
            which is cut off.
    """

    process_group: ProcessGroup
    counts: Sequence[int]

    @property
    def processes(self) -> int:
        """Returns R."""
        return self.process_group.world_size

    @property
    def rows(self) -> int:
        """Returns n."""
        return self.counts[self.process_group.rank]

    def cut(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the n rows of some tensors: without the blank example."""
        return take_rows(values, slice(self.rows))

    def cut_output(self, output: ModelOutput) -> ModelOutput:
        """Returns the n rows of an output: without the blank example."""
        if self.processes == 1 or self.rows:
            return output
        embedding_BE, ids_BK = output.embedding_BE, output.ids_BK
        return ModelOutput(
            output.representation_BR[:0],
            self.cut(output.logits),
            self.cut(output.states),
            self.cut(output.layers),
            None if embedding_BE is None else embedding_BE[:0],
            self.cut(output.tokens),
            None if ids_BK is None else ids_BK[:0],
        )

    def add_up(self, sums: Mapping[str, Tensor]) -> BatchSums:
        """Adds up each sum over the processes, which have the same names in the same order."""
        if self.processes == 1 or not sums:
            return BatchSums(sums, sums, self.processes)
        # float64, because a sum may be a count, or of many small numbers.
        flat = torch.cat([values.double().flatten() for values in sums.values()])
        # Gathered and added in the order of the ranks, so that every process has the same bits.
        total = self.process_group.all_gather(flat).sum(dim=0)
        pieces = torch.split(total, [values.numel() for values in sums.values()])
        whole: dict[str, Tensor] = {}
        for (name, values), piece in zip(sums.items(), pieces, strict=True):
            whole[name] = piece.view_as(values).to(values.dtype)
        return BatchSums(sums, whole, self.processes)

    def output(self, output: StudentOutput) -> StudentOutput:
        """All-gathers the output of B examples; gradients flow to the rows of this process."""
        columns = [output.representation_BR, *map(_as_columns, output.logits.values()), *output.states.values()]
        representation_BR, *others = self._all_gather(columns)
        # Taken in the order in which they were sent.
        gathered = iter(others)
        logits = {task: _as_before(next(gathered), logit) for task, logit in output.logits.items()}
        return StudentOutput(representation_BR, logits, {entity: next(gathered) for entity in output.states})

    def labels(self, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All-gathers the labels, or weights, of B examples, by task."""
        if not labels:
            return {}
        columns = self._all_gather([label.unsqueeze(1) for label in labels.values()])
        return {task: column.squeeze(1) for task, column in zip(labels, columns, strict=True)}

    def teacher(self, output: TeacherOutput) -> TeacherOutput:
        """All-gathers the teacher output of B examples."""
        tasks = list(output.probabilities)
        columns = [_as_columns(output.probabilities[task]) for task in tasks]
        # Masks travel as floats, because columns of an all-gather have the same dtype.
        columns += [output.hit[task].float().unsqueeze(1) for task in tasks]
        optional = [output.age_s, output.weight, output.embedding]
        columns += [_as_columns(values) for values in optional if values is not None]
        columns += output.tokens.values()
        gathered = iter(self._all_gather(columns))
        probabilities = {task: _as_before(next(gathered), output.probabilities[task]) for task in tasks}
        hit = {task: next(gathered).squeeze(1) > 0 for task in tasks}
        age_s, weight, embedding = (
            None if values is None else _as_before(next(gathered), values) for values in optional
        )
        tokens = {feature: next(gathered) for feature in output.tokens}
        return replace(
            output, probabilities=probabilities, hit=hit, age_s=age_s, weight=weight, embedding=embedding, tokens=tokens
        )

    def _all_gather(self, columns: Sequence[Tensor]) -> Sequence[Tensor]:
        """All-gathers columns (n, K) of every process, (B, K)."""
        return self.process_group.all_gather_columns(columns, self.counts)


def _as_columns(values: Tensor) -> Tensor:
    """Returns values (n,) as a column (n, 1); columns (n, K) stay."""
    return values.unsqueeze(1) if values.dim() == 1 else values


def _as_before(column: Tensor, values: Tensor) -> Tensor:
    """Returns a gathered column (B, 1) in the form of the values that were sent, (B,) or (B, K)."""
    return column.squeeze(1) if values.dim() == 1 else column
