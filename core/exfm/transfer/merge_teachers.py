"""Merges the outputs of a strategy's teachers under the student's task names.

Legend: B examples, E width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from exfm.interfaces.distillation_strategy import TeacherOutput
from exfm.interfaces.transfer_strategy import TransferStrategy


def merge_teacher_outputs(strategy: TransferStrategy, outputs: Mapping[str, TeacherOutput]) -> TeacherOutput | None:
    """Selects for each example the output of the strategy's first teacher that has a row; None without teachers.

    Args:
        strategy: the strategy, with its teachers in order.
        outputs: output by teacher; a teacher without output is left out.
    """
    present = [outputs[name] for name in strategy.config.teachers if name in outputs]
    teaching = [output for output in present if any(task in output.hit for task in strategy.teacher_tasks.values())]
    if not teaching:
        return None
    merged = teaching[0]
    for output in teaching[1:]:
        merged = _fill(merged, output)
    names = {task: name for task, name in strategy.teacher_tasks.items() if name in merged.hit}
    return replace(
        merged,
        probabilities={task: merged.probabilities[name] for task, name in names.items()},
        hit={task: merged.hit[name] for task, name in names.items()},
        age_s=merged.age_s if strategy.reads_age else None,
    )


def _fill(first: TeacherOutput, second: TeacherOutput) -> TeacherOutput:
    """Takes the rows of ``first``, and those of ``second`` where ``first`` has no row."""
    probabilities, hit = dict(second.probabilities), dict(second.hit)
    for task, hit_B in first.hit.items():
        if task in hit:
            soft = first.probabilities[task]
            hit_rows = hit_B if soft.dim() == 1 else hit_B.unsqueeze(1)  # (B, C) of a multiclass label
            probabilities[task] = torch.where(hit_rows, soft, probabilities[task])
            hit[task] = hit_B | hit[task]
        else:
            probabilities[task], hit[task] = first.probabilities[task], hit_B
    has_row_B = torch.stack(list(first.hit.values())).any(dim=0)
    embedding_BE, age_B = first.embedding, first.age_s
    if embedding_BE is not None and second.embedding is not None:
        embedding_BE = torch.where(has_row_B.unsqueeze(1), embedding_BE, second.embedding)
    if age_B is not None and second.age_s is not None:
        age_B = torch.where(has_row_B, age_B, second.age_s)
    return TeacherOutput(probabilities, hit, embedding_BE, age_B)
