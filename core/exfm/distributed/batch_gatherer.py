"""A batch's rows of all processes: every process computes the loss of the whole batch, as one process alone would.

So a transfer strategy sees whole batches whatever the plan, its running statistics are the same everywhere, and a batch
of which a process has few rows, or none, counts as it should. What goes upstream of the loss, through the model, each
process computes for its own rows only.

Legend: n own rows, B rows of the whole batch, K columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from exfm.interfaces.distillation_strategy import TeacherOutput
from exfm.interfaces.process_group import ProcessGroup
from exfm.modeling.read_states import ModelOutput


@dataclass(frozen=True)
class BatchGatherer:
    """Puts one batch together.

    Args:
        process_group: the processes.
        counts: how many of its rows each has. A process without any has computed with a blank example in their place.
    """

    process_group: ProcessGroup
    counts: Sequence[int]

    @property
    def own(self) -> int:
        """n."""
        return self.counts[self.process_group.rank]

    def output(self, output: ModelOutput, representation: bool) -> ModelOutput:
        """The forward pass of B examples, with gradients to the own ones.

        Args:
            representation: whether the representation is used; without, it comes back empty.
        """
        if self.process_group.world_size == 1:
            return output
        width = output.representation_BR.shape[1] if representation else 0
        columns = [output.representation_BR[:, :width], *(logit.unsqueeze(1) for logit in output.logits.values())]
        columns += [*output.states.values(), *output.layers.values(), *output.tokens.values()]
        representation_BR, *rest = self._columns(columns)
        whole = iter(rest)
        logits = {task: next(whole).squeeze(1) for task in output.logits}
        states = {entity: next(whole) for entity in output.states}
        layers = {layer: next(whole) for layer in output.layers}
        tokens = {entity: next(whole) for entity in output.tokens}
        ids_BK = output.ids_BK
        if ids_BK is not None:
            ids_BK = self.process_group.all_gather_rows(ids_BK[: self.own], self.counts)
        return ModelOutput(representation_BR, logits, states, layers, None, tokens, ids_BK)

    def labels(self, labels: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Labels of B examples, by task."""
        if self.process_group.world_size == 1 or not labels:
            return labels
        columns = self._columns([label.unsqueeze(1) for label in labels.values()])
        return dict(zip(labels, (column.squeeze(1) for column in columns), strict=True))

    def supervision(self, supervision: Mapping[str, TeacherOutput]) -> Mapping[str, TeacherOutput]:
        """Supervision of B examples, by teacher."""
        if self.process_group.world_size == 1:
            return supervision
        return {name: self._of_one(one) for name, one in supervision.items()}

    def _of_one(self, one: TeacherOutput) -> TeacherOutput:
        tasks = list(one.probabilities)
        columns = [*(one.probabilities[task] for task in tasks), *(one.hit[task].float() for task in tasks)]
        columns = [column.unsqueeze(1) for column in columns]
        whole = self._columns(columns if one.embedding is None else [*columns, one.embedding])
        known = [column.squeeze(1) for column in whole[: 2 * len(tasks)]]
        hit = [column > 0 for column in known[len(tasks) :]]
        return TeacherOutput(
            dict(zip(tasks, known, strict=False)),
            dict(zip(tasks, hit, strict=True)),
            None if one.embedding is None else whole[-1],
        )

    def _columns(self, columns: Sequence[Tensor]) -> Sequence[Tensor]:
        """Columns (n or more, K) of all processes, (B, K)."""
        return self.process_group.all_gather_columns([column[: self.own] for column in columns], self.counts)
