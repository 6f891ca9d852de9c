"""RowOffset: what is added to the rows of a table in every look-up.

Legend: V rows that are looked up, B bags, D width of the table's rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from exfm.interfaces.jagged import JaggedSequence


class RowOffset(ABC):
    """Computes an offset for each row. It is beside the model, and not a part of it."""

    @abstractmethod
    def __call__(self, rows_V: Tensor, feature: str = "") -> Tensor:
        """Maps rows (V,), those of a feature of the batch where it is named, to what is added to them, (V, D)."""

    def mean(self, rows_V: Tensor, offsets: Tensor) -> Tensor:
        """Averages the offsets of each bag of rows, (B, D), zeros of an empty bag: for histories that are averaged.

        Args:
            rows_V: the rows of all bags, one bag after the other.
            offsets: (B + 1,) int64, where each bag begins, and the end.
        """
        return JaggedSequence(self(rows_V), offsets, rows_V.numel()).mean()
