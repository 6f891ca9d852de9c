"""Converts rows of plain Python values to the program's arguments, with few calls for all features together.

Arrow's functions take microseconds each, however few the rows are: more for a request of a row than the model takes.

Legend: B rows, V values of all rows, F features of one kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exfm.interfaces.schema import (
    CategoricalFeature,
    DenseFeature,
    Feature,
    MultiValuedFeature,
    SequenceFeature,
    SequenceField,
)
from exfm.serving.description import Description
from exfm.sources.ids import mix, to_u64

Array = npt.NDArray[Any]

_NUMBERS = {int, float, type(None)}
_LISTS = {list, type(None)}
_EXACT = 2.0**53
"""Integers above it are no doubles, and Arrow refuses them."""


class _NotPlainError(Exception):
    """Signals rows that only the general conversion converts, or refuses with a reason."""


@dataclass(frozen=True)
class _Flat:
    """Holds the values of a column, and how many each row has."""

    values: Sequence[Any]
    lengths: list[int]


class MappingDecoder:
    """Converts mappings whose values are integers, texts, numbers and lists of them.

    Args:
        description: of an export whose features ``can_decode`` accepts.
    """

    def __init__(self, description: Description) -> None:
        self._features = description.features
        self._columns = description.columns
        self._dense = [feature for feature in self._features if isinstance(feature, DenseFeature)]
        # Texts come last, so that integers are converted together, and texts too.
        ids = sorted(_id_fields(self._features), key=self._is_text)
        self._ids, self._texts = ids, sum(map(self._is_text, ids))
        self._limits = np.array([field.rows for field in ids], np.uint64)

    @staticmethod
    def can_decode(description: Description) -> bool:
        """Tells whether every feature of an export has a simple form."""
        plain = {"int64", "string", "double", "list of int64", "list of string", "list of double"}
        if description.event_time or description.embeddings or not plain.issuperset(description.columns.values()):
            return False
        for feature in description.features:
            if isinstance(feature, SequenceFeature):
                simple = feature.times is None
            elif isinstance(feature, MultiValuedFeature):
                simple = feature.weights is None
            else:
                simple = isinstance(feature, DenseFeature | CategoricalFeature)
            if not simple:
                return False
        return True

    def decode(self, rows: Sequence[Mapping[str, Any]]) -> list[Array] | None:
        """Returns the program's arguments; None where the general conversion must convert the rows, or refuse them."""
        try:
            return self._decode({name: [row[name] for row in rows] for name in self._columns})
        except (_NotPlainError, KeyError, TypeError, ValueError, OverflowError, pa.ArrowException):
            return None

    def _decode(self, columns: Mapping[str, list[Any]]) -> list[Array]:
        flat = {name: _flatten(values, self._columns[name]) for name, values in columns.items()}
        ids = dict(zip(map(id, self._ids), self._table_rows(flat), strict=True))
        arguments: list[Array] = []
        if self._dense:
            numbers_FB = _numbers([columns[feature.source_column] for feature in self._dense], self._dense)
            arguments.append(np.ascontiguousarray(numbers_FB.T))
        bags = [feature for feature in self._features if isinstance(feature, CategoricalFeature | MultiValuedFeature)]
        lengths_FB = np.array([flat[feature.source_column].lengths for feature in bags], np.int64)
        starts = iter(lengths_FB.cumsum(axis=1) - lengths_FB if bags else ())
        for feature in self._features:
            if isinstance(feature, SequenceFeature):
                arguments += _history(feature, flat, ids)
            elif not isinstance(feature, DenseFeature):
                arguments += (ids[id(feature)], next(starts))
        return arguments

    def _is_text(self, field: CategoricalFeature | MultiValuedFeature | SequenceField) -> bool:
        return self._columns[field.source_column].endswith("string")

    def _table_rows(self, flat: Mapping[str, _Flat]) -> Iterator[npt.NDArray[np.int64]]:
        """Yields the table rows (V,) of each field of ids, all hashed together."""
        values = [flat[field.source_column].values for field in self._ids]
        integers = len(self._ids) - self._texts
        keys = np.array([*chain.from_iterable(values[:integers])], np.int64).view(np.uint64)
        if self._texts:
            texts = pa.array([*chain.from_iterable(values[integers:])], pa.string())
            keys = np.concatenate([keys, to_u64(texts)])
        counts = [len(each) for each in values]
        mixed = mix(keys)
        rows = (mixed % self._limits.repeat(counts)).view(np.int64)
        start = 0
        for field, count in zip(self._ids, counts, strict=True):
            end = start + count
            if field.ids == "row":
                table_rows = keys[start:end].view(np.int64)
                if ((table_rows < 0) | (table_rows >= field.rows)).any():
                    raise _NotPlainError
                yield table_rows
            elif field.ids == "managed":
                yield (mixed[start:end] >> np.uint64(1)).view(np.int64)
            else:
                yield rows[start:end]
            start = end


