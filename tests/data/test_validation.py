"""Bad rows: each kind is named with file, row and column, or left out and counted, exactly."""

from __future__ import annotations

import copy
import itertools
from datetime import datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import exfm
from exfm.data.validation import RowChecker
from exfm.errors import ConfigError
from tests.data.reference import is_good
from tests.data.tables import START_US, Table, tables

INF, NAN = float("inf"), float("nan")
SCHEMA = exfm.schema.FeatureSchema.model_validate(
    {
        "group": "user",
        "features": [
            {"kind": "categorical", "name": "item", "rows": 10, "ids": "row"},
            {"kind": "categorical", "name": "city", "rows": 10},
            {"kind": "multi_valued", "name": "tags", "rows": 10},
            {"kind": "multi_valued", "name": "kinds", "rows": 4, "ids": "row"},
            {"kind": "dense", "name": "price"},
            {"kind": "sequence", "name": "history", "max_length": 5,
             "fields": [{"name": "seen", "column": "seen", "rows": 10, "ids": "row"},
                        {"name": "where", "column": "where", "rows": 10},
                        {"name": "age", "column": "age", "kind": "dense"}]},
        ],
        "labels": [{"name": "click", "oracle": "truth"}, {"name": "buy"}],
    }
)  # fmt: skip
GOOD: dict[str, Any] = {
    "example_id": [1, 2, 3], "event_time": [10, 10, 11], "user": ["u", None, "v"], "item": [0, None, 9],
    "city": ["Rio", None, ""], "tags": [["x"], None, []], "kinds": [[0, 3], [], None], "price": [0.5, -1.0, 3e38],
    "seen": [[1, 2], [], None], "where": [["a", "b"], None, []], "age": [[0.0, 1.0], [], []], "click": [0, 1, 0],
    "truth": [0.0, 1.0, 0.5], "buy": [False, True, False],
}  # fmt: skip
TYPES = {
    "event_time": pa.timestamp("us", "UTC"), "item": pa.int64(), "kinds": pa.list_(pa.int16()), "click": pa.int64(),
    "seen": pa.list_(pa.int32()), "age": pa.large_list(pa.float64()), "tags": pa.list_(pa.string()),
}  # fmt: skip


def batch(values: dict[str, Any] = GOOD) -> pa.RecordBatch:
    rows = pa.record_batch({name: pa.array(column, TYPES.get(name)) for name, column in values.items()})
    return exfm.sources.Origin("logs/day 1.parquet", 100).mark(rows)


def broken(column: str, *values: Any) -> pa.RecordBatch:
    """Makes a batch of the good rows with other values of a column."""
    return batch(GOOD | {column: values})


def checker(skip: bool = False, newest_us: int = 0, schema: exfm.schema.FeatureSchema = SCHEMA) -> RowChecker:
    return RowChecker(schema, skip, newest_us)


VALUES = [
    ("example_id", (1, None, 3), 1, "missing"),
    ("event_time", (10, None, 11), 1, "missing"),
    ("event_time", (10, 12, 11), 2, "time goes backwards"),
    ("event_time", (9, 12, 12), 0, "time goes backwards"),
    ("item", (0, 1, 10), 2, "an integer from 0 to 9; given: 10"),
    ("item", (-1, 1, 1), 0, "an integer from 0 to 9; given: -1"),
    ("tags", (["x"], ["y", None], []), 1, "an id in the list is missing"),
    ("kinds", ([0, 3], [4], []), 1, "an integer from 0 to 3"),
    ("kinds", ([], [], [1, None]), 2, "an id in the list is missing"),
    ("price", (0.5, NAN, 1), 1, "missing, NaN or infinite"),
    ("price", (0.5, 1, -INF), 2, "missing, NaN or infinite; given: -inf"),
    ("price", (None, 1, 1), 0, "missing, NaN or infinite; given: None"),
    ("price", (1e39, 1, 1), 0, "missing, NaN or infinite; given: 1e\\+39"),
    ("seen", ([1, 10], [], []), 0, "an integer from 0 to 9"),
    ("seen", ([1, None], [], []), 0, "an id in the list is missing"),
    ("where", (["a", None], [], []), 0, "an id in the list is missing"),
    ("where", (["a"], [], []), 0, "not as long as that of seen"),
    ("where", (["a", "b"], [], ["c"]), 2, "not as long as that of seen"),
    ("age", ([0, NAN], [], []), 0, "a number in the list is missing, NaN or infinite"),
    ("age", ([INF, 1], [], []), 0, "a number in the list"),
    ("age", ([1, None], [], []), 0, "a number in the list"),
    ("age", ([0, 1], [1], []), 1, "not as long as that of seen"),
    ("click", (0, 2, 0), 1, "a label is 0 or 1, or null where it is not known; given: 2"),
    ("click", (0, 2**60 + 1, 0), 1, "a label is 0 or 1"),
    ("buy", (0.0, 0.5, 1.0), 1, "a label is 0 or 1, or null where it is not known; given: 0.5"),
    ("truth", (0.0, 1.0001, 0.5), 1, "between 0 and 1"),
    ("truth", (0.0, 0.5, NAN), 2, "between 0 and 1"),
]


