"""TableOffset: what transfer adds to the rows of a student's table."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from exfm.interfaces.jagged import JaggedSequence


class TableOffset(nn.Module, ABC):
    """From rows of a table to what is added to each of them.

    Legend: V rows, B bags, D width of the student's rows.
    """

    @abstractmethod
    def forward(self, rows_V: Tensor, feature: str = "") -> Tensor:
        """Maps rows (V,), of a feature of the batch where it is named, to what is added to them, (V, D)."""

    def mean(self, rows_V: Tensor, offsets: Tensor) -> Tensor:
        """The average over each bag of rows, (B, D), zeros of an empty one: for histories that are averaged.

        A linear map may average before it maps: histories hold many more rows than bags.

        Args:
            rows_V: the rows of all bags, one bag after the other.
            offsets: (B + 1,) int64, where each bag begins, and the end.
        """
        return JaggedSequence(self(rows_V), offsets, rows_V.numel()).mean()
