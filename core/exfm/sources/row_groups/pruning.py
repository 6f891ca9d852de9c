"""Tells by statistics whether a row group can have a row that some reader needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyarrow import types

from exfm.interfaces.data_source import NeededRows
from exfm.sources.row_groups.bounds import column_statistics
from exfm.sources.row_groups.order import PlacedGroup

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_Bounds = tuple[Any, Any]
"""The least and the largest value: integers, or text."""


def is_needed(readers: Sequence[NeededRows], file: pq.ParquetFile, group: PlacedGroup) -> bool:
    """Returns False if no row of a row group can be one that some of the readers need."""
    bounds_by_column: dict[str, _Bounds | None] = {}
    for needed in readers:
        for column in needed:
            if column not in bounds_by_column:
                bounds_by_column[column] = _bounds(file, group, column)
        if not any(_excludes(bounds_by_column[column], values) for column, values in needed.items()):
            return True
    return not readers


def _excludes(bounds: _Bounds | None, values: Sequence[bool | int | str] | None) -> bool:
    """Returns whether no value lies within the bounds."""
    if bounds is None or values is None:
        return False
    return not any(_may_hold(bounds, value) for value in values)


def _may_hold(bounds: _Bounds, value: bool | int | str) -> bool:
    least, largest = bounds
    # The core compares text and numbers after a cast, or refuses to: rows decide, not their bounds.
    if isinstance(value, str) != isinstance(least, str):
        return True
    return bool(least <= value <= largest)


def _bounds(file: pq.ParquetFile, group: PlacedGroup, column: str) -> _Bounds | None:
    """Returns the least and the largest value of a column in a row group, or of its file; None if there are none."""
    name = next(iter(group.file.stored_names([column])), None)
    schema = file.schema_arrow
    index = -1 if name is None else schema.get_field_index(name)
    if index < 0:
        constant = group.file.columns.get(column)
        return None if constant is None else _comparable(constant.as_py(), constant.as_py(), constant.type)
    statistics = column_statistics(file, group.index, schema.names[index])
    if statistics is None:
        return None
    try:
        return _comparable(statistics.min, statistics.max, schema.field(index).type)
    except UnicodeDecodeError:
        # Some writers cut a long text off inside a character.
        return None


def _comparable(least: object, largest: object, kind: pa.DataType) -> _Bounds | None:
    """Returns bounds that compare as the values do: signed integers, booleans and text; Python orders text as UTF-8."""
    if types.is_dictionary(kind):
        kind = kind.value_type
    is_text = types.is_string(kind) or types.is_large_string(kind)
    if is_text and isinstance(least, str) and isinstance(largest, str):
        return least, largest
    is_number = types.is_signed_integer(kind) or types.is_boolean(kind)
    if is_number and isinstance(least, int) and isinstance(largest, int):
        return least, largest
    return None
