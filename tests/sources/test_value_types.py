"""Types of columns that JSON writes: each kind of feature has those that it is read from."""

from __future__ import annotations

import pyarrow as pa

import exfm
from exfm.sources.value_types import value_types


def test_each_kind_of_feature_has_its_types() -> None:
    schema = exfm.schema.FeatureSchema.model_validate(
        {
            "features": [
                {"name": "user", "kind": "categorical", "rows": 8},
                {"name": "price_range", "kind": "bucketized", "column": "price", "boundaries": [1]},
                {"name": "user_price", "kind": "crossed", "of": ["user", "price_range"], "rows": 8},
                {"name": "tags", "kind": "multi_valued", "rows": 8, "weights": "tag_weights"},
                {"name": "text", "kind": "vector", "width": 4},
            ],
            "labels": [{"name": "click"}],
        }
    )
    types = {field.name: field.type for field in value_types(schema, ["tags"], "log")}
    numbers = pa.list_(pa.float64())
    assert types == {
        "example_id": pa.int64(), "event_time": pa.int64(), "user": pa.int64(), "price": pa.float64(),
        "tags": pa.list_(pa.string()), "tag_weights": numbers, "text": numbers, "click": pa.int64(),
    }  # fmt: skip
    # A source that is narrowed to a model which sees the cross alone.
    alone = value_types(schema.select(("user_price",)), ["user"], "log")
    assert (alone.field("user").type, alone.field("price").type) == (pa.string(), pa.float64())
