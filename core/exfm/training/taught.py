"""What a strategy is taught about a batch: its teachers' supervision as one, under the student's names.

Legend: B examples, E width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from exfm.interfaces.transfer_strategy import Supervision, TransferStrategy


def taught(strategy: TransferStrategy, supervision: Mapping[str, Supervision]) -> Supervision | None:
    """The supervision of the first teacher that has a row of an example, for each example; None without teachers.

    Args:
        supervision: by teacher; a teacher without any is left out.
    """
    parts = [supervision[name] for name in strategy.config.teachers if name in supervision]
    known = [part for part in parts if any(task in part.hit for task in strategy.teacher_tasks.values())]
    if not known:
        return None
    together = known[0]
    for part in known[1:]:
        together = _fill(together, part)
    names = {task: name for task, name in strategy.teacher_tasks.items() if name in together.hit}
    return replace(
        together,
        probabilities={task: together.probabilities[name] for task, name in names.items()},
        hit={task: together.hit[name] for task, name in names.items()},
    )


def _fill(first: Supervision, second: Supervision) -> Supervision:
    """The first's rows, and the second's where the first has none."""
    probabilities, hit = dict(second.probabilities), dict(second.hit)
    for task, own in first.hit.items():
        if task in hit:
            probabilities[task] = torch.where(own, first.probabilities[task], probabilities[task])
            hit[task] = own | hit[task]
        else:
            probabilities[task], hit[task] = first.probabilities[task], own
    embedding_BE = first.embedding
    if first.embedding is not None and second.embedding is not None:
        seen_B = _any(list(first.hit.values()))
        embedding_BE = torch.where(seen_B.unsqueeze(1), first.embedding, second.embedding)
    return Supervision(probabilities, hit, embedding_BE)


def _any(masks: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(masks)).any(dim=0)
