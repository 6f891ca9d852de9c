"""FeatureSchema derives tables and columns, and names mistakes."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

import exfm

USER = {"kind": "categorical", "name": "user", "rows": 10}
ITEM = {"kind": "categorical", "name": "item", "rows": 20, "table": "items"}
PRICE = {"kind": "dense", "name": "price", "column": "price_usd"}
HISTORY = {
    "kind": "sequence", "name": "history", "max_length": 5,
    "fields": [{"name": "item", "column": "seen", "rows": 20, "table": "items"}, {"name": "rating", "rows": 6},
               {"name": "gap", "kind": "dense"}],
}  # fmt: skip
CLICK = {"name": "click"}


def schema(
    *features: dict[str, Any], labels: tuple[dict[str, Any], ...] = (CLICK,), **more: Any
) -> exfm.schema.FeatureSchema:
    return exfm.schema.FeatureSchema.model_validate({"features": features, "labels": labels, **more})


def test_tables_are_shared_by_name() -> None:
    assert schema(USER, ITEM, PRICE, HISTORY).tables() == {"user": 10, "items": 20, "history_rating": 6}


def test_a_feature_without_a_column_reads_the_column_of_its_name() -> None:
    user, price, history = schema(USER, PRICE, HISTORY).features
    assert isinstance(user, exfm.schema.CategoricalFeature)
    assert isinstance(price, exfm.schema.DenseFeature)
    assert isinstance(history, exfm.schema.SequenceFeature)
    assert (user.source_column, price.source_column) == ("user", "price_usd")
    assert [field.source_column for field in history.fields] == ["seen", "rating", "gap"]


def test_times_of_events_are_a_column_that_a_field_may_read_too() -> None:
    timed = {**HISTORY, "times": {"column": "at", "holds": "time"}}
    assert schema(timed).columns == ("example_id", "event_time", "seen", "rating", "gap", "at", "click")
    assert schema({**HISTORY, "times": {"column": "gap"}}).columns == schema(HISTORY).columns


def test_select_keeps_the_schemas_order_and_all_other_columns() -> None:
    whole = schema(USER, ITEM, PRICE, HISTORY, group="user", labels=(CLICK, {"name": "buy"}))
    selected = whole.select(("price", "user"))
    assert [feature.name for feature in selected.features] == ["user", "price"]
    assert selected.tables() == {"user": 10}
    assert (selected.group, selected.tasks) == ("user", ("click", "buy"))
    assert whole.select(None) is whole


@pytest.mark.parametrize(
    ("features", "labels", "words"),
    [
        ((USER, USER), (CLICK,), "names user twice"),
        ((USER, {**PRICE, "name": "click"}), (CLICK,), "names click twice"),
        ((USER,), (CLICK, CLICK), "names click twice"),
        ((ITEM, {**USER, "table": "items"}), (CLICK,), "'items' is shared, but 'user' gives it rows=10, ids=hash"),
        ((ITEM, {**USER, "table": "items", "rows": 20, "ids": "row"}), (CLICK,), "rows=20, ids=row"),
        ((ITEM, {**HISTORY, "fields": [{"name": "item", "table": "items", "rows": 3}]}), (CLICK,), "gives it rows=3"),
        ((), (CLICK,), "at least 1"),
        ((USER,), (), "at least 1"),
        (({**HISTORY, "fields": []},), (CLICK,), "at least 1"),
        (({**USER, "name": "user id"},), (CLICK,), "pattern"),
        (({**USER, "rows": 0},), (CLICK,), "greater than 0"),
        (({**HISTORY, "max_length": 0},), (CLICK,), "greater than 0"),
        (({**HISTORY, "times": {"holds": "age"}},), (CLICK,), "column"),
        (({**HISTORY, "times": {"column": "at", "holds": "when"}},), (CLICK,), "'age' or 'time'"),
        (({**HISTORY, "times": {"column": "at", "unit": "weeks"}},), (CLICK,), "'min'"),
        (({**PRICE, "rows": 3},), (CLICK,), "rows"),
        (({**PRICE, "transform": "log"},), (CLICK,), "log1p"),
        (({**USER, "kind": "cathegorical"},), (CLICK,), "categorical"),
        (({"name": "user", "rows": 3},), (CLICK,), "kind"),
    ],
)  # fmt: skip
def test_mistakes_are_named(features: Any, labels: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        schema(*features, labels=labels)
