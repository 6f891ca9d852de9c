"""Which columns a schema reads, and which Arrow types they can have."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import types

import exfm


@dataclass(frozen=True)
class Requirement:
    """A column that is read: whether an Arrow type suits, and in words what does."""

    column: str
    suits: Callable[[pa.DataType], bool]
    wanted: str

    def check(self, path: str, schema: pa.Schema) -> None:
        """Raises ValueError where a file lacks the column or has it with a type that cannot be."""
        if self.column not in schema.names:
            close = difflib.get_close_matches(self.column, schema.names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(
                f"parquet: {path} has no column {self.column!r}; {hint}its columns are {', '.join(schema.names)}"
            )
        kind = schema.field(self.column).type
        if not self.suits(kind):
            raise ValueError(f"parquet: {path}: column {self.column!r} is {kind}; expected {self.wanted}")


def requirements(schema: exfm.FeatureSchema, integer_time: bool) -> tuple[Requirement, ...]:
    """What a file must have to hold rows of the schema; its time an integer, or else a timestamp."""
    return tuple(_requirements(schema, integer_time))


def _requirements(schema: exfm.FeatureSchema, integer_time: bool) -> Iterator[Requirement]:
    yield Requirement(schema.example_id, types.is_integer, "a 64-bit integer")
    if integer_time:
        yield Requirement(schema.event_time, types.is_integer, "an integer, since time_unit is set")
    else:
        wanted = "a timestamp (for an integer, set time_unit to s, ms, us or ns)"
        yield Requirement(schema.event_time, types.is_timestamp, wanted)
    for name in (schema.group, schema.domain):
        if name:
            yield Requirement(name, _is_id, "an integer or a string")
    for label in schema.labels:
        for name in (label.source_column, label.oracle):
            if name:
                yield Requirement(name, _is_number, "a number")
    for feature in schema.features:
        if isinstance(feature, exfm.SequenceFeature):
            for field in feature.fields:
                yield _list_of(_scalar(field, dense=field.kind == "dense"))
        elif isinstance(feature, exfm.MultiValuedFeature):
            yield _list_of(_scalar(feature, dense=False))
        else:
            yield _scalar(feature, dense=isinstance(feature, exfm.DenseFeature))


def _scalar(
    feature: exfm.DenseFeature | exfm.CategoricalFeature | exfm.MultiValuedFeature | exfm.SequenceField, dense: bool
) -> Requirement:
    if dense or isinstance(feature, exfm.DenseFeature):
        return Requirement(feature.source_column, _is_number, "a number")
    if feature.ids == "row":
        return Requirement(feature.source_column, types.is_integer, "an integer, since ids: row")
    return Requirement(feature.source_column, _is_id, "an integer or a string")


def _list_of(scalar: Requirement) -> Requirement:
    def suits(kind: pa.DataType) -> bool:
        return _is_list(kind) and scalar.suits(kind.value_type)

    return Requirement(scalar.column, suits, f"a list, each value {scalar.wanted}")


def _is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _is_id(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))
