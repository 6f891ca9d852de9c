"""Checks of what models are measured against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exfm.config.checks import Arm
from exfm.errors import ConfigError, suggestion


def check_baselines(arms: Sequence[Arm], file: str) -> None:
    """Checks the controls that models name.

    Raises:
        ConfigError: a control that no model is called, that is the model itself, or that shares no task with it.
    """
    by_name = {arm.name: arm for arm in arms}
    for arm in arms:
        if isinstance(arm.config.control, str):
            _check_pair(arm, arm.config.control, by_name, f"{file}: models.{arm.name}.control")


def _check_pair(arm: Arm, baseline: str, arms: Mapping[str, Arm], place: str) -> None:
    if baseline == arm.name:
        raise ConfigError(f"{place}: {baseline!r} cannot be measured against itself; name another model")
    if baseline not in arms:
        raise ConfigError(f"{place}: no model is called {baseline!r}.{suggestion(baseline, arms)}")
    if not set(arm.tasks) & set(arms[baseline].tasks):
        raise ConfigError(
            f"{place}: {arm.name!r} predicts {', '.join(arm.tasks)}, {baseline!r} {', '.join(arms[baseline].tasks)}: "
            "no task in common"
        )
