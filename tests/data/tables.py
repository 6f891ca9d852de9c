"""Draws random schemas, and random rows that follow them, as Python values and as Arrow batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

import exfm

START_US = 1_600_000_000_000_000
ID_TYPES: tuple[pa.DataType, ...] = (
    pa.int64(), pa.int32(), pa.uint64(), pa.int8(), pa.bool_(), pa.string(), pa.large_string(),
    pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.int64()), pa.binary(),
    pa.large_binary(), pa.binary(3), pa.dictionary(pa.int16(), pa.binary()),
)  # fmt: skip
ROW_TYPES = (pa.int64(), pa.int32(), pa.uint16())
NUMBER_TYPES = (pa.float64(), pa.float32(), pa.int32(), pa.bool_())
TIME_TYPES = (pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.timestamp("ns", "UTC"))
US_PER_UNIT = {"us": 1, "ms": 1_000, "s": 10**6, "min": 60 * 10**6, "h": 3_600 * 10**6, "d": 86_400 * 10**6}
_NS_PER_US = 1000


@dataclass(frozen=True)
class Table:
    """Rows of a schema: Python values by column (times in microseconds), and the Arrow type of each column."""

    schema: exfm.schema.FeatureSchema
    types: dict[str, pa.DataType]
    rows: list[dict[str, Any]]

    def batch(self, rows: list[dict[str, Any]] | None = None) -> pa.RecordBatch:
        """Makes a batch of some rows, by default of all."""
        rows = self.rows if rows is None else rows
        return pa.record_batch({name: _array([row[name] for row in rows], kind) for name, kind in self.types.items()})

    def sliced(self, before: int, after: int) -> pa.RecordBatch:
        """Makes a batch of all rows as a slice of a longer batch, so that every buffer has an offset."""
        padded = [*self.rows[-before:], *self.rows, *self.rows[:after]] if before else [*self.rows, *self.rows[:after]]
        return self.batch(padded).slice(len(self.rows[-before:]) if before else 0, len(self.rows))


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_list(kind) and pa.types.is_timestamp(kind.value_type):
        scale = _NS_PER_US if kind.value_type.unit == "ns" else 1
        scaled = [None if times is None else [_times(time, scale) for time in times] for times in values]
        return pa.array(scaled, pa.list_(pa.int64())).cast(kind)
    if pa.types.is_timestamp(kind):
        scale = _NS_PER_US if kind.unit == "ns" else 1
        return pa.array([_times(value, scale) for value in values], pa.int64()).cast(kind)
    return pa.array(values, kind)


def _times(value: int | None, scale: int) -> int | None:
    return None if value is None else value * scale


def ids_in(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Draws ids that a column of a type can hold."""
    if pa.types.is_dictionary(kind):
        return ids_in(kind.value_type)
    if pa.types.is_boolean(kind):
        return st.booleans()
    if pa.types.is_integer(kind):
        bits = kind.bit_width
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if pa.types.is_signed_integer(kind) else (0, 2**bits - 1)
        return st.integers(0, 9) | st.integers(low, high)
    if pa.types.is_fixed_size_binary(kind):
        return st.binary(min_size=kind.byte_width, max_size=kind.byte_width)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return st.binary(max_size=5)
    return st.text("ab\0é日😀", max_size=5)


def _numbers_in(kind: pa.DataType) -> st.SearchStrategy[Any]:
    if pa.types.is_boolean(kind):
        return st.booleans()
    if pa.types.is_integer(kind):
        return st.integers(-(2**31), 2**31 - 1)
    return st.floats(-(2.0**99), 2.0**99, width=32)


@st.composite
def _scalar(draw: st.DrawFn, dense: bool) -> tuple[dict[str, Any], pa.DataType, st.SearchStrategy[Any]]:
    """Draws the fields of a feature or of a sequence's field, the type of a value, and its values."""
    if dense:
        kind = draw(st.sampled_from(NUMBER_TYPES))
        return {"transform": draw(st.sampled_from(["none", "log1p"]))}, kind, _numbers_in(kind)
    rows = draw(st.integers(1, 50))
    if draw(st.booleans()):
        return {"rows": rows, "ids": "row"}, draw(st.sampled_from(ROW_TYPES)), st.integers(0, rows - 1)
    kind = draw(st.sampled_from(ID_TYPES))
    return {"rows": rows}, kind, ids_in(kind)


