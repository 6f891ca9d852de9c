"""Selects the columns and the rows of a stream that a job needs, so that it does not read the others."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from exfm.config.checks import Arm, filter_columns
from exfm.config.experiment import Bucket, Scalar
from exfm.config.loading import Experiment
from exfm.interfaces.data_source import NeededRows
from exfm.interfaces.schema import Feature, FeatureSchema


def to_train(experiment: Experiment, arms: Collection[Arm], lenders: Collection[Arm] = ()) -> Experiment:
    """Returns the experiment with only the columns that some models, and their ``where``, read, and the rows they see.

    All columns and rows stay if bad rows are skipped, because jobs of the same stream must leave out the same rows.

    Args:
        arms: models that read the stream.
        lenders: models of other runs, which see rows of ``arms``.
    """
    if experiment.config.stream.on_bad_row == "skip":
        return experiment
    tasks = {task for arm in (*arms, *lenders) for task in arm.tasks}
    labels = tuple(label for label in experiment.schema.labels if label.name in tasks)
    return _with_rows(_with_columns(experiment, [*arms, *lenders], {"labels": labels}), arms)


def to_predict(experiment: Experiment, arm: Arm) -> Experiment:
    """Returns the experiment with only the columns that a model and its ``where`` read, without labels, and the rows
    it sees.
    """
    schema = experiment.schema
    group = schema.group if schema.group in arm.config.where else ""
    narrowed = _with_columns(experiment, [arm], {"labels": (), "group": group, "weight": ""})
    return narrowed if experiment.config.stream.on_bad_row == "skip" else _with_rows(narrowed, [arm])


def _with_columns(experiment: Experiment, arms: Collection[Arm], update: dict[str, object]) -> Experiment:
    schema = experiment.schema
    conditions = {name for arm in arms for name in arm.config.where}
    domain = schema.domain if schema.domain in conditions else ""
    selected = {"features": _features(schema, arms, conditions), "domain": domain, **update}
    narrowed = schema.model_copy(update=selected)
    if narrowed == schema:
        return experiment
    return replace(experiment, schema=narrowed, source=experiment.source.select(narrowed))


def _with_rows(experiment: Experiment, arms: Collection[Arm]) -> Experiment:
    """Returns the experiment with a source that need not read the rows that no model sees."""
    columns = filter_columns(experiment.schema)
    readers: list[NeededRows] = []
    for arm in arms:
        if not arm.config.where:
            return experiment
        needed: dict[str, tuple[Scalar, ...] | None] = {}
        for name, condition in arm.config.where.items():
            if isinstance(condition, Bucket):
                # Only hashes of values tell the bucket; nor may it hide another condition on the column.
                needed.setdefault(columns[name], None)
            else:
                needed[columns[name]] = condition if isinstance(condition, tuple) else (condition,)
        if needed not in readers:
            readers.append(needed)
    return replace(experiment, source=experiment.source.select_rows(readers)) if readers else experiment


def _features(schema: FeatureSchema, arms: Collection[Arm], conditions: Collection[str]) -> tuple[Feature, ...]:
    """Returns the features that some models see or pick their rows by, in the schema's order."""
    seen = {feature.name for arm in arms for feature in schema.select(arm.config.features).features}
    return tuple(feature for feature in schema.features if feature.name in seen or feature.name in conditions)
