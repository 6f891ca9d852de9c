"""Decoding equals a loop over rows, for random schemas and rows, however the Arrow buffers are cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from hypothesis import given
from hypothesis import strategies as st

import exfm
from exfm.data.batch import Batch
from exfm.data.decode import decode
from tests.data.reference import ages_s, key, number, signed, splitmix, table_row
from tests.data.tables import Table, tables


def bags(batch: Batch) -> dict[str, list[list[int]]]:
    """Returns each sparse feature's table rows, row by row."""
    rows = {}
    for name, feature in batch.sparse.to_dict().items():
        rows[name] = [bag.tolist() for bag in feature.values().split(feature.lengths().tolist())]
    return rows


def events(batch: Batch, name: str) -> list[tuple[list[list[int]], list[list[float]]]]:
    """Returns each history's ids and numbers, row by row."""
    sequence = batch.sequences[name]
    lengths = sequence.offsets.diff().tolist()
    parts = zip(sequence.ids_EC.split(lengths), sequence.dense_EG.split(lengths), strict=True)
    return [(ids.tolist(), numbers.tolist()) for ids, numbers in parts]


def check(batch: Batch, table: Table) -> None:
    """Compares a batch with the loop."""
    rows, schema = table.rows, table.schema
    assert batch.size == len(rows)
    assert batch.example_id.tolist() == [row["example_id"] for row in rows]
    assert batch.event_time_us.tolist() == [row["event_time"] for row in rows]
    who = schema.group or "example_id"
    assert batch.group.tolist() == [signed(splitmix(key(row[who]), salt=2)) for row in rows]
    assert batch.labels["click"].tolist() == [float(row["click"]) for row in rows]
    assert set(batch.oracle) == ({"click"} if schema.labels[0].oracle else set())
    for truth in batch.oracle.values():
        assert truth.tolist() == [float(np.float32(row["truth"])) for row in rows]
    check_dense(batch, table)
    sparse = bags(batch)
    for feature in schema.features:
        if isinstance(feature, exfm.schema.CategoricalFeature):
            values = [row[feature.column] for row in rows]
            expected = [[] if value is None else [table_row(value, feature)] for value in values]
            assert sparse.pop(feature.name) == expected
        elif isinstance(feature, exfm.schema.MultiValuedFeature):
            expected = [[table_row(value, feature) for value in row[feature.column] or []] for row in rows]
            assert sparse.pop(feature.name) == expected
        elif isinstance(feature, exfm.schema.SequenceFeature):
            check_sequence(batch, feature, rows)
    assert not sparse


def check_dense(batch: Batch, table: Table) -> None:
    dense = [feature for feature in table.schema.features if isinstance(feature, exfm.schema.DenseFeature)]
    assert batch.dense_BF.shape == (len(table.rows), len(dense))
    assert batch.dense_BF.dtype == torch.float32
    for column, feature in zip(batch.dense_BF.T, dense, strict=True):
        expected = np.array([number(row[feature.column], feature.transform) for row in table.rows], np.float32)
        np.testing.assert_allclose(column.numpy(), expected, rtol=1e-6)


def check_sequence(batch: Batch, feature: exfm.schema.SequenceFeature, rows: list[dict[str, Any]]) -> None:
    sequence = batch.sequences[feature.name]
    assert sequence.offsets.dtype == torch.int64
    if feature.times is None:
        assert sequence.ages_E is None
    else:
        expected_ages = [age for row in rows for age in ages_s(row, feature.times)[-feature.max_length :]]
        assert sequence.ages_E is not None and sequence.ages_E.dtype == torch.int64
        assert sequence.ages_E.tolist() == expected_ages
    for row, (ids, numbers) in zip(rows, events(batch, feature.name), strict=True):
        kept = {field.name: (row[field.column] or [])[-feature.max_length :] for field in feature.fields}
        id_fields = [field for field in feature.fields if field.kind == "categorical"]
        number_fields = [field for field in feature.fields if field.kind == "dense"]
        length = len(kept[feature.fields[0].name])
        assert ids == [[table_row(kept[field.name][i], field) for field in id_fields] for i in range(length)]
        expected = [[number(kept[field.name][i], field.transform) for field in number_fields] for i in range(length)]
        width = len(number_fields)
        np.testing.assert_allclose(np.reshape(numbers, (length, width)), np.reshape(expected, (length, width)), 1e-6)


