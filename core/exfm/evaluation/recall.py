"""Recall@k inside each group of a log of impressions: the share of its positives among its k highest scores.

Legend: E rows, R runs of equal scores inside a group, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exfm.evaluation.grouped import ScoreRuns


@dataclass(frozen=True)
class GroupedRecall:
    """The sums behind recall@k, over the groups that hold a positive and more than k rows.

    Of a group with k rows or fewer every ranking finds all positives: it would say nothing and raise the mean.

    Attributes:
        recall_sum: sum of the groups' recalls.
        groups, examples: how many groups count, and how many rows they have.
    """

    recall_sum: float = 0.0
    groups: int = 0
    examples: int = 0

    def __add__(self, other: GroupedRecall) -> GroupedRecall:
        return GroupedRecall(
            self.recall_sum + other.recall_sum, self.groups + other.groups, self.examples + other.examples
        )

    @property
    def recall(self) -> float | None:
        """Mean recall of the groups, each weighing the same; None where no group counts."""
        return self.recall_sum / self.groups if self.groups else None


def grouped_recall(runs: ScoreRuns, k: int) -> GroupedRecall:
    """Computes recall@k's sums over all rows of some groups, a tie counting by expectation over its orders."""
    if runs.start_R.size == 0:
        return GroupedRecall()
    size_R, first_G = runs.size_R, runs.first_G
    size_G = np.add.reduceat(size_R, first_G)
    positives_G = np.add.reduceat(runs.positives_R, first_G)
    end_G = np.cumsum(size_G)
    above_R = np.repeat(end_G, np.diff(first_G, append=runs.start_R.size)) - (runs.start_R + size_R)
    # Of a run that rank k cuts, each row is as likely to be above the cut as any other.
    share_R = np.clip(k - above_R, 0, size_R) / size_R
    hits_G = np.add.reduceat(runs.positives_R * share_R, first_G)

    counts_G = (positives_G > 0) & (size_G > k)
    recall_G = hits_G[counts_G] / positives_G[counts_G]
    return GroupedRecall(float(recall_G.sum()), recall_G.size, int(size_G[counts_G].sum()))
