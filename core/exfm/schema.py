"""What a stream's columns are: features, sequences and labels."""

from __future__ import annotations

from exfm.interfaces.derived_features import BucketizedFeature, CrossedFeature
from exfm.interfaces.schema import (
    LABEL_KINDS,
    CategoricalFeature,
    DenseFeature,
    EventTimes,
    Feature,
    FeatureSchema,
    Label,
    LabelKind,
    MultiValuedFeature,
    SequenceFeature,
    SequenceField,
)
from exfm.interfaces.vector_feature import VectorFeature

__all__ = [
    "LABEL_KINDS",
    "BucketizedFeature",
    "CategoricalFeature",
    "CrossedFeature",
    "DenseFeature",
    "EventTimes",
    "Feature",
    "FeatureSchema",
    "Label",
    "LabelKind",
    "MultiValuedFeature",
    "SequenceFeature",
    "SequenceField",
    "VectorFeature",
]
