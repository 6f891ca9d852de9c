"""Tests that picking rows and features of a batch equals picking them before decoding."""

from __future__ import annotations

import pyarrow as pa
import torch
from hypothesis import given
from hypothesis import strategies as st

import exfm
from exfm.data.batch import Batch, SequenceBatch
from exfm.data.decode import decode
from tests.data.tables import Table, tables


def assert_equal(batch: Batch, other: Batch) -> None:
    """Asserts equal bits, types and names."""
    for name in ("example_id", "event_time_us", "group", "dense_BF"):
        torch.testing.assert_close(getattr(batch, name), getattr(other, name), rtol=0, atol=0)
    assert batch.sparse.keys() == other.sparse.keys()
    assert batch.sparse.stride() == other.sparse.stride()
    torch.testing.assert_close(batch.sparse.values(), other.sparse.values(), rtol=0, atol=0)
    torch.testing.assert_close(batch.sparse.lengths(), other.sparse.lengths(), rtol=0, atol=0)
    assert batch.sequences.keys() == other.sequences.keys()
    for name, sequence in batch.sequences.items():
        assert_equal_sequences(sequence, other.sequences[name])
    for mine, its in ((batch.labels, other.labels), (batch.oracle, other.oracle)):
        torch.testing.assert_close(dict(mine), dict(its), rtol=0, atol=0)


def assert_equal_sequences(sequence: SequenceBatch, other: SequenceBatch) -> None:
    for name in ("ids_EC", "dense_EG", "offsets"):
        torch.testing.assert_close(getattr(sequence, name), getattr(other, name), rtol=0, atol=0)
    assert (sequence.ages_E is None) == (other.ages_E is None)
    if sequence.ages_E is not None:
        torch.testing.assert_close(sequence.ages_E, other.ages_E, rtol=0, atol=0)


@given(table=tables(max_rows=8), data=st.data())
def test_select_equals_decoding_those_rows(table: Table, data: st.DataObject) -> None:
    picked = data.draw(st.lists(st.integers(0, len(table.rows) - 1), min_size=1, max_size=10))
    whole = decode(table.batch(), table.schema)
    chosen = decode(table.batch([table.rows[index] for index in picked]), table.schema)
    assert_equal(whole.select(torch.tensor(picked)), chosen)
    again = torch.randperm(len(picked), generator=torch.Generator().manual_seed(0))
    assert_equal(whole.select(torch.tensor(picked)).select(again), whole.select(torch.tensor(picked)[again]))


@given(table=tables(max_rows=8), data=st.data())
def test_a_slice_is_the_rows_it_names(table: Table, data: st.DataObject) -> None:
    size = len(table.rows)
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    whole = decode(table.batch(), table.schema)
    assert_equal(whole.slice(start, stop), decode(table.batch(table.rows[start:stop]), table.schema))
    assert_equal(whole.slice(start, size).slice(0, stop - start), whole.slice(start, stop))
    rows = whole.slice(start, stop)
    assert rows.dense_BF.data_ptr() == whole.dense_BF[start].data_ptr()
    assert rows.sparse.lengths().is_contiguous() and rows.sparse.values().is_contiguous(), "else it cannot be sent"


@given(table=tables(), data=st.data())
def test_only_equals_decoding_those_features(table: Table, data: st.DataObject) -> None:
    names = [feature.name for feature in table.schema.features]
    kept = data.draw(st.sets(st.sampled_from(names)))
    dense = [feature.name for feature in table.schema.features if isinstance(feature, exfm.schema.DenseFeature)]
    columns = torch.tensor([i for i, name in enumerate(dense) if name in kept], dtype=torch.int64)
    narrowed = decode(table.batch(), table.schema).only(frozenset(kept), columns)
    # A user's schema has features; a record of predictions is decoded with a schema without any.
    schema = table.schema.select(tuple(kept))
    assert_equal(narrowed, decode(table.batch(), schema))
    index = torch.arange(len(table.rows)).flip(0)
    assert_equal(narrowed.select(index), decode(table.batch(table.rows[::-1]), schema))


@given(table=tables())
def test_selecting_no_row(table: Table) -> None:
    whole = decode(table.batch(), table.schema)
    none = whole.select(torch.zeros(0, dtype=torch.int64))
    assert none.size == 0
    assert none.dense_BF.shape == (0, whole.dense_BF.shape[1])
    assert none.sparse.values().numel() == 0
    assert all(sequence.offsets.tolist() == [0] for sequence in none.sequences.values())
    assert none.select(torch.zeros(0, dtype=torch.int64)).size == 0


def test_to_the_same_device_is_the_same_batch() -> None:
    schema = exfm.schema.FeatureSchema.model_validate(
        {"features": [{"kind": "dense", "name": "price"}], "labels": [{"name": "click"}]}
    )
    rows = {"example_id": 1, "event_time": 5, "price": 2.0, "click": 1}
    types = {"event_time": pa.timestamp("us"), "example_id": pa.int64(), "price": pa.float32(), "click": pa.int8()}
    batch = decode(Table(schema, types, [rows]).batch(), schema)
    assert batch.to(torch.device("cpu")) is batch
