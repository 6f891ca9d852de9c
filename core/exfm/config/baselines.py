"""Checks the baselines of an experiment: controls that models name, and the pairs of ``compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exfm.config.checks import Arm
from exfm.config.experiment import ComparedPair
from exfm.errors import ConfigError, suggestion
from exfm.mappings import by_name


def check_baselines(arms: Sequence[Arm], pairs: Sequence[ComparedPair], file: str) -> None:
    """Checks the controls that models name, and the pairs that are compared.

    Raises:
        ConfigError: no model has the name, a model is compared with itself, or the two models share no task, or not the
            task that is named.
    """
    named = by_name(arms)
    # Only names are checked: the arm of `control: true` always exists.
    for arm in arms:
        if isinstance(arm.config.control, str):
            key = f"{file}: models.{arm.name}.control"
            _check_name(arm.config.control, named, key)
            _check_pair(arm, named[arm.config.control], key)
    for number, pair in enumerate(pairs):
        key = f"{file}: compare.{number}"
        _check_name(pair.model, named, f"{key}.model")
        _check_name(pair.baseline, named, f"{key}.baseline")
        _check_pair(named[pair.model], named[pair.baseline], f"{key}.baseline")
        shared = shared_tasks(named[pair.model], named[pair.baseline])
        if pair.task is not None and pair.task not in shared:
            raise ConfigError(
                f"{key}.task: {pair.model!r} and {pair.baseline!r} do not both predict {pair.task!r}."
                f"{suggestion(pair.task, shared)}"
            )


def shared_tasks(arm: Arm, other: Arm) -> tuple[str, ...]:
    """Lists the tasks that both arms predict, in the order of the first arm."""
    return tuple(task for task in arm.tasks if task in other.tasks)


def _check_name(name: str, arms: Mapping[str, Arm], key: str) -> None:
    if name not in arms:
        raise ConfigError(f"{key}: no model is called {name!r}.{suggestion(name, arms)}")


def _check_pair(arm: Arm, baseline: Arm, key: str) -> None:
    if baseline.name == arm.name:
        raise ConfigError(f"{key}: {arm.name!r} cannot be measured against itself; name another model")
    if not shared_tasks(arm, baseline):
        raise ConfigError(
            f"{key}: {arm.name!r} predicts {', '.join(arm.tasks)}, {baseline.name!r} {', '.join(baseline.tasks)}: "
            "no task in common"
        )
