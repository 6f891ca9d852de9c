"""Mappings of plain values are converted to the arguments that Arrow's columns give, or left to that conversion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import exfm
from exfm.serving.description import Description
from exfm.serving.loaded_model import LoadedModel
from exfm.serving.mapping_decoder import MappingDecoder
from tests.serving.descriptions import description_of

FEATURES: list[dict[str, Any]] = [
    {"name": "user", "kind": "categorical", "rows": 16},
    {"name": "price", "kind": "dense", "transform": "log1p", "missing": "mean"},
    {"name": "city", "kind": "categorical", "rows": 7},
    {"name": "hour", "kind": "dense"},
    {"name": "history", "kind": "sequence", "max_length": 2,
     "fields": [{"name": "item", "column": "items", "rows": 8},
                {"name": "gap", "column": "gaps", "kind": "dense", "missing": "learned"},
                {"name": "shop", "column": "shops", "rows": 9}]},
    {"name": "place", "kind": "categorical", "rows": 5, "ids": "row"},
    {"name": "tags", "kind": "multi_valued", "rows": 8},
    {"name": "visitor", "kind": "categorical", "rows": 16, "ids": "managed"},
]  # fmt: skip
COLUMNS = {
    "user": "int64", "price": "double", "city": "string", "hour": "double", "items": "list of int64",
    "gaps": "list of double", "shops": "list of string", "place": "int64", "tags": "list of string", "visitor": "int64",
}  # fmt: skip
SCHEMA = exfm.schema.FeatureSchema.model_validate({"features": FEATURES, "labels": [{"name": "click"}]})


def description(columns: dict[str, str] = COLUMNS) -> Description:
    return description_of(SCHEMA.features, columns, ["click"])


DESCRIPTION = description()
MODEL = LoadedModel(DESCRIPTION, program=tuple)
INTEGERS, TEXTS = st.integers(-(2**63), 2**63 - 1), st.text("aé\0 ", max_size=4)
NUMBERS = st.floats(-1e15, 1e15) | st.integers(-(2**53) + 1, 2**53 - 1)


@st.composite
def mappings(draw: st.DrawFn) -> dict[str, Any]:
    """Draws a row that every conversion takes."""
    events = draw(st.integers(0, 4))
    missing = st.none() | st.just(float("nan"))
    lists = {
        "items": st.lists(INTEGERS, min_size=events, max_size=events),
        "gaps": st.lists(NUMBERS | missing, min_size=events, max_size=events),
        "shops": st.lists(TEXTS, min_size=events, max_size=events),
        "tags": st.none() | st.lists(TEXTS, max_size=3),
    }
    row = {name: draw(values) for name, values in lists.items()}
    if not events and draw(st.booleans()):
        row["items"] = None
    return row | {
        "user": draw(st.none() | INTEGERS),
        "price": draw(NUMBERS | missing),
        "city": draw(st.none() | TEXTS),
        "hour": draw(NUMBERS),
        "place": draw(st.none() | st.integers(0, 4)),
        "visitor": draw(st.none() | INTEGERS),
        "unused": object(),
    }


@given(st.lists(mappings(), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_rows_are_converted_as_by_arrow(rows: list[dict[str, Any]]) -> None:
    decoded = MappingDecoder(DESCRIPTION).decode(rows)
    assert decoded is not None
    expected = MODEL.convert(MODEL.columns(rows))
    for array, tensor, spec in zip(decoded, expected, DESCRIPTION.inputs, strict=True):
        assert array.dtype == spec.dtype and array.flags.writeable and array.flags.c_contiguous
        np.testing.assert_array_equal(array, tensor.numpy())


ROW: dict[str, Any] = {
    "user": 1, "price": 2.0, "city": "a", "hour": 3, "items": [1, 2, 3], "gaps": [0.5, None, 1],
    "shops": ["a", "b", "c"], "place": 4, "tags": ["x"], "visitor": 7,
}  # fmt: skip


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("hour", None, "row 1: hour: the value is missing, NaN or infinite"),
        ("hour", 1e300, "row 1: hour: the value is missing, NaN or infinite"),
        ("price", float("inf"), "row 1: price: the value is infinite"),
        ("price", 2**60, "price: the values must be double"),
        ("price", "2", "price: the values must be double"),
        ("user", 2**63, "user: the values must be int64"),
        ("user", "5", "user: the values must be int64"),
        ("city", 5, "city: the values must be string"),
        ("place", 5, "row 1: place: a table row is an integer from 0 to 4"),
        ("items", [1, None, 2], "row 1: items: an id in the list is missing"),
        ("items", "123", "row 1: items: the value must be list<"),
        ("items", [1, 2], "row 1: gaps: the list is not as long as that of items"),
        # Of an event that is cut off too.
        ("gaps", [float("inf"), 1, 1], "row 1: gaps: a number in the list is infinite"),
        ("tags", {"x": 1}, "row 1: tags: the value must be list<"),
    ],
)
def test_bad_values_have_the_message_of_arrows_conversion(column: str, value: Any, words: str) -> None:
    rows = [ROW, ROW | {column: value}]
    assert MappingDecoder(DESCRIPTION).decode(rows) is None
    with pytest.raises(exfm.ConfigError, match=words):
        MODEL.tensors(rows)
    missing = {name: kept for name, kept in ROW.items() if name != column}
    with pytest.raises(exfm.ConfigError, match=f"row 1: {column}: the column is missing"):
        MODEL.tensors([ROW, missing])


def test_unusual_values_take_the_general_conversion() -> None:
    """Numbers of numpy, tuples and arrays, and columns that are no plain values."""
    rows = [ROW | {"hour": np.float32(3), "items": (1, 2, 3), "gaps": np.array([0.5, np.nan, 1.0])}]
    assert MappingDecoder(DESCRIPTION).decode(rows) is None
    for tensor, expected in zip(MODEL.tensors(rows), MODEL.tensors([ROW]), strict=True):
        np.testing.assert_array_equal(tensor.numpy(), expected.numpy())
    assert MappingDecoder.can_decode(DESCRIPTION)
    assert not MappingDecoder.can_decode(description(COLUMNS | {"user": "16 bytes"}))
    assert not MappingDecoder.can_decode(DESCRIPTION.model_copy(update={"embeddings": {"fm": 4}}))
