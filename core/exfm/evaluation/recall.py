"""Computes recall@k inside each group of impressions: the share of its positives among its k highest scores.

Legend: E rows, R runs of equal scores inside a group, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exfm.evaluation.grouped import ScoreRuns


@dataclass(frozen=True)
class GroupedRecall:
    """Sums the recall@k of the groups that hold a positive and more than k rows.

    In a group of k rows or fewer every ranking has recall 1: it would say nothing and raise the mean.

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
        """Mean recall of the groups, each with the same weight; None where no group counts."""
        return self.recall_sum / self.groups if self.groups else None

    @property
    def counts(self) -> dict[str, int]:
        """The groups and examples that count, as results.json has them."""
        return {"groups": self.groups, "examples": self.examples}


def grouped_recall(runs: ScoreRuns, k: int) -> GroupedRecall:
    """Computes recall@k's sums over all rows of some groups; a tie counts by its expectation over random orders."""
    if runs.start_R.size == 0:
        return GroupedRecall()
    size_R, first_G = runs.size_R, runs.first_G
    size_G = np.add.reduceat(size_R, first_G)
    positives_G = np.add.reduceat(runs.positives_R, first_G)
    end_G = np.cumsum(size_G)
    # Scores ascend inside a group, so the rows above a run are those between its end and the group's end.
    above_R = np.repeat(end_G, np.diff(first_G, append=runs.start_R.size)) - (runs.start_R + size_R)
    # In a run that rank k cuts, each row is as likely to be above the cut as any other.
    share_R = np.clip(k - above_R, 0, size_R) / size_R
    hits_G = np.add.reduceat(runs.positives_R * share_R, first_G)

    counts_G = (positives_G > 0) & (size_G > k)
    recall_G = hits_G[counts_G] / positives_G[counts_G]
    return GroupedRecall(float(recall_G.sum()), recall_G.size, int(size_G[counts_G].sum()))
