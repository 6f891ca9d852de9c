"""Arrow to Batch: ids to table rows, lists to jagged tensors, all vectorised.

Legend: B rows, E events, C id fields, G dense fields.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from exfm.data.batch import Batch, SequenceBatch
from exfm.data.ids import hash_rows, mix, to_u64
from exfm.data.validation import event_times, list_lengths
from exfm.interfaces.schema import (
    CategoricalFeature,
    DenseFeature,
    FeatureSchema,
    MultiValuedFeature,
    SequenceFeature,
    SequenceField,
)

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def decode(rows: pa.RecordBatch, schema: FeatureSchema) -> Batch:
    """Turns checked rows into a Batch."""
    example_id = np.asarray(rows.column(schema.example_id).to_numpy(zero_copy_only=False)).astype(np.int64)
    keys = to_u64(rows.column(schema.group)) if schema.group else example_id.view(np.uint64)
    dense = [feature for feature in schema.features if isinstance(feature, DenseFeature)]
    columns = [_dense(rows.column(feature.source_column), feature.transform) for feature in dense]
    return Batch(
        example_id=torch.from_numpy(example_id),
        event_time_us=torch.from_numpy(np.array(event_times(rows, schema))),
        group=torch.from_numpy(mix(keys, salt=2).view(np.int64)),
        dense_BF=torch.from_numpy(np.stack(columns, axis=1) if columns else np.zeros((rows.num_rows, 0), np.float32)),
        sparse=_sparse(rows, schema),
        sequences={
            feature.name: _sequence(rows, feature)
            for feature in schema.features
            if isinstance(feature, SequenceFeature)
        },
        labels={label.name: _float_tensor(rows.column(label.source_column)) for label in schema.labels},
        oracle={label.name: _float_tensor(rows.column(label.oracle)) for label in schema.labels if label.oracle},
    )


def _float_tensor(column: pa.Array) -> Tensor:
    return torch.from_numpy(np.array(column.cast(pa.float32()).to_numpy(zero_copy_only=False)))


def _dense(column: pa.Array, transform: Literal["none", "log1p"]) -> F32:
    values = np.asarray(column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False))
    return np.sign(values) * np.log1p(np.abs(values)) if transform == "log1p" else values


def _table_rows(column: pa.Array, feature: CategoricalFeature | MultiValuedFeature | SequenceField) -> I64:
    keys = to_u64(column)
    return keys.view(np.int64) if feature.ids == "row" else hash_rows(keys, feature.rows)


def _sparse(rows: pa.RecordBatch, schema: FeatureSchema) -> KeyedJaggedTensor:
    keys: list[str] = []
    values: list[I64] = []
    lengths: list[npt.NDArray[np.int32]] = []
    for feature in schema.features:
        if isinstance(feature, CategoricalFeature):
            column = rows.column(feature.source_column)
            ids, counts = _table_rows(column, feature), np.ones(len(column), np.int32)
            # Not null_count: it overlooks a null that lies in a dictionary's values.
            present = column.is_valid().to_numpy(zero_copy_only=False)
            if not present.all():
                ids, counts = ids[present], present.astype(np.int32)
        elif isinstance(feature, MultiValuedFeature):
            column = rows.column(feature.source_column)
            ids, counts = _table_rows(column.flatten(), feature), list_lengths(column).astype(np.int32)
        else:
            continue
        keys.append(feature.name)
        values.append(ids)
        lengths.append(counts)
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *values])),
        lengths=torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *lengths])),
        stride=rows.num_rows,
    )


def _sequence(rows: pa.RecordBatch, feature: SequenceFeature) -> SequenceBatch:
    lengths = list_lengths(rows.column(feature.fields[0].source_column))
    kept = np.minimum(lengths, feature.max_length)
    newest: slice | npt.NDArray[np.bool_] = slice(None)
    if (kept < lengths).any():
        ends = np.cumsum(lengths)
        before_end = np.repeat(ends, lengths) - np.arange(ends[-1])
        newest = before_end <= feature.max_length
    ids: list[I64] = []
    dense: list[F32] = []
    for field in feature.fields:
        events = rows.column(field.source_column).flatten()
        if field.kind == "dense":
            dense.append(_dense(events, field.transform)[newest])
        else:
            ids.append(_table_rows(events, field)[newest])
    total = int(kept.sum())
    return SequenceBatch(
        ids_EC=torch.from_numpy(np.stack(ids, axis=1) if ids else np.zeros((total, 0), np.int64)),
        dense_EG=torch.from_numpy(np.stack(dense, axis=1) if dense else np.zeros((total, 0), np.float32)),
        offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(kept)])),
    )
