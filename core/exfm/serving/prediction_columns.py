"""Selects the columns of a stream that a model's predictions need: its features, without labels."""

from __future__ import annotations

from dataclasses import replace

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.interfaces.schema import FeatureSchema


def to_predict(experiment: Experiment, arm: Arm) -> Experiment:
    """Returns the experiment with only the columns that a model and its ``where`` read."""
    schema = _needed(experiment.schema, arm)
    return replace(experiment, schema=schema, source=experiment.source.select(schema))


def _needed(schema: FeatureSchema, arm: Arm) -> FeatureSchema:
    where = arm.config.where
    seen = schema.select(arm.config.features)
    features = tuple(feature for feature in schema.features if feature in seen.features or feature.name in where)
    group = schema.group if schema.group in where else ""
    domain = schema.domain if schema.domain in where else ""
    return schema.model_copy(update={"features": features, "labels": (), "group": group, "domain": domain})
