"""Makes placeholder examples for a process that has no rows left while other processes have some.

Legend: B examples.
"""

from __future__ import annotations

import torch
from torchrec import KeyedJaggedTensor

from exfm.data.batch import ROW_WEIGHT, Batch, SequenceBatch
from exfm.interfaces.schema import BagFeature, DenseFeature, FeatureSchema, SequenceFeature


def blank_batch(schema: FeatureSchema, size: int) -> Batch:
    """Makes a batch of B examples without ids and events; numbers and labels are 0."""
    keys: list[str] = []
    sequences: dict[str, SequenceBatch] = {}
    dense = 0
    for feature in schema.features:
        if isinstance(feature, BagFeature):
            keys.append(feature.name)
        elif isinstance(feature, SequenceFeature):
            sequences[feature.name] = _blank_sequence(feature, size)
        elif isinstance(feature, DenseFeature):
            dense += 1
    # The dtypes are those of decode, because ids and lengths of all processes meet in collectives.
    return Batch(
        vectors={feature.name: torch.zeros(size, feature.width) for feature in schema.vectors},
        weights={name: torch.ones(size) for name in ([ROW_WEIGHT] if schema.weight else []) + list(schema.weighted)},
        example_id=torch.zeros(size, dtype=torch.int64),
        event_time_us=torch.zeros(size, dtype=torch.int64),
        group=torch.zeros(size, dtype=torch.int64),
        dense_BF=torch.zeros(size, dense),
        sparse=KeyedJaggedTensor(
            keys=keys,
            values=torch.zeros(0, dtype=torch.int64),
            lengths=torch.zeros(len(keys) * size, dtype=torch.int32),
            stride=size,
            weights=torch.zeros(0) if schema.weighs_ids else None,
        ),
        sequences=sequences,
        labels={label.name: torch.zeros(size) for label in schema.labels},
        oracle={label.name: torch.zeros(size) for label in schema.labels if label.oracle},
    )


def _blank_sequence(sequence: SequenceFeature, size: int) -> SequenceBatch:
    dense = sum(field.kind == "dense" for field in sequence.fields)
    ages = torch.zeros(0, dtype=torch.int64) if sequence.times is not None else None
    ids = torch.zeros(0, len(sequence.fields) - dense, dtype=torch.int64)
    return SequenceBatch(ids, torch.zeros(0, dense), torch.zeros(size + 1, dtype=torch.int64), ages)
