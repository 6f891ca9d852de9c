"""What a model's predictions need of a stream: its features, and neither labels nor what other models read."""

from __future__ import annotations

from dataclasses import replace

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.interfaces.schema import FeatureSchema


def to_predict(experiment: Experiment, arm: Arm) -> Experiment:
    """The experiment over the columns that a model reads, and those that its ``where`` asks for."""
    schema = _needed(experiment.schema, arm)
    return replace(experiment, schema=schema, source=experiment.source.select(schema))


def _needed(schema: FeatureSchema, arm: Arm) -> FeatureSchema:
    where = arm.config.where
    seen = schema.select(arm.config.features)
    features = tuple(one for one in schema.features if one in seen.features or one.name in where)
    group = schema.group if schema.group in where else ""
    domain = schema.domain if schema.domain in where else ""
    return schema.model_copy(update={"features": features, "labels": (), "group": group, "domain": domain})