@pytest.mark.parametrize(("column", "values", "row", "reason"), VALUES)
def test_a_bad_value(column: str, values: tuple[Any, ...], row: int, reason: str) -> None:
    rows = broken(column, *values)
    with pytest.raises(ConfigError, match=rf"^logs/day 1\.parquet, row {100 + row}: {column}: .*{reason}") as error:
        checker(newest_us=10).check(rows)
    assert "stream.on_bad_row=skip" in str(error.value)
    assert "\n" not in str(error.value)
    skipping = checker(skip=True, newest_us=10)
    left = skipping.check(rows)
    assert left.column("example_id").to_pylist() == [id for i, id in enumerate(GOOD["example_id"]) if i != row]
    assert skipping.skipped == 1


TIMED: dict[str, tuple[dict[str, str], pa.DataType, list[Any]]] = {
    "ages": ({"column": "at"}, pa.list_(pa.float64()), [[7.0], [1.5, 0], []]),
    "numbers": ({"column": "at", "holds": "time", "unit": "s"}, pa.list_(pa.int64()), [[1], [-5, 10], []]),
    "timestamps": ({"column": "at", "holds": "time"}, pa.list_(pa.timestamp("s", "UTC")), [[1], [-5, 10], []]),
}


@pytest.mark.parametrize(
    ("kind", "values", "row", "reason"),
    [
        ("ages", [[7.0], [1.5, -0.5], []], 1, "an event's age is missing, negative"),
        ("ages", [[7.0], [1.5, None], []], 1, "an event's age is missing"),
        ("ages", [[NAN], [1.5, 0], []], 0, "an event's age is missing"),
        ("ages", [[1e300], [1.5, 0], []], 0, "longer than 64 bits hold"),
        ("ages", [[7.0], [1.5], []], 1, "not as long as that of seen"),
        ("numbers", [[1], [-5, 11], []], 1, "an event's time is missing, or later than its example; given: .-5, 11"),
        ("timestamps", [[1], [-5, 11], []], 1, "later than its example"),
        ("timestamps", [[None], [-5, 10], []], 0, "an event's time is missing"),
    ],
)
def test_a_bad_time_of_an_event(kind: str, values: list[Any], row: int, reason: str) -> None:
    times, type_, good = TIMED[kind]
    fields = [{"name": "seen", "column": "seen", "rows": 10, "ids": "row"}]
    history = {"kind": "sequence", "name": "history", "max_length": 5, "fields": fields, "times": times}
    schema = exfm.schema.FeatureSchema.model_validate({"features": [history], "labels": [{"name": "click"}]})

    def rows(at: list[Any]) -> pa.RecordBatch:
        seen, seconds = pa.array([[1], [1, 2], []], pa.list_(pa.int64())), pa.array([10, 10, 11], pa.timestamp("s"))
        at_column = pa.array(at, pa.list_(pa.int64())).cast(type_) if kind == "timestamps" else pa.array(at, type_)
        columns = {"example_id": [1, 2, 3], "event_time": seconds, "click": [0, 1, 0], "seen": seen, "at": at_column}
        return exfm.sources.Origin("log", 0).mark(pa.record_batch(columns))

    assert checker(schema=schema).check(rows(good)).num_rows == 3
    with pytest.raises(ConfigError, match=f"row {row}: at: .*{reason}"):
        checker(schema=schema).check(rows(values))


