"""Buckets and crosses: table rows equal those of a column that is made by hand, and errors name the key."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import exfm
from exfm.data.decode import decode
from exfm.data.validation import RowChecker
from tests.data.reference import key, signed, splitmix

BOUNDARIES = [-1.5, 0.0, 0.7, 1e9]
LABELS = [{"name": "click"}]
PRICE = {"name": "price", "kind": "bucketized", "boundaries": BOUNDARIES}
SCHEMA = exfm.schema.FeatureSchema.model_validate(
    {
        "features": [
            {"name": "user", "kind": "categorical", "rows": 8},
            {"name": "city", "kind": "categorical", "rows": 8},
            PRICE,
            {"name": "user_city", "kind": "crossed", "of": ["user", "city"], "rows": 64},
            {"name": "all", "kind": "crossed", "of": ["city", "price", "user"], "rows": 1000},
            {"name": "by_hand", "kind": "categorical", "rows": 64},
            {"name": "all_by_hand", "kind": "categorical", "rows": 1000},
        ],
        "labels": LABELS,
    }
)
CROSS = {"kind": "crossed", "rows": 9}
NUMBERS = st.none() | st.floats(width=32) | st.sampled_from(BOUNDARIES)


def bucket(number: float | None) -> int:
    """The bucket of a number, in plain Python."""
    if number is None or number != number:
        return len(BOUNDARIES) + 1
    return bisect_right(np.array(BOUNDARIES, np.float32).tolist(), float(np.float32(number)))


def cross(*keys: int | None) -> int | None:
    """An id that stands for some keys."""
    mixed = 0
    for value in keys:
        if value is None:
            return None
        mixed = splitmix(mixed ^ value)
    return signed(mixed)


@given(
    rows=st.lists(
        st.tuples(st.none() | st.integers(-9, 9), st.none() | st.sampled_from(["", "Rio", "日"]), NUMBERS),
        min_size=1,
        max_size=8,
    ),
    kind=st.sampled_from([pa.float32(), pa.float64()]),
)
def test_rows_are_those_of_a_column_made_by_hand(rows: list[tuple[Any, Any, Any]], kind: pa.DataType) -> None:
    users, cities, prices = zip(*rows, strict=True)
    keys = [tuple(None if value is None else key(value) for value in pair) for pair in zip(users, cities, strict=True)]
    columns = {
        "example_id": pa.array(range(len(rows))),
        "event_time": pa.array(range(len(rows)), pa.timestamp("us")),
        "user": pa.array(users, pa.int16()),
        "city": pa.array(cities, pa.dictionary(pa.int8(), pa.string())),
        "price": pa.array(prices, kind),
        "by_hand": pa.array([cross(*pair) for pair in keys], pa.int64()),
        "all_by_hand": pa.array(
            [cross(city, bucket(price), user) for (user, city), price in zip(keys, prices, strict=True)], pa.int64()
        ),
        "click": pa.array([0] * len(rows)),
    }
    checked = RowChecker(SCHEMA, skip=False, newest_us=0).check(pa.RecordBatch.from_pydict(columns))
    sparse = decode(checked, SCHEMA).sparse.to_dict()
    assert sparse["price"].values().tolist() == list(map(bucket, prices))
    for name, by_hand in (("user_city", "by_hand"), ("all", "all_by_hand")):
        assert sparse[name].lengths().tolist() == sparse[by_hand].lengths().tolist()
        assert sparse[name].values().tolist() == sparse[by_hand].values().tolist()


def test_a_number_has_its_bucket_in_any_precision() -> None:
    """0.7 in single precision lies below 0.7 in double precision."""
    schema = SCHEMA.select(("price",))
    for kind in (pa.float32(), pa.float64()):
        column = pa.array([0.7, 0.69], kind)
        times = pa.array([1, 2], pa.timestamp("us"))
        rows = pa.RecordBatch.from_pydict({"example_id": [1, 2], "event_time": times, "price": column, "click": [0, 1]})
        assert decode(rows, schema).sparse["price"].values().tolist() == [3, 2]


def test_a_model_may_see_a_cross_without_its_features() -> None:
    alone = SCHEMA.select(("all",))
    assert alone.columns == ("example_id", "event_time", "city", "price", "user", "click")
    assert exfm.schema.FeatureSchema.model_validate_json(alone.model_dump_json()) == alone
    some = SCHEMA.select(("all", "city"))
    assert exfm.schema.FeatureSchema.model_validate_json(some.model_dump_json()) == some
    assert SCHEMA.tables() == {
        "user": 8, "city": 8, "price": 6, "user_city": 64, "all": 1000, "by_hand": 64, "all_by_hand": 1000
    }  # fmt: skip


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (CROSS | {"of": ["user", "prices"]}, "of names 'prices', which is no .* Did you mean 'price'"),
        (CROSS | {"of": ["user", "age"]}, "of names 'age', which is no categorical or bucketized"),
        (CROSS | {"of": ["user"]}, "of\n.*at least 2 items"),
        ({"kind": "bucketized", "boundaries": [1.0, 1.0]}, "boundaries ascend.*given: 1.0 before 1.0"),
        ({"kind": "bucketized", "boundaries": [1e9, 1e9 + 1]}, "in single precision too"),
        ({"kind": "bucketized", "boundaries": [0, float("inf")]}, "boundaries are finite numbers"),
        ({"kind": "bucketized", "boundaries": [0, 1e39]}, "boundaries are finite numbers in single precision"),
        ({"kind": "bucketized", "boundaries": []}, "boundaries\n.*at least 1 item"),
    ],
)
def test_a_feature_that_cannot_be_is_named(feature: dict[str, Any], message: str) -> None:
    features = [{"name": "user", "kind": "categorical", "rows": 8}, {"name": "age", "kind": "dense"}, PRICE]
    with pytest.raises(ValueError, match=message):
        exfm.schema.FeatureSchema.model_validate({"features": [*features, {"name": "x", **feature}], "labels": LABELS})


def test_a_bucket_is_of_numbers() -> None:
    rows = pa.RecordBatch.from_pydict(
        {"example_id": [1], "event_time": pa.array([1], pa.timestamp("us")), "price": ["much"], "click": [0]}
    )
    with pytest.raises(exfm.ConfigError, match="price: the column must be a number, not string"):
        RowChecker(SCHEMA.select(("price",)), skip=False, newest_us=0).check(rows)
