"""All-gathers a batch over all processes, so that each computes the loss of the whole batch.

A transfer strategy therefore sees whole batches under any plan. Its running statistics are the same on every process,
and a batch counts alike however its rows are spread. Each process runs the model, upstream of the loss, on its shard
only.

Legend: n rows of this process, B rows of the whole batch, K columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from exfm.interfaces.distillation_strategy import TeacherOutput
from exfm.interfaces.process_group import ProcessGroup
from exfm.mappings import map_values
from exfm.modeling.read_states import ModelOutput


@dataclass(frozen=True)
class BatchGatherer:
    """All-gathers the tensors of a batch.

    Args:
        process_group: the processes.
        counts: number of rows of the batch on each process. A process without rows has computed with a blank example,
            which is cut off before the all-gather.
    """

    process_group: ProcessGroup
    counts: Sequence[int]

    @property
    def rows(self) -> int:
        """Returns n."""
        return self.counts[self.process_group.rank]

    def output(self, output: ModelOutput, representation: bool) -> ModelOutput:
        """All-gathers the output of B examples; gradients flow to the rows of this process.

        Args:
            representation: whether the loss reads the representation; it comes back with no columns otherwise, because
                it is the widest tensor to send.
        """
        if self.process_group.world_size == 1:
            return output
        width = 0
        if representation:
            width = output.representation_BR.shape[1]
        columns = [output.representation_BR[:, :width], *map(_as_columns, output.logits.values())]
        columns += [*output.states.values(), *output.layers.values(), *output.tokens.values()]
        representation_BR, *others = self._all_gather(columns)
        # Taken in the order in which they were sent.
        gathered = iter(others)
        logits = {task: _as_before(next(gathered), logit) for task, logit in output.logits.items()}
        states = {entity: next(gathered) for entity in output.states}
        layers = {layer: next(gathered) for layer in output.layers}
        tokens = {entity: next(gathered) for entity in output.tokens}
        ids_BK = output.ids_BK
        if ids_BK is not None:
            # Apart from the columns, because ids are int64 and columns are floats.
            ids_BK = self.process_group.all_gather_rows(ids_BK[: self.rows], self.counts)
        return ModelOutput(representation_BR, logits, states, layers, None, tokens, ids_BK)

    def labels(self, labels: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """All-gathers the labels of B examples, by task."""
        if self.process_group.world_size == 1 or not labels:
            return labels
        columns = self._all_gather([label.unsqueeze(1) for label in labels.values()])
        return {task: column.squeeze(1) for task, column in zip(labels, columns, strict=True)}

    def tokens(self, tokens: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """All-gathers the tokens (B, D) of features, by feature."""
        if self.process_group.world_size == 1 or not tokens:
            return tokens
        # In the order of names, because every process must send in the same order.
        names = sorted(tokens)
        return dict(zip(names, self._all_gather([tokens[name] for name in names]), strict=True))

    def supervision(self, supervision: Mapping[str, TeacherOutput]) -> Mapping[str, TeacherOutput]:
        """All-gathers the teacher output of B examples, by teacher."""
        if self.process_group.world_size == 1:
            return supervision
        return map_values(self._teacher_output, supervision)

    def _teacher_output(self, output: TeacherOutput) -> TeacherOutput:
        tasks = list(output.probabilities)
        columns = [_as_columns(output.probabilities[task]) for task in tasks]
        # Masks travel as floats, because columns of an all-gather have the same dtype.
        columns += [output.hit[task].float().unsqueeze(1) for task in tasks]
        if output.age_s is not None:
            columns.append(output.age_s.unsqueeze(1))
        if output.embedding is not None:
            columns.append(output.embedding)
        gathered = self._all_gather(columns)
        probabilities: dict[str, Tensor] = {}
        hit: dict[str, Tensor] = {}
        for number, task in enumerate(tasks):
            probabilities[task] = _as_before(gathered[number], output.probabilities[task])
            hit[task] = gathered[len(tasks) + number].squeeze(1) > 0
        age_s = gathered[2 * len(tasks)].squeeze(1) if output.age_s is not None else None
        embedding = gathered[-1] if output.embedding is not None else None
        return TeacherOutput(probabilities, hit, embedding, age_s)

    def _all_gather(self, columns: Sequence[Tensor]) -> Sequence[Tensor]:
        """All-gathers columns (n or more, K) of every process, (B, K)."""
        return self.process_group.all_gather_columns([column[: self.rows] for column in columns], self.counts)


def _as_columns(values: Tensor) -> Tensor:
    """Returns values (n,) as a column (n, 1); columns (n, K) stay."""
    return values.unsqueeze(1) if values.dim() == 1 else values


def _as_before(column: Tensor, values: Tensor) -> Tensor:
    """Returns a gathered column (B, 1) in the form of the values that were sent, (B,) or (B, K)."""
    return column.squeeze(1) if values.dim() == 1 else column
