"""Converts the columns of a feature to the program's arguments, and repeats those of a row for several examples.

Legend: R rows, B examples, V values of all rows, F dense features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exfm.data.features import bags, history, vectors
from exfm.interfaces.schema import DenseFeature, Feature, SequenceFeature
from exfm.interfaces.vector_feature import VectorFeature

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class FeatureArrays:
    """Holds the values of a feature for R rows.

    Attributes:
        values: arrays (V, ...), row by row.
        lengths: number of values of each row, (R,); None where each row has exactly a value.
        starts: whether the program reads where each row's values begin, and not how many they are.
    """

    values: tuple[Array, ...]
    lengths: Array | None = None
    starts: bool = False

    def arguments(self) -> Iterator[Array]:
        """Yields the program's arguments in the order of ``input_specs``."""
        yield from self.values
        if self.lengths is not None:
            yield np.cumsum(self.lengths) - self.lengths if self.starts else self.lengths

    def take(self, rows_B: npt.NDArray[np.int64]) -> FeatureArrays:
        """Returns the values of B examples, of which several may have the same row."""
        if self.lengths is None:
            return FeatureArrays(tuple(values[rows_B] for values in self.values))
        begins_R = np.cumsum(self.lengths) - self.lengths
        lengths_B = self.lengths[rows_B]
        # Per value, the distance from its new position to its old position.
        shift_V = np.repeat(begins_R[rows_B] - (np.cumsum(lengths_B) - lengths_B), lengths_B)
        positions_V = shift_V + np.arange(shift_V.size)
        return FeatureArrays(tuple(values[positions_V] for values in self.values), lengths_B, self.starts)


def feature_arrays(rows: pa.RecordBatch, feature: Feature, event_time: str) -> FeatureArrays:
    """Converts a feature of checked rows; dense features have a tensor in common, see ``dense_numbers``."""
    assert not isinstance(feature, DenseFeature)
    if isinstance(feature, SequenceFeature):
        events = history(rows, feature, event_time)
        numbers = (events.numbers_EG,) if events.numbers_EG.shape[1] else ()
        ages = () if events.ages is None else (events.ages,)
        return FeatureArrays((*events.ids, *numbers, *ages), events.lengths)
    if isinstance(feature, VectorFeature):
        return FeatureArrays((vectors(rows, feature),))
    bag = bags(rows, feature)
    weights = () if bag.weights_V is None else (bag.weights_V,)
    return FeatureArrays((bag.rows_V, *weights), bag.lengths, starts=True)
