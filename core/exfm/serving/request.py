"""Converts a request, a context and its candidates, to a program's arguments.

Legend: B candidates, F dense features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exfm.data.features import dense_numbers
from exfm.data.validation import check_features
from exfm.errors import ConfigError
from exfm.interfaces.schema import DenseFeature, Feature
from exfm.mappings import names_of
from exfm.serving.description import Description, embedding_input, examples_input, needs_event_time
from exfm.serving.embedding_rows import embedding_rows
from exfm.serving.feature_arrays import feature_arrays

Array = npt.NDArray[Any]


def repeat_context(context: pa.RecordBatch, candidates: pa.RecordBatch) -> pa.RecordBatch:
    """Returns the columns of candidates and of their context, which is of a row, sorted by name."""
    # Zeros are the index of the context's only row, once for each candidate.
    rows_B = pa.array(np.zeros(candidates.num_rows, np.int64))
    columns = dict(zip(candidates.schema.names, candidates.columns, strict=True))
    for name in context.schema.names:
        columns[name] = context.column(name).take(rows_B)
    return pa.RecordBatch.from_pydict(dict(sorted(columns.items())))


class RequestArrays:
    """Converts the columns of a request, those of the context once.

    A feature of which every column is the context's is converted for a single row, and any other for all candidates.

    Args:
        description: of the export.
        context: columns that all candidates have in common, of a row.
        candidates: the other columns, of B rows.
    """

    def __init__(self, description: Description, context: pa.RecordBatch, candidates: pa.RecordBatch) -> None:
        self._description, self._context, self._candidates = description, context, candidates
        self._size = candidates.num_rows
        self._context_rows_B = np.zeros(self._size, np.int64)

    def arguments(self) -> Iterator[Array]:
        """Yields the arguments of the program of a request, or of the program without one.

        Raises:
            ConfigError: a value is outside the feature's range.
        """
        described = self._description
        of_context: list[Feature] = []
        of_candidates: list[Feature] = []
        for feature in described.features:
            (of_context if self._is_contexts(self._columns(feature)) else of_candidates).append(feature)
        rows = self._with_context(of_candidates)
        try:
            # Apart from the candidates, so that the message says which of both is wrong.
            check_features(self._context, of_context, described.event_time)
        except ConfigError as error:
            raise ConfigError(f"context: {error}") from error
        check_features(rows, of_candidates, described.event_time)
        names_of_context = set(names_of(of_context))
        numbers_BF = self._dense(of_context, of_candidates, rows)
        if numbers_BF.shape[1]:
            yield numbers_BF
        shared = {spec.name for spec in described.request_inputs}
        for feature in described.features:
            if isinstance(feature, DenseFeature):
                continue
            once = feature.name in names_of_context
            values = feature_arrays(self._context if once else rows, feature, described.event_time)
            if examples_input(feature.name) in shared:
                yield from values.arguments()
                yield self._context_rows_B if once else np.arange(self._size)
            else:
                yield from (values.take(self._context_rows_B) if once else values).arguments()
        for teacher, width in described.embeddings.items():
            name = embedding_input(teacher)
            if self._is_contexts([name]):
                yield embedding_rows(self._context.column(name), name, width)[self._context_rows_B]
            else:
                yield embedding_rows(self._candidates.column(name), name, width)

    def _columns(self, feature: Feature) -> list[str]:
        columns = list(feature.source_columns)
        if needs_event_time([feature]):
            # A value that is relative to the row's time is the context's only if the time is, too.
            columns.append(self._description.event_time)
        return columns

    def _is_contexts(self, columns: Sequence[str]) -> bool:
        return all(column in self._context.schema.names for column in columns)

    def _with_context(self, features: Sequence[Feature]) -> pa.RecordBatch:
        """Returns the candidates, and the columns of the context that features read together with theirs."""
        read = set(chain.from_iterable(self._columns(feature) for feature in features))
        needed = [name for name in self._context.schema.names if name in read]
        return repeat_context(self._context.select(needed), self._candidates) if needed else self._candidates

    def _dense(
        self, of_context: Sequence[Feature], of_candidates: Sequence[Feature], rows: pa.RecordBatch
    ) -> npt.NDArray[np.float32]:
        """Returns the dense features of each candidate, (B, F)."""
        groups = ((self._context, of_context), (rows, of_candidates))
        columns: dict[str, Array] = {}
        for batch, features in groups:
            dense = [feature for feature in features if isinstance(feature, DenseFeature)]
            columns.update(zip(names_of(dense), dense_numbers(batch, dense).T, strict=True))
        # In the order of the description, because the program knows dense features by position.
        numbers_BF = np.empty((self._size, len(columns)), np.float32)
        dense = [feature for feature in self._description.features if isinstance(feature, DenseFeature)]
        for number, feature in enumerate(dense):
            numbers_BF[:, number] = columns[feature.name]
        return numbers_BF
