"""Selects the columns of a stream that a job reads, so that a job of few features does not read the others."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.interfaces.schema import Feature, FeatureSchema


def to_train(experiment: Experiment, arms: Collection[Arm]) -> Experiment:
    """Returns the experiment with only the columns that some models, and their ``where``, read.

    All columns stay if bad rows are skipped, because jobs of the same stream must leave out the same rows.
    """
    if experiment.config.stream.on_bad_row == "skip":
        return experiment
    tasks = {task for arm in arms for task in arm.tasks}
    labels = tuple(label for label in experiment.schema.labels if label.name in tasks)
    return _with_columns(experiment, arms, {"labels": labels})


def to_predict(experiment: Experiment, arm: Arm) -> Experiment:
    """Returns the experiment with only the columns that a model and its ``where`` read, without labels."""
    schema = experiment.schema
    group = schema.group if schema.group in arm.config.where else ""
    return _with_columns(experiment, [arm], {"labels": (), "group": group, "weight": ""})


def _with_columns(experiment: Experiment, arms: Collection[Arm], update: dict[str, object]) -> Experiment:
    schema = experiment.schema
    conditions = {name for arm in arms for name in arm.config.where}
    domain = schema.domain if schema.domain in conditions else ""
    selected = {"features": _features(schema, arms, conditions), "domain": domain, **update}
    narrowed = schema.model_copy(update=selected)
    if narrowed == schema:
        return experiment
    return replace(experiment, schema=narrowed, source=experiment.source.select(narrowed))


def _features(schema: FeatureSchema, arms: Collection[Arm], conditions: Collection[str]) -> tuple[Feature, ...]:
    """Returns the features that some models see or pick their rows by, in the schema's order."""
    seen = {feature.name for arm in arms for feature in schema.select(arm.config.features).features}
    return tuple(feature for feature in schema.features if feature.name in seen or feature.name in conditions)
