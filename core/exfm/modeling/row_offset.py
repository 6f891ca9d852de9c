"""Declares RowOffset, an offset that is added to the rows of a table in every lookup.

Legend: V rows that are looked up, B bags, D width of the table's rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from exfm.interfaces.jagged import JaggedSequence


class RowOffset(ABC):
    """Computes an offset for each row; its parameters are a strategy's and not the model's."""

    @abstractmethod
    def __call__(self, rows_V: Tensor, feature: str = "") -> Tensor:
        """Maps rows (V,) to the offsets (V, D) that are added to them.

        Args:
            rows_V: the rows that are looked up.
            feature: the feature of the batch that looks them up; empty for events of a sequence.
        """

    def of_feature(self, feature: str) -> Tensor | None:
        """Returns the offsets (V, D) of the ids of a feature of the next batch, where they need no ids.

        By default None: the offsets of the ids are then asked for.
        """
        return None

    def mean(self, rows_V: Tensor, offsets: Tensor) -> Tensor:
        """Averages the offsets of each bag of rows, (B, D), zeros of an empty bag: for histories that are averaged.

        Args:
            rows_V: the rows of all bags, concatenated.
            offsets: (B + 1,) int64, where each bag begins, and the end.
        """
        return JaggedSequence(self(rows_V), offsets, rows_V.numel()).mean()
