"""Packs students into groups that are trained in a job each, which reads, decodes and joins once for all."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.config.needed_columns import to_train
from exfm.launch.job_needs import table_bytes

_MOST_BYTES = 32 << 30
"""Largest tables of a group in bytes: of larger models a job each costs little more reading, and restarts sooner."""


@dataclass(frozen=True)
class Group:
    """Models that a job trains together.

    Attributes:
        name: the job's name.
        models: names under ``models``, in the order of the file.
    """

    name: str
    models: tuple[str, ...]


@dataclass(frozen=True)
class Savings:
    """Counts the reading of groups, and of a job for each of their models.

    Attributes:
        models: number of models, controls left out.
        jobs: number of jobs: each reads and decodes its traffic once.
        columns: columns that the jobs read, added up.
        columns_apart: columns that a job for each model would read, added up.
    """

    models: int
    jobs: int
    columns: int
    columns_apart: int

    def __str__(self) -> str:
        share = self.columns / max(self.columns_apart, 1)
        return (
            f"{self.models} models in {self.jobs} jobs: each row is read and decoded {self.jobs} times, not "
            f"{self.models} times, and {self.columns} columns of it in all, not {self.columns_apart} ({share:.2f})"
        )


def pack(experiment: Experiment, kept: Mapping[str, Sequence[str]], group_size: int) -> list[Group]:
    """Packs the models of an experiment into groups; a model that teaches has a job to itself.

    Students of the same teachers and traffic share a job, those that see the same columns first.

    Args:
        kept: the models of groups that there are already, by name. They stay as they are, because their jobs may be
            running: new models come into new groups.
        group_size: most models of a group, controls counted.
    """
    arms: dict[str, list[Arm]] = {}
    for arm in experiment.arms:
        arms.setdefault(arm.base, []).append(arm)
    groups: list[Group] = []
    for name, models in kept.items():
        # A command that names a model which has left the file would be refused.
        there = tuple(model for model in models if model in arms)
        if there:
            groups.append(Group(name, there))
    grouped = {model for group in groups for model in group.models}
    positions = {name: position for position, name in enumerate(experiment.config.models)}
    shares: dict[str, list[str]] = {}
    for model in arms:
        if model not in grouped:
            shares.setdefault(_shared_by(experiment, arms[model][0]), []).append(model)
    for models in shares.values():
        for packed in _packed(experiment, models, arms, group_size):
            groups.append(_named(sorted(packed, key=positions.__getitem__), {group.name for group in groups}))
    first = {group.name: min(positions[model] for model in group.models) for group in groups}
    return sorted(groups, key=lambda group: first[group.name])


def savings(experiment: Experiment, groups: Collection[Group]) -> Savings:
    """Counts what the groups of several models save."""
    # A single model reads as much in a group as in a job, so that it would only dilute the figures.
    shared = [group for group in groups if len(group.models) > 1]
    together = apart = 0
    for group in shared:
        together += _columns(experiment, group.models)
        for model in group.models:
            apart += _columns(experiment, [model])
    return Savings(sum(len(group.models) for group in shared), len(shared), together, apart)


def _shared_by(experiment: Experiment, arm: Arm) -> str:
    """Returns a text that is equal for models that may share a job: their teachers, and the rows that they see."""
    taught = {teacher for other in experiment.arms for teacher in other.teachers}
    section = arm.config.model_dump(mode="json", include={"where", "start", "epochs"})
    # A name makes the text unique, so that a model that teaches shares its job with no other.
    alone = arm.base if arm.base in taught else ""
    return json.dumps([sorted(arm.teachers), section, alone], sort_keys=True)


def _packed(
    experiment: Experiment, models: Sequence[str], arms: Mapping[str, Sequence[Arm]], group_size: int
) -> Iterator[list[str]]:
    """Yields groups of at most so many arms, and of tables of at most ``_MOST_BYTES`` unless it is a single model."""
    packed: list[str] = []
    count = size = 0
    # Sorted, so that models of the same columns come together: a job reads the columns that any of its models sees.
    for model in sorted(models, key=lambda model: sorted(experiment.config.models[model].features or ())):
        cost = sum(table_bytes(experiment, arm) for arm in arms[model])
        # Never before the first model: a model above the limits has a group to itself.
        if packed and (count + len(arms[model]) > group_size or size + cost > _MOST_BYTES):
            yield packed
            packed, count, size = [], 0, 0
        packed.append(model)
        count += len(arms[model])
        size += cost
    if packed:
        yield packed


def _named(models: Sequence[str], taken: Collection[str]) -> Group:
    """Names a group by its first model; a number tells it from a group whose first model has left the file."""
    others = f"-and-{len(models) - 1}-more" if len(models) > 1 else ""
    name = stem = f"train-{models[0]}{others}"
    number = 2
    while name in taken:
        name = f"{stem}-{number}"
        number += 1
    return Group(name, tuple(models))


def _columns(experiment: Experiment, models: Collection[str]) -> int:
    """Counts the columns that a job with these models reads."""
    arms = [arm for arm in experiment.arms if arm.base in models]
    return len(to_train(experiment, arms).schema.columns)
