"""Describes in a model's record what retention has to know of the model without its experiment file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from typing import Any

from exfm.config.checks import Arm
from exfm.config.keep_section import KeepConfig
from exfm.interfaces.duration import microseconds, microseconds_since_1970, parse_duration

RETENTION = "retention"
"""The key of a model's record."""


@dataclass(frozen=True)
class RetentionRecord:
    """Describes the windows that a model keeps, and the supervision and snapshots that it reads of its teachers.

    Attributes:
        keep: the model's section ``keep``.
        teachers: by teacher, whether the model reads its snapshots, and not its supervision alone.
        start_us: start of the model's windows; 0 where it has all.
        epochs_us: time until which its windows are trained on several times; 0 without epochs.
        delay_us: the delay of its supervision.
        is_labelled: whether a labeller reads its snapshots.
    """

    keep: KeepConfig = field(default_factory=KeepConfig)
    teachers: Mapping[str, bool] = field(default_factory=dict)
    start_us: int = 0
    epochs_us: int = 0
    delay_us: int = 0
    is_labelled: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Returns the record of JSON's types."""
        return asdict(replace(self, keep=KeepConfig())) | {"keep": self.keep.model_dump(mode="json")}


def retention_of_arm(arm: Arm) -> RetentionRecord:
    """Describes a model of an experiment."""
    config = arm.config
    with_snapshots = parameter_teachers(arm)
    start_us = 0
    if config.start is not None:
        start_us = microseconds_since_1970(config.start)
    delay_us = microseconds(config.supervision.delay)
    return RetentionRecord(
        config.keep,
        {name: name in with_snapshots for name in arm.teachers},
        start_us,
        config.epochs.until_us if config.epochs else 0,
        delay_us,
        arm.stores and delay_us > 0,
    )


def read_retention(record: Mapping[str, Any]) -> RetentionRecord:
    """Reads the description from a model's record; of an older record, which has none, the most is assumed."""
    if RETENTION in record:
        raw = record[RETENTION]
        return RetentionRecord(**raw | {"keep": KeepConfig.model_validate(raw["keep"])})
    identity = record["identity"]
    epochs_us = microseconds(timedelta.max) if identity["model"].get("epochs") else 0
    delay_us = microseconds(parse_duration(identity["model"]["supervision"]["delay"]))
    return RetentionRecord(
        teachers=dict.fromkeys(identity["teachers"], True),
        epochs_us=epochs_us,
        delay_us=delay_us,
        is_labelled=record["stores"] and delay_us > 0,
    )


def parameter_teachers(arm: Arm) -> set[str]:
    """Names the teachers whose parameters an arm's strategies require."""
    return {spec.config.teacher for spec in arm.config.transfer if "parameters" in spec.component.requires}