@given(table=tables(), before=st.integers(0, 3), after=st.integers(0, 3))
def test_decode_equals_the_loop(table: Table, before: int, after: int) -> None:
    check(decode(table.batch(), table.schema), table)
    check(decode(table.sliced(before, after), table.schema), table)


SCHEMA = exfm.schema.FeatureSchema.model_validate(
    {
        "features": [
            {"kind": "multi_valued", "name": "tags", "rows": 100},
            {
                "kind": "sequence",
                "name": "history",
                "max_length": 3,
                "fields": [{"name": "item", "column": "item", "rows": 50, "ids": "row"},
                           {"name": "age", "column": "age", "kind": "dense"}],
            },
        ],
        "labels": [{"name": "click"}],
    }
)  # fmt: skip


def columns(**lists: pa.Array) -> pa.RecordBatch:
    size = len(lists["item"])
    times = pa.array(range(size), pa.timestamp("us"))
    return pa.record_batch({"example_id": range(size), "event_time": times, "click": [0] * size, **lists})


def test_fixed_size_lists() -> None:
    tags = pa.array([["a", "b"], None, ["b", "a"]], pa.list_(pa.string(), 2))
    item = pa.array([[1, 2, 3, 4], [5, 6, 7, 8], None], pa.list_(pa.int32(), 4))
    age = pa.array([[0.5, 1, 1.5, 2], [2.5, 3, 3.5, 4], None], pa.list_(pa.float32(), 4))
    batch = decode(columns(tags=tags, item=item, age=age), SCHEMA)
    a, b = table_row("a", SCHEMA.features[0]), table_row("b", SCHEMA.features[0])
    assert bags(batch) == {"tags": [[a, b], [], [b, a]]}
    newest = [([[2], [3], [4]], [[1], [1.5], [2]]), ([[6], [7], [8]], [[3], [3.5], [4]]), ([], [])]
    assert events(batch, "history") == newest
    tail = decode(columns(tags=tags, item=item, age=age).slice(1), SCHEMA)
    assert bags(tail) == {"tags": [[], [b, a]]}
    assert events(tail, "history") == newest[1:]


def test_histories_of_mixed_list_types_and_hidden_values() -> None:
    """A null list may still have values behind it, which are no events."""
    offsets = pa.array([0, 2, 4, 5], pa.int32())
    item = pa.ListArray.from_arrays(offsets, pa.array([1, 2, 3, 4, 5]), mask=pa.array([False, True, False]))
    age = pa.array([[1, 2], [], [3]], pa.large_list(pa.int8()))
    tags = pa.array([[], None, [3, 3]], pa.list_(pa.int64()))
    batch = decode(columns(tags=tags, item=item, age=age), SCHEMA)
    assert events(batch, "history") == [([[1], [2]], [[1], [2]]), ([], []), ([[5]], [[3]])]
    assert batch.sparse["tags"].lengths().tolist() == [0, 0, 2]


def test_a_null_in_a_dictionarys_values_is_a_missing_id() -> None:
    schema = exfm.schema.FeatureSchema.model_validate(
        {"features": [{"kind": "categorical", "name": "city", "rows": 9}], "labels": [{"name": "click"}]}
    )
    city = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int8()), pa.array(["Rio", None]))
    batch = decode(columns(item=city, city=city), schema)
    rio = table_row("Rio", schema.features[0])
    assert bags(batch) == {"city": [[rio], [], [rio]]}


def test_tensors_do_not_share_memory_with_arrow() -> None:
    """Arrow's buffers are read-only; with shared memory an in-place operation would corrupt other batches."""
    tags = pa.array([[1]], pa.list_(pa.int64()))
    rows = columns(tags=tags, item=pa.array([[1]]), age=pa.array([[1.0]], pa.list_(pa.float32())))
    batch = decode(rows, SCHEMA)
    for tensor in (batch.example_id, batch.event_time_us, batch.labels["click"], batch.sequences["history"].ids_EC):
        tensor.add_(1)
    assert rows.column("item").to_pylist() == [[1]]
    assert rows.column("example_id").to_pylist() == [0]
