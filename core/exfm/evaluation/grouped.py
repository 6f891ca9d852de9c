"""Computes GAUC: AUC inside each group (as a rule a user), averaged with the groups' examples as weights.

Figures of groups are exact at constant memory. The groups are hashed into shares whose rows fit in memory, and the
predictions are read once per share. No group is ever split, so that the sums of the shares add up to the sums over all
groups.

Legend: E rows, R runs of equal scores inside a group, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from exfm.evaluation.metrics import Bools, Floats, Ints
from exfm.splitmix import splitmix64

# A row takes 13 bytes here and some 60 while it is sorted: about 40 MB per task.
_ROWS_PER_PASS = 500_000


class GroupedRows(NamedTuple):
    """Holds rows of a task: the group (E,) int64, the predicted probability (E,) in [0, 1] and the label (E,)."""

    group: Ints
    probability: Floats
    label: Bools


@dataclass(frozen=True)
class GroupedAuc:
    """Sums AUC times examples, and examples, over the groups that hold both classes."""

    weighted_auc: float = 0.0
    weight: int = 0

    def __add__(self, other: GroupedAuc) -> GroupedAuc:
        return GroupedAuc(self.weighted_auc + other.weighted_auc, self.weight + other.weight)

    @property
    def gauc(self) -> float | None:
        """GAUC; None where no group holds both classes."""
        return self.weighted_auc / self.weight if self.weight else None


@dataclass(frozen=True)
class ScoreRuns:
    """Counts rows in runs of equal scores, ordered by group and then by score.

    Attributes:
        start_R: position of each run's first row among all rows.
        size_R, positives_R: rows of each run, and how many of them are positive.
        first_G: each group's first run.
    """

    start_R: npt.NDArray[np.intp]
    size_R: Ints
    positives_R: Ints
    first_G: npt.NDArray[np.intp]


def score_runs(rows: GroupedRows) -> ScoreRuns:
    """Sorts all rows of some groups by group and score, and counts the rows of each run of equal scores."""
    key_E = _sorted_keys(rows)
    # Without the lowest bit, the label, a key is a group and a score; without the lowest 33 it is a group.
    start_R = _starts(key_E >> np.uint64(1))
    return ScoreRuns(
        start_R=start_R,
        size_R=np.diff(start_R, append=key_E.size),
        positives_R=np.add.reduceat((key_E & np.uint64(1)).astype(np.int64), start_R),
        first_G=_starts(key_E[start_R] >> np.uint64(33)),
    )


def grouped_auc(runs: ScoreRuns) -> GroupedAuc:
    """Computes GAUC's sums over all rows of some groups; a tie counts 1/2."""
    if runs.start_R.size == 0:
        return GroupedAuc()
    positives_R, first_G = runs.positives_R, runs.first_G
    negatives_R = runs.size_R - positives_R

    # Negatives below each run among all rows, less those of earlier groups, are the negatives below it in its group.
    below_R = np.cumsum(negatives_R) - negatives_R
    below_R -= np.repeat(below_R[first_G], np.diff(first_G, append=runs.start_R.size))
    ordered_G = np.add.reduceat(positives_R * (below_R + negatives_R / 2), first_G)
    positives_G = np.add.reduceat(positives_R, first_G)
    negatives_G = np.add.reduceat(negatives_R, first_G)

    both_G = (positives_G > 0) & (negatives_G > 0)
    size_G = (positives_G + negatives_G)[both_G]
    auc_G = ordered_G[both_G] / (positives_G * negatives_G)[both_G]
    return GroupedAuc(float(auc_G @ size_G), int(size_G.sum()))


def _sorted_keys(rows: GroupedRows) -> npt.NDArray[np.uint64]:
    """Packs group (31 bits), probability (32) and label (1) of each row in an integer, and sorts the integers.

    A single sort of integers is faster than ``np.lexsort`` of three columns.
    """
    # Group ids are any 64 bits; their ranks fit in 31.
    group_E = np.unique(rows.group, return_inverse=True)[1].astype(np.uint64)
    # The bits of non-negative floats are ordered as the floats are. Adding zero turns -0.0, whose bits sort last, into
    # 0.0.
    bits_E = (rows.probability.astype(np.float32) + np.float32(0)).view(np.uint32).astype(np.uint64)
    key_E: npt.NDArray[np.uint64] = (group_E << np.uint64(33)) + (bits_E << np.uint64(1)) + rows.label.astype(np.uint64)
    key_E.sort()  # in place: a copy would double the memory
    return key_E


def _starts(sorted_E: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
    """Finds the position at which each run of equal values begins."""
    begins_E = np.ones(sorted_E.size, np.bool_)
    begins_E[1:] = sorted_E[1:] != sorted_E[:-1]
    return np.flatnonzero(begins_E)


def whole_groups(
    read: Callable[[], Iterable[tuple[str, GroupedRows]]], rows: int, rows_per_pass: int = _ROWS_PER_PASS
) -> Iterator[tuple[str, GroupedRows]]:
    """Yields the rows of a stream of any length by task, many whole groups at a time.

    Args:
        read: reads the stream from its beginning: chunks of rows, each with its task.
        rows: rows of the stream, over all tasks; more rows take more passes, and not more memory.
        rows_per_pass: rows that a pass holds in memory, give or take the size of the largest groups.
    """
    passes = max(1, -(-rows // rows_per_pass))
    for share in range(passes):
        held: dict[str, list[GroupedRows]] = {}
        for task, chunk in read():
            # Hashed, because ids that are all multiples of the number of passes would meet in a single pass.
            kept = splitmix64(chunk.group) % np.uint64(passes) == share
            held.setdefault(task, []).append(GroupedRows(*(column[kept] for column in chunk)))
        for task, chunks in held.items():
            yield task, GroupedRows(*map(np.concatenate, zip(*chunks, strict=True)))
