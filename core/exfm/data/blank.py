"""Examples of which nothing is known: what a process computes with where it has no row and the others have.

Legend: B examples.
"""

from __future__ import annotations

import torch
from torchrec import KeyedJaggedTensor

from exfm.data.batch import Batch, SequenceBatch
from exfm.interfaces.schema import (
    CategoricalFeature,
    DenseFeature,
    FeatureSchema,
    MultiValuedFeature,
    SequenceFeature,
)


def blank_batch(schema: FeatureSchema, size: int) -> Batch:
    """A batch of B examples without ids and events, their numbers and labels 0."""
    features = schema.features
    keys = [one.name for one in features if isinstance(one, CategoricalFeature | MultiValuedFeature)]
    return Batch(
        example_id=torch.zeros(size, dtype=torch.int64),
        event_time_us=torch.zeros(size, dtype=torch.int64),
        group=torch.zeros(size, dtype=torch.int64),
        dense_BF=torch.zeros(size, sum(isinstance(one, DenseFeature) for one in features)),
        sparse=KeyedJaggedTensor(
            keys=keys,
            values=torch.zeros(0, dtype=torch.int64),
            lengths=torch.zeros(len(keys) * size, dtype=torch.int32),
            stride=size,
        ),
        sequences={one.name: _blank_sequence(one, size) for one in features if isinstance(one, SequenceFeature)},
        labels={label.name: torch.zeros(size) for label in schema.labels},
        oracle={label.name: torch.zeros(size) for label in schema.labels if label.oracle},
    )


def _blank_sequence(sequence: SequenceFeature, size: int) -> SequenceBatch:
    dense = sum(field.kind == "dense" for field in sequence.fields)
    ages = torch.zeros(0, dtype=torch.int64) if sequence.times is not None else None
    ids = torch.zeros(0, len(sequence.fields) - dense, dtype=torch.int64)
    return SequenceBatch(ids, torch.zeros(0, dense), torch.zeros(size + 1, dtype=torch.int64), ages)