def misfits() -> list[tuple[str, pa.Array, str]]:
    numbers, words = pa.array([1.5, 2, 3]), pa.array(["1", "2", "3"])
    return [
        ("example_id", pa.array([0.5, 1.5, 2.5]), "must be integers, strings, bytes or UUIDs, not double"),
        ("event_time", pa.array([1, 2, 3]), "must be a timestamp, not int64"),
        ("user", numbers, "must be integers, strings, bytes or UUIDs, not double"),
        ("item", numbers, "must be integers, strings, bytes or UUIDs, not double"),
        ("city", pa.array([[1], [2], [3]]), "must be integers, strings, bytes or UUIDs, not list<"),
        ("tags", words, "must be a list of integers, strings, bytes or UUIDs, not string"),
        ("tags", pa.array([[0.5], [], []]), "must be a list of integers, strings, bytes or UUIDs"),
        ("price", words, "must be a number, not string"),
        ("seen", pa.array([1, 2, 3]), "must be a list of integers, strings, bytes or UUIDs, not int64"),
        ("age", pa.array([["x"], [], []]), "must be a list of numbers"),
        ("click", words, "must be 0 or 1, or null, not string"),
        ("truth", pa.array([0, 1, 1]), "must be a probability, not int64"),
    ]


@pytest.mark.parametrize(("column", "values", "reason"), misfits())
def test_a_column_of_the_wrong_type(column: str, values: pa.Array, reason: str) -> None:
    rows = batch()
    rows = rows.set_column(rows.schema.get_field_index(column), column, values)
    with pytest.raises(ConfigError, match=rf"^logs/day 1\.parquet, row 100: {column}: .*{reason}"):
        checker().check(rows)
    with pytest.raises(ConfigError, match=rf"^logs/day 1\.parquet, row 100: {column}: .*{reason}"):
        checker(skip=True).check(rows)


@pytest.mark.parametrize("column", list(GOOD))
def test_a_missing_column(column: str) -> None:
    rows = batch().drop_columns([column])
    with pytest.raises(ConfigError, match=rf"^logs/day 1\.parquet, row 100: {column}: the column is missing"):
        checker().check(rows)
    check_all_are_skipped(rows)


def check_all_are_skipped(rows: pa.RecordBatch) -> None:
    skipping = checker(skip=True)
    assert skipping.check(rows).num_rows == 0
    assert skipping.skipped == rows.num_rows
    assert skipping.check(batch()).num_rows == rows.num_rows, "the stream goes on after it"


def test_a_near_name_is_suggested() -> None:
    rows = batch().rename_columns([{"price": "prise"}.get(name, name) for name in GOOD])
    with pytest.raises(ConfigError, match=r"price: the column is missing\. Did you mean 'prise'"):
        checker().check(rows)


def test_table_rows_are_integers() -> None:
    rows = batch().set_column(list(GOOD).index("item"), "item", pa.array(["0", None, "1"]))
    with pytest.raises(ConfigError, match="row 100: item: a table row is an integer from 0 to 9; given: 0"):
        checker().check(rows)


def test_good_rows_pass_untouched_with_the_schemas_columns() -> None:
    extra = batch(GOOD | {"unused": ["x"] * 3}).select(["unused", *reversed(GOOD)])
    left = checker(newest_us=10).check(extra)
    assert set(left.schema.names) == set(GOOD)
    assert left.schema.names == checker().check(batch()).schema.names
    assert left.to_pylist() == batch().select(left.schema.names).to_pylist()
    assert exfm.sources.Origin.from_batch(left) == exfm.sources.Origin("logs/day 1.parquet", 100)


def test_columns_that_share_a_table_hold_ids_of_one_type() -> None:
    """The items of a history meet the candidate item only where both are integers, or both strings."""
    schema = exfm.schema.FeatureSchema.model_validate(
        {
            "features": [
                {"kind": "categorical", "name": "city", "rows": 10, "table": "places"},
                {"kind": "sequence", "name": "history", "max_length": 5,
                 "fields": [{"name": "seen", "column": "seen", "rows": 10, "table": "places"}]},
            ],
            "labels": [{"name": "click"}],
        }
    )  # fmt: skip
    words = r"row 100: seen: the column holds list<.*int32.*shares the table 'places' with city, which holds strings"
    with pytest.raises(ConfigError, match=words):
        checker(skip=True, schema=schema).check(batch())
    alike = batch(GOOD | {"city": [1, None, 2]})
    row_checker = checker(schema=schema)
    assert row_checker.check(alike).num_rows == 3
    assert row_checker.id_kinds == {"example_id": "integers", "city": "integers", "seen": "integers"}


