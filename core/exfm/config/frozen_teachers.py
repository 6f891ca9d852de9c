"""Checks the teachers that a file freezes at a snapshot: this run labels its own stream with them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from exfm.config.checks import Arm
from exfm.config.lenders import Lender
from exfm.config.retention import parameter_teachers
from exfm.errors import ConfigError
from exfm.interfaces.schema import FeatureSchema


def frozen_arm(lender: Lender) -> Arm:
    """Returns a model as its snapshot predicts: additions to its tables are folded in, and rows are not stored.

    Its features are those that it was trained with, whatever the stream here has besides; it labels all traffic.
    """
    update = {
        "features": tuple(feature.name for feature in lender.schema.features),
        "where": {},
        "transfer": (),
        "supervision": lender.arm.config.supervision.model_copy(update={"rows": ()}),
    }
    return replace(lender.arm, config=lender.arm.config.model_copy(update=update))


def check_frozen(lender: Lender, schema: FeatureSchema, arms: Iterable[Arm], key_path: str) -> None:
    """Checks that a snapshot of a model can label the stream, and that its students take nothing else of it.

    Args:
        schema: of the stream.
        arms: the models of the file.
        key_path: file and key of the teacher, for messages.

    Raises:
        ConfigError: the stream lacks a feature, the teacher reads teachers of its own, or a student copies its parts.
    """
    if lender.arm.config.inputs:
        raise ConfigError(
            f"{key_path}.at: {lender.model!r} reads stored vectors of its own teachers (inputs), which a snapshot "
            "alone does not have; leave at out, or freeze a model without inputs"
        )
    features = {feature.name: feature for feature in schema.features}
    for feature in lender.schema.features:
        if feature.name not in features:
            raise ConfigError(
                f"{key_path}.at: the snapshot labels this file's stream, and {lender.model!r} reads the feature "
                f"{feature.name!r}, which stream.source does not have; there are: {', '.join(features)}"
            )
        if feature != features[feature.name]:
            raise ConfigError(
                f"{key_path}.at: the feature {feature.name!r} is another here than in the run of {lender.model!r}: "
                f"{features[feature.name]!r}; there: {feature!r}"
            )
    for arm in arms:
        if lender.arm.name in parameter_teachers(arm):
            raise ConfigError(
                f"{key_path}.at: models.{arm.base} copies parts of {lender.arm.name!r}, or adds its rows, window by "
                "window, and a frozen teacher gives predictions, embeddings and states alone; leave at out, or that "
                "transfer"
            )
