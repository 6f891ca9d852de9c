"""What a stream's columns are: features, sequences and labels."""

from __future__ import annotations

from exfm.interfaces.schema import (
    CategoricalFeature,
    DenseFeature,
    EventTimes,
    Feature,
    FeatureSchema,
    Label,
    MultiValuedFeature,
    SequenceFeature,
    SequenceField,
)

__all__ = [
    "CategoricalFeature",
    "DenseFeature",
    "EventTimes",
    "Feature",
    "FeatureSchema",
    "Label",
    "MultiValuedFeature",
    "SequenceFeature",
    "SequenceField",
]
