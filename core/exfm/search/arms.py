"""Selects the arms that a search trains, and the parameters that concern each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.config.search_section import SearchSection
from exfm.errors import ConfigError, suggestion
from exfm.experiment.shared_models import model_keys
from exfm.mappings import by_name
from exfm.search.space import Parameters, overrides, two_values

Role = Literal["student", "control", "baseline"]


@dataclass(frozen=True)
class SearchedArm:
    """An arm of a search.

    Attributes:
        arm: the arm, as the file has it.
        role: its part in the objective.
        parameters: the parameters that change it or any of its teachers.
    """

    arm: Arm
    role: Role
    parameters: Parameters

    @property
    def name(self) -> str:
        """Its name; a control is called NAME.control."""
        return self.arm.name


def searched_arms(
    experiment: Experiment, section: SearchSection, load: Callable[[Sequence[str]], Experiment], where: str
) -> tuple[SearchedArm, ...]:
    """Selects the control, which comes first, the student, and the baselines that ``compare`` names for the student.

    Args:
        load: loads the experiment with overrides.
        where: names the file in messages.

    Raises:
        ConfigError: there is no such model, it has no control, or a parameter changes none of the arms.
    """
    arms = by_name(experiment.arms)
    if section.model not in arms:
        raise ConfigError(
            f"{where}: search.model: no model is called {section.model!r}.{suggestion(section.model, arms)}"
        )
    student = arms[section.model]
    if student.control is None:
        raise ConfigError(
            f"{where}: search.model: {section.model} has no control, over which the gain is measured: set "
            f"models.{section.model}.control=true"
        )
    # The control comes first, because all trials are measured against its first trial.
    roles: dict[str, Role] = {student.control: "control", student.name: "student"}
    for pair in experiment.config.compare:
        if pair.model == student.name:
            roles.setdefault(pair.baseline, "baseline")
    concerned = _concerned(section.parameters, load)
    searched: list[SearchedArm] = []
    for name, role in roles.items():
        parameters = {key: section.parameters[key] for key in section.parameters if name in concerned[key]}
        searched.append(SearchedArm(arms[name], role, parameters))
    for key, names in concerned.items():
        # Such a parameter would spend trials without an effect.
        if not names & roles.keys():
            raise ConfigError(f"{where}: search.parameters.{key}: it changes none of {', '.join(roles)}")
    return tuple(searched)


def _concerned(parameters: Parameters, load: Callable[[Sequence[str]], Experiment]) -> dict[str, set[str]]:
    """Returns for each parameter the arms that it changes: those whose checksum depends on its value."""
    concerned: dict[str, set[str]] = {}
    for key, parameter in parameters.items():
        low, high = (model_keys(load(overrides({key: value}))) for value in two_values(parameter))
        # A value may add or remove arms, such as models.vm.control.
        concerned[key] = {name for name in low.keys() | high.keys() if low.get(name) != high.get(name)}
    return concerned


def needed_teachers(experiment: Experiment, name: str) -> list[Arm]:
    """Lists the arms of the experiment that an arm learns from, directly or not, teachers before their students."""
    arms = by_name(experiment.arms)
    needed = {name}
    # Students come after their teachers, so that a pass from the end sees each student first.
    for arm in reversed(experiment.arms):
        if arm.name in needed:
            needed.update(teacher for teacher in arm.teachers if teacher in arms)
    return [arm for arm in experiment.arms if arm.name in needed and arm.name != name]


def first_task(arm: Arm, section: SearchSection, where: str) -> str:
    """Returns the task of the objective.

    Raises:
        ConfigError: the model does not predict it.
    """
    task = section.task or arm.tasks[0]
    if task not in arm.tasks:
        raise ConfigError(f"{where}: search.task: {arm.name} does not predict {task!r}.{suggestion(task, arm.tasks)}")
    return task
