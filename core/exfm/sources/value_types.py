"""Chooses the Arrow types of columns that a log writes as JSON, whose numbers and texts have no Arrow type."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from exfm.errors import suggestion
from exfm.interfaces.derived_features import BucketizedFeature, CrossedFeature
from exfm.interfaces.schema import DenseFeature, FeatureSchema, MultiValuedFeature, SequenceFeature
from exfm.interfaces.vector_feature import VectorFeature


def value_types(
    schema: FeatureSchema, strings: Sequence[str], source: str, event_time: pa.DataType | None = None
) -> pa.Schema:
    """Returns the type of every column: integers for ids except those in ``strings``, floats for dense numbers.

    Args:
        schema: the columns and their use.
        strings: columns whose ids are strings.
        source: the name of the data source, for messages.
        event_time: the type of the time; integers by default.

    Raises:
        ValueError: ``strings`` names a column that holds no ids.
    """
    types: dict[str, pa.DataType] = {}
    ids: list[str] = [column for column in (schema.example_id, schema.group, schema.domain) if column]
    lists: set[str] = set()
    if schema.weight:
        types[schema.weight] = pa.float64()
    for feature in schema.features:
        if isinstance(feature, DenseFeature | BucketizedFeature):
            types[feature.source_column] = pa.float64()
        elif isinstance(feature, VectorFeature):
            types[feature.source_column] = pa.list_(pa.float64())
        elif isinstance(feature, CrossedFeature):
            ids += [read.column for read in feature.parts if read.boundaries is None]
            types |= {read.column: pa.float64() for read in feature.parts if read.boundaries is not None}
        elif isinstance(feature, SequenceFeature):
            if feature.times is not None:
                types[feature.times.column] = pa.list_(pa.float64())
            for field in feature.fields:
                if field.kind == "dense":
                    types[field.source_column] = pa.list_(pa.float64())
                else:
                    ids.append(field.source_column)
                    lists.add(field.source_column)
        else:
            ids.append(feature.source_column)
            if isinstance(feature, MultiValuedFeature):
                lists.add(feature.source_column)
                if feature.weights is not None:
                    types[feature.weights] = pa.list_(pa.float64())
    for label in schema.labels:
        types[label.source_column] = pa.int64()
        if label.oracle:
            types[label.oracle] = pa.float64()
    # A column of ids stays so where another feature reads it as numbers: a double would round large ids.
    for column in ids:
        kind = pa.string() if column in strings else pa.int64()
        types[column] = pa.list_(kind) if column in lists else kind
    for column in strings:
        if column not in ids:
            raise ValueError(
                f"{source}: strings: the schema reads no ids from a column {column!r}.{suggestion(column, ids)}"
            )
    types[schema.event_time] = event_time or pa.int64()
    return pa.schema([(column, types[column]) for column in schema.columns])