@st.composite
def _event_times(draw: st.DrawFn, column: str) -> tuple[dict[str, Any], pa.DataType, st.SearchStrategy[Any]]:
    """Draws the times of a sequence, the type of their column, and values that no example precedes."""
    holds = draw(st.sampled_from(["age", "time"]))
    times = {"column": column, "holds": holds, "unit": draw(st.sampled_from(["us", "ms", "s", "min", "h", "d"]))}
    if holds == "age":
        return times, pa.list_(draw(st.sampled_from([pa.int32(), pa.float64()]))), st.integers(0, 40_000)
    kind = draw(st.sampled_from([*TIME_TYPES, pa.int64(), pa.float64()]))
    if pa.types.is_timestamp(kind):
        return times | {"unit": "us"}, pa.list_(kind), st.integers(-(10**9), START_US)
    return times, pa.list_(kind), st.integers(-(10**6), START_US // US_PER_UNIT[times["unit"]])


@st.composite
def tables(draw: st.DrawFn, min_rows: int = 1, max_rows: int = 6) -> Table:
    """Draws a schema and good rows."""
    kinds = draw(
        st.lists(st.sampled_from(["dense", "categorical", "multi_valued", "sequence"]), min_size=1, max_size=5)
    )
    columns: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]] = {
        "example_id": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
        "click": (draw(st.sampled_from([pa.int8(), pa.bool_(), pa.float32(), pa.int64()])), st.integers(0, 1)),
        "truth": (pa.float64(), st.floats(0, 1)),
    }
    features: list[dict[str, Any]] = []
    lists: dict[str, tuple[int, list[str]]] = {}
    for index, kind in enumerate(kinds):
        name = f"f{index}"
        if kind == "sequence":
            fields = []
            for number in range(draw(st.integers(1, 3))):
                dense = draw(st.booleans())
                drawn, type_, values = draw(_scalar(dense))
                fields.append({"name": f"p{number}", "column": f"{name}_{number}", **drawn})
                fields[-1]["kind"] = "dense" if dense else "categorical"
                columns[f"{name}_{number}"] = (draw(_list_type(type_)), values)
            features.append({"kind": kind, "name": name, "fields": fields, "max_length": draw(st.integers(1, 4))})
            lists[name] = (6, [field["column"] for field in fields])
            if draw(st.booleans()):
                times, type_, values = draw(_event_times(f"{name}_at"))
                columns[f"{name}_at"] = (type_, values)
                features[-1]["times"] = times
                lists[name][1].append(f"{name}_at")
        else:
            drawn, type_, values = draw(_scalar(kind == "dense"))
            features.append({"kind": kind, "name": name, "column": f"{name}_column", **drawn})
            if kind == "multi_valued":
                lists[name] = (4, [f"{name}_column"])
                type_ = draw(_list_type(type_))
            elif kind == "categorical":
                values = st.none() | values
            columns[f"{name}_column"] = (type_, values)
    group = draw(st.sampled_from(["", "user"]))
    if group:
        kind = draw(st.sampled_from(ID_TYPES))
        columns[group] = (kind, ids_in(kind))
    labels = [{"name": "click", "oracle": draw(st.sampled_from(["", "truth"]))}]
    schema = exfm.schema.FeatureSchema.model_validate({"features": features, "labels": labels, "group": group})
    rows = _rows(draw, columns, lists, draw(st.integers(min_rows, max_rows)))
    types = {name: kind for name, (kind, _) in columns.items()}
    return Table(schema, {**types, "event_time": draw(st.sampled_from(TIME_TYPES))}, rows)


def _list_type(kind: pa.DataType) -> st.SearchStrategy[pa.DataType]:
    return st.sampled_from([pa.list_(kind), pa.large_list(kind)])


def _rows(
    draw: st.DrawFn,
    columns: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]],
    lists: dict[str, tuple[int, list[str]]],
    count: int,
) -> list[dict[str, Any]]:
    in_lists = {column for _, names in lists.values() for column in names}
    rows = []
    time_us = START_US
    for _ in range(count):
        time_us += draw(st.integers(0, 3))
        row: dict[str, Any] = {"event_time": time_us}
        for name, (kind, values) in columns.items():
            if name not in in_lists:
                value = draw(values)
                row[name] = bool(value) if pa.types.is_boolean(kind) and value is not None else value
        for longest, names in lists.values():
            length = draw(st.integers(0, longest))
            for name in names:
                events: list[Any] = draw(st.lists(columns[name][1], min_size=length, max_size=length))
                is_list: bool = bool(events) or draw(st.booleans())
                row[name] = events if is_list else None
        rows.append(row)
    return rows
