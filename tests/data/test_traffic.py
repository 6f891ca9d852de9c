"""`where`: values, lists of values and buckets, over every type of column."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exfm.config.experiment import Bucket, Condition
from exfm.data.traffic import UnmetConditions, rows_where
from exfm.errors import ConfigError
from exfm.sources.ids import hash_rows, to_u64
from tests.data.reference import key, splitmix
from tests.data.tables import ID_TYPES, ids_in

WORDS = (pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string()))
INTEGERS = (pa.int8(), pa.uint64(), pa.int64(), pa.dictionary(pa.int16(), pa.int32()))


def picked(column: pa.Array, condition: Condition, name: str = "place") -> list[int]:
    rows = pa.record_batch({"column": column})
    index = rows_where(rows, {name: condition}, {name: "column"})
    assert index is not None
    return index.tolist()


@pytest.mark.parametrize("kind", WORDS)
def test_strings(kind: pa.DataType) -> None:
    column = pa.array(["feed", "reels", None, "feed", ""], kind)
    assert picked(column, "feed") == [0, 3]
    assert picked(column, ("reels", "")) == [1, 4]
    assert picked(column, "stories") == []
    assert picked(column.slice(1, 3), ("feed", "reels")) == [0, 2]


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers(kind: pa.DataType) -> None:
    column = pa.array([3, 1, None, 3, 0], kind)
    assert picked(column, 3) == [0, 3]
    assert picked(column, (0, 1)) == [1, 4]
    assert picked(column.slice(2), (3, 7)) == [1]


def test_booleans_and_numbers() -> None:
    assert picked(pa.array([True, None, False]), True) == [0]
    assert picked(pa.array([1, 0, 1], pa.int8()), True) == [0, 2]
    assert picked(pa.array([1.0, 1.5, None, 2.0]), (1, 2)) == [0, 3]


def test_conditions_are_met_together_and_none_is_no_condition() -> None:
    rows = pa.record_batch({"a": [1, 1, 2, 2], "b": ["x", "y", "x", "y"]})
    columns = {"first": "a", "second": "b"}
    both = rows_where(rows, {"first": 2, "second": ("y", "z")}, columns)
    assert both is not None
    assert both.tolist() == [3]
    assert rows_where(rows, {}, columns) is None


@given(data=st.data(), kind=st.sampled_from(ID_TYPES), count=st.integers(2, 7))
def test_buckets_partition_the_rows(data: st.DataObject, kind: pa.DataType, count: int) -> None:
    values = data.draw(st.lists(st.none() | ids_in(kind), max_size=12))
    column = pa.array(values, kind)
    for bucket in range(count):
        expected = [i for i, v in enumerate(values) if v is not None and splitmix(key(v), salt=1) % count == bucket]
        assert picked(column, Bucket(bucket=bucket, of=count)) == expected
    first, second = (picked(column, Bucket(bucket=bucket, of=count)) for bucket in (0, 1))
    assert picked(column, Bucket(bucket=(1, 0), of=count)) == sorted(first + second)
    everyone = picked(column, Bucket(bucket=tuple(range(count)), of=count))
    assert everyone == [index for index, value in enumerate(values) if value is not None]


@pytest.mark.parametrize(("count", "rows"), [(5, 5), (5, 10), (4, 1000)])
def test_a_bucket_is_not_a_stretch_of_a_table(count: int, rows: int) -> None:
    """The users of a bucket spread over table rows as evenly as all users."""
    column = pa.array(np.arange(40_000))
    ids = np.array(picked(column, Bucket(bucket=0, of=count)))
    assert abs(len(ids) - 40_000 / count) < 5 * np.sqrt(40_000 / count)
    observed = np.bincount(hash_rows(to_u64(column), rows)[ids], minlength=rows)
    expected = len(ids) / rows
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert abs(chi_square - (rows - 1)) < 6 * np.sqrt(2 * (rows - 1))


@pytest.mark.parametrize(
    ("column", "condition"),
    [
        (pa.array([1, 2]), "feed"),
        (pa.array([1, 2]), (1, "feed")),
        (pa.array([1, 2], pa.int8()), 300),
        (pa.array([1, 2], pa.uint16()), -1),
        (pa.array([1, 2]).dictionary_encode(), "feed"),
        (pa.array([True, False]), "feed"),
        (pa.array([0.5, 1.5]), "feed"),
        (pa.array([0.5, 1.5]), Bucket(bucket=0, of=2)),
    ],
)
def test_a_value_of_another_type_is_the_users_mistake(column: pa.Array, condition: Condition) -> None:
    with pytest.raises(ConfigError, match=r"^where\.place: "):
        picked(column, condition)


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("value", [False, 72, (72,), (True, False)])
def test_what_is_not_quoted_is_no_string(kind: pa.DataType, value: Condition) -> None:
    """YAML reads no as false and 0110 as 72: as text they would meet nothing, or the rows of another value."""
    with pytest.raises(
        ConfigError, match=r"^where\.place: the column holds strings, and (false|true|72) is none: quote it"
    ):
        picked(pa.array(["no", "false", "72", "0110"], kind), value)


def test_a_condition_that_nothing_meets_is_told_with_what_there_is(caplog: pytest.LogCaptureFixture) -> None:
    where: dict[str, dict[str, Condition]] = {"fm": {}, "vm": {"surface": "fed"}, "late": {"surface": "reels"}}
    columns = {"surface": "place"}
    unmet = UnmetConditions(where, columns)
    unmet.warn()
    for values in (["feed"] * 3 + [None], ["reels", "feed"]):
        rows = pa.record_batch({"place": pa.array(values, pa.string())})
        unmet.add(rows, {model: rows_where(rows, conditions, columns) for model, conditions in where.items()})
    unmet.warn()
    unmet.warn()
    assert caplog.messages == [
        "models.vm.where: none of the first 6 rows meets {surface: fed}; surface holds feed (4), None (1), reels (1)"
    ]