def test_time_goes_on_from_batch_to_batch() -> None:
    row_checker = checker(newest_us=5)
    row_checker.check(batch())
    assert row_checker.newest_us == 11
    with pytest.raises(
        ConfigError, match=r"row 100: event_time: time goes backwards; given: 1970-01-01 00:00:00\.000010"
    ):
        row_checker.check(batch())


def test_a_row_that_is_bad_for_another_reason_does_not_move_the_clock() -> None:
    times = [10, 2**50, 11]
    skipping = checker(skip=True)
    assert skipping.check(batch(GOOD | {"event_time": times, "click": [0, 7, 0]})).column("example_id").to_pylist() == [
        1,
        3,
    ]
    assert (skipping.skipped, skipping.newest_us) == (1, 11)


def test_times_no_calendar_holds_are_still_named() -> None:
    with pytest.raises(ConfigError, match="time goes backwards"):
        checker().check(broken("event_time", 1, 2**62, 3))
    with pytest.raises(ConfigError, match="time goes backwards"):
        checker().check(broken("event_time", -(2**62), 2, 3))


DAMAGES: tuple[Any, ...] = (None, NAN, INF, -INF, 1e300, 2, -1, 10**6)


def damage(draw: st.DrawFn, table: Table) -> Table:
    """Replaces some cells by values that may or may not be good there, where the column's type can hold them."""
    rows = copy.deepcopy(table.rows)
    for _ in range(draw(st.integers(0, 4))):
        row = draw(st.sampled_from(rows))
        column = draw(st.sampled_from(sorted(row)))
        value: Any
        if column == "event_time":
            value = draw(st.none() | st.integers(START_US - 5, START_US + 20))
        elif isinstance(table.types[column], pa.ListType | pa.LargeListType):
            value = [*(row[column] or []), draw(st.sampled_from(DAMAGES))] if draw(st.booleans()) else []
        else:
            value = draw(st.sampled_from(DAMAGES))
        try:
            table.batch([row | {column: value}])
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            continue
        row[column] = value
    return Table(table.schema, table.types, rows)


@st.composite
def damaged(draw: st.DrawFn) -> tuple[Table, list[int]]:
    """A table with bad rows, and where its batches end."""
    table = damage(draw, draw(tables()))
    ends = draw(st.lists(st.integers(0, len(table.rows)), max_size=2).map(sorted))
    return table, [0, *ends, len(table.rows)]


def as_read(table: Table) -> list[dict[str, Any]]:
    """The rows' values as Arrow gives them back, times in microseconds."""
    times = [name for name, kind in table.types.items() if pa.types.is_timestamp(getattr(kind, "value_type", kind))]
    rows = zip(table.batch().to_pylist(), table.rows, strict=True)
    return [row | {name: written[name] for name in times} for row, written in rows]


def as_signed(value: Any) -> Any:
    """Values with ids past 2**63 as the negative integers of the same 64 bits, and times in UTC: as they are read."""
    if isinstance(value, dict):
        return {key: as_signed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_signed(item) for item in value]
    if isinstance(value, datetime):
        return value.replace(tzinfo=None)
    if isinstance(value, str):  # bytes that are UTF-8 are the string, and the same id
        return value.encode()
    return value - 2**64 if isinstance(value, int) and value >= 2**63 else value


@given(case=damaged(), late=st.integers(-3, 3))
def test_exactly_the_bad_rows_are_left_out(case: tuple[Table, list[int]], late: int) -> None:
    table, ends = case
    newest = START_US + late
    expected = []
    for index, row in enumerate(as_read(table)):
        if is_good(row, table.schema, newest):
            expected.append(index)
            newest = row["event_time"]
    skipping = checker(True, START_US + late, table.schema)
    strict = checker(False, START_US + late, table.schema)
    left: list[dict[str, Any]] = []
    for start, end in itertools.pairwise(ends):
        sliced = table.batch().slice(start, end - start)
        good = skipping.check(sliced)
        left += good.to_pylist()
        if good.num_rows < sliced.num_rows:
            with pytest.raises(ConfigError):
                strict.check(sliced)
            strict.newest_us = skipping.newest_us
        else:
            strict.check(sliced)
    whole = table.batch().select(list(left[0]) if left else []).to_pylist()
    assert as_signed(left) == as_signed([whole[index] for index in expected])
    assert skipping.skipped == len(table.rows) - len(expected)
