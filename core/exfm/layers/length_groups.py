"""Groups examples of similar length, which are then computed together with little padding."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

# Lengths of up to this many events share a group: a kernel call for fewer costs as much.
_SHORT = 8


def group_sizes(lengths_S: Tensor, growth: float) -> list[int]:
    """Divides examples, which come longest first, into groups of similar length, and returns the groups' sizes.

    Args:
        lengths_S: events of each example, in descending order, at least 1.
        growth: upper bound, in each group, of the longest length divided by the shortest.
    """
    level_S = (lengths_S.clamp(min=_SHORT).double().log() / log(growth)).floor()
    # Levels descend as lengths do, so each level is a run; copying the sizes to the CPU synchronises a GPU once.
    _, sizes = torch.unique_consecutive(level_S, return_counts=True)
    groups: list[int] = sizes.tolist()
    return groups
