"""Decodes Arrow record batches to Batch: ids to table rows, lists to jagged tensors, without a loop over rows.

Legend: B rows, E events, C id fields, G dense fields.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torchrec import KeyedJaggedTensor

from exfm.data.batch import ROW_WEIGHT, Batch, SequenceBatch
from exfm.data.features import bags, dense_numbers, equal_weights, history, vectors
from exfm.data.validation import event_times
from exfm.interfaces.schema import BagFeature, FeatureSchema, Label, SequenceFeature
from exfm.sources.ids import mix, to_u64


def decode(rows: pa.RecordBatch, schema: FeatureSchema) -> Batch:
    """Turns checked rows into a Batch."""
    # np.array and astype copy throughout: Arrow's memory is read-only, and torch tensors are written in place.
    example_id = example_ids(rows, schema)
    # Without a group column each example is a group, and its id is the key.
    keys = to_u64(rows.column(schema.group)) if schema.group else example_id.view(np.uint64)
    return Batch(
        vectors={feature.name: torch.from_numpy(np.array(vectors(rows, feature))) for feature in schema.vectors},
        weights={name: torch.from_numpy(weight_B) for name, weight_B in weights(rows, schema).items()},
        example_id=torch.from_numpy(example_id),
        event_time_us=torch.from_numpy(np.array(event_times(rows, schema))),
        # Salt 2 is the hash of groups: other salts pick table rows, buckets and remembered ids.
        group=torch.from_numpy(mix(keys, salt=2).view(np.int64)),
        dense_BF=torch.from_numpy(dense_numbers(rows, schema.features)),
        sparse=_sparse(rows, schema),
        sequences={feature.name: _sequence(rows, feature, schema.event_time) for feature in schema.sequences},
        labels={label.name: torch.from_numpy(label_values(rows, label)) for label in schema.labels},
        oracle={
            label.name: torch.from_numpy(_floats(rows.column(label.oracle))) for label in schema.labels if label.oracle
        },
    )


def weights(rows: pa.RecordBatch, schema: FeatureSchema) -> dict[str, npt.NDArray[np.float32]]:
    """Returns the weights (B,) of rows, and of each label: times the negatives that a kept negative stands for."""
    result: dict[str, npt.NDArray[np.float32]] = {}
    row_B = np.ones(rows.num_rows, np.float32)
    if schema.weight:
        row_B = result[ROW_WEIGHT] = _floats(rows.column(schema.weight))
    for label in schema.labels:
        if label.name in schema.weighted:
            stands_for_B = np.where(label_values(rows, label) == 0, 1 / label.sampling_rate, 1)
            result[label.name] = (row_B * stands_for_B).astype(np.float32)
    return result


def example_ids(rows: pa.RecordBatch, schema: FeatureSchema) -> npt.NDArray[np.int64]:
    """Returns the ids (B,) of examples."""
    return np.asarray(rows.column(schema.example_id).to_numpy(zero_copy_only=False)).astype(np.int64)


def label_values(rows: pa.RecordBatch, label: Label) -> npt.NDArray[np.float32]:
    """Returns the values (B,) of a label, NaN where it is not known."""
    return _floats(rows.column(label.source_column))


def _floats(column: pa.Array) -> npt.NDArray[np.float32]:
    return np.array(column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False))


def _sparse(rows: pa.RecordBatch, schema: FeatureSchema) -> KeyedJaggedTensor:
    """Decodes the features of ids, in the schema's order."""
    keys: list[str] = []
    values: list[npt.NDArray[np.int64]] = []
    lengths: list[npt.NDArray[np.int32]] = []
    weights: list[npt.NDArray[np.float32]] = []
    for feature in schema.features:
        if isinstance(feature, BagFeature):
            decoded = bags(rows, feature)
            keys.append(feature.name)
            values.append(decoded.rows_V)
            # int32 lengths, as torchrec expects them.
            lengths.append(decoded.lengths.astype(np.int32))
            # All features have weights or none, as the fused kernels need it.
            if schema.weighs_ids:
                weights_V = decoded.weights_V
                weights.append(equal_weights(decoded.lengths) if weights_V is None else weights_V)
    return KeyedJaggedTensor(
        keys=keys,
        # The empty arrays give the dtype where no feature is sparse.
        values=torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *values])),
        lengths=torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *lengths])),
        stride=rows.num_rows,
        weights=torch.from_numpy(np.concatenate(weights)) if weights else None,
    )


def _sequence(rows: pa.RecordBatch, feature: SequenceFeature, event_time: str) -> SequenceBatch:
    """Decodes the histories of a feature."""
    decoded = history(rows, feature, event_time)
    ids_EC = np.zeros((len(decoded.numbers_EG), 0), np.int64)
    if decoded.ids:
        ids_EC = np.stack(decoded.ids, axis=1)
    return SequenceBatch(
        ids_EC=torch.from_numpy(ids_EC),
        dense_EG=torch.from_numpy(decoded.numbers_EG),
        offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(decoded.lengths)])),
        ages_E=None if decoded.ages is None else torch.from_numpy(decoded.ages),
    )
