"""Formulates the data path a second time, in plain Python: row by row, value by value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import exfm
from tests.data.tables import US_PER_UNIT

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def signed(value: int) -> int:
    """Reads the same 64 bits as a signed integer."""
    return value - 2**64 if value >= 2**63 else value


def splitmix(value: int, salt: int = 0) -> int:
    value = (value + GOLDEN * (salt + 1)) & MASK
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = ((value ^ (value >> shift)) * factor) & MASK
    return value ^ (value >> 31)


def key(value: int | str | bytes | None) -> int:
    """Returns 64 bits of an id; of a string by Horner's rule over its UTF-8 bytes, from the last byte."""
    if isinstance(value, str | bytes):
        total = 0
        for octet in reversed(value.encode() if isinstance(value, str) else value):
            total = (total + octet + 1) * GOLDEN & MASK
        return total
    return 0 if value is None else int(value) & MASK


def table_row(value: int | str, feature: Any) -> int:
    """Returns the table row of an id, for a feature or a sequence's field."""
    assert feature.ids == "hash" or isinstance(value, int)
    return int(value) if feature.ids == "row" else splitmix(key(value)) % feature.rows


def number(value: float, transform: str) -> np.float32:
    """Returns a dense value as a model gets it."""
    single = np.float32(value)
    return np.float32(math.copysign(math.log1p(abs(float(single))), single)) if transform == "log1p" else single


def is_finite(value: float | None) -> bool:
    """Tells whether a number is present, and finite in single precision."""
    return value is not None and abs(value) <= float(np.finfo(np.float32).max)


def is_good(row: dict[str, Any], schema: exfm.schema.FeatureSchema, newest_us: int) -> bool:
    """Tells whether a row follows the schema, after a row of time ``newest_us``."""
    if row[schema.example_id] is None or row[schema.event_time] is None or row[schema.event_time] < newest_us:
        return False
    for label in schema.labels:
        value = row[label.source_column]
        if value is not None and value == value and value not in (0, 1):
            return False
        if label.oracle and not (is_finite(row[label.oracle]) and 0 <= row[label.oracle] <= 1):
            return False
    return all(_is_good_feature(row, feature) for feature in schema.features)


def ages_s(row: dict[str, Any], times: exfm.schema.EventTimes) -> list[int]:
    """Whole seconds from each event of a row to the row."""
    values = [int(value * US_PER_UNIT[times.unit]) for value in row[times.column] or []]
    return [(value if times.holds == "age" else row["event_time"] - value) // 10**6 for value in values]


def _are_good_times(row: dict[str, Any], times: exfm.schema.EventTimes) -> bool:
    earliest, latest = (0, 2**62) if times.holds == "age" else (-(2**62), row["event_time"])
    values = row[times.column] or []
    return all(value is not None and earliest <= value * US_PER_UNIT[times.unit] <= latest for value in values)


def _is_good_feature(row: dict[str, Any], feature: exfm.schema.Feature) -> bool:
    if isinstance(feature, exfm.schema.DenseFeature):
        return is_finite(row[feature.source_column])
    if isinstance(feature, exfm.schema.CategoricalFeature):
        value = row[feature.source_column]
        return value is None or _is_good_id(value, feature)
    if isinstance(feature, exfm.schema.MultiValuedFeature):
        return all(_is_good_id(value, feature) for value in row[feature.source_column] or [])
    assert isinstance(feature, exfm.schema.SequenceFeature)
    lists = [row[field.source_column] or [] for field in feature.fields]
    lengths = {len(values) for values in lists}
    if feature.times is not None:
        lengths.add(len(row[feature.times.column] or []))
        if not _are_good_times(row, feature.times):
            return False
    return len(lengths) == 1 and all(
        is_finite(value) if field.kind == "dense" else _is_good_id(value, field)
        for field, values in zip(feature.fields, lists, strict=True)
        for value in values
    )


def _is_good_id(value: int | str | None, feature: Any) -> bool:
    return value is not None and (feature.ids == "hash" or (isinstance(value, int) and 0 <= value < feature.rows))