def _id_fields(features: Sequence[Feature]) -> Iterator[CategoricalFeature | MultiValuedFeature | SequenceField]:
    for feature in features:
        if isinstance(feature, SequenceFeature):
            for field in feature.fields:
                if field.kind == "categorical":
                    yield field
        elif isinstance(feature, CategoricalFeature | MultiValuedFeature):
            yield feature


def _flatten(values: list[Any], kind: str) -> _Flat:
    """Returns the values of a column without those that are missing, after checking their types."""
    if kind.startswith("list of "):
        if not _LISTS.issuperset(map(type, values)):
            raise _NotPlainError
        lists = [each or () for each in values]
        flat: Sequence[Any] = lists[0] if len(lists) == 1 else [*chain.from_iterable(lists)]
        lengths = [*map(len, lists)]
    elif kind == "double":
        return _Flat(values, [])
    else:
        flat, lengths = values, [1] * len(values)
        if None in values:
            flat = [value for value in values if value is not None]
            lengths = [int(value is not None) for value in values]
    if not kind.endswith("double") and not {str if kind.endswith("string") else int}.issuperset(map(type, flat)):
        raise _NotPlainError
    return _Flat(flat, lengths)


def _history(feature: SequenceFeature, flat: Mapping[str, _Flat], ids: Mapping[int, Array]) -> Iterator[Array]:
    """Yields the arguments of a sequence: table rows, numbers, and the number of events."""
    lengths = flat[feature.fields[0].source_column].lengths
    for field in feature.fields:
        if flat[field.source_column].lengths != lengths:
            raise _NotPlainError
    newest: slice | Array = slice(None)
    if max(lengths) > feature.max_length:
        ends_B = np.cumsum(lengths)
        newest = np.repeat(ends_B, lengths) - np.arange(ends_B[-1]) <= feature.max_length
    for field in feature.fields:
        if field.kind == "categorical":
            yield ids[id(field)][newest]
    dense = [field for field in feature.fields if field.kind == "dense"]
    if dense:
        numbers_GV = _numbers([flat[field.source_column].values for field in dense], dense)
        yield np.ascontiguousarray(numbers_GV.T)[newest]
    yield np.minimum(np.array(lengths, np.int64), feature.max_length)


def _numbers(columns: Sequence[Sequence[Any]], fields: Sequence[DenseFeature | SequenceField]) -> Array:
    """Returns numbers (F, V) in single precision, transformed, NaN where missing."""
    types = set(chain.from_iterable(map(type, values) for values in columns))
    if not _NUMBERS.issuperset(types):
        raise _NotPlainError
    doubles_FV = np.array(columns, np.float64)
    if int in types and (np.abs(doubles_FV) >= _EXACT).any():
        raise _NotPlainError
    with np.errstate(over="ignore"):
        numbers_FV = doubles_FV.astype(np.float32)
    usable_FV = np.isfinite(numbers_FV)
    if not usable_FV.all():
        for field, numbers_V, usable_V in zip(fields, numbers_FV, usable_FV, strict=True):
            wrong_V = ~usable_V if field.missing is None else np.isinf(numbers_V)
            if wrong_V.any():
                raise _NotPlainError
    for number, field in enumerate(fields):
        if field.transform == "log1p":
            values = numbers_FV[number]
            numbers_FV[number] = np.sign(values) * np.log1p(np.abs(values))
    return numbers_FV
