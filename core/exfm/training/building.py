"""Builds an arm's modules from its config; what a component refuses is an error with its place in the file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.errors import ConfigError
from exfm.interfaces.schema import FeatureSchema
from exfm.interfaces.transfer_strategy import StudentShape, TeacherShape, TransferStrategy
from exfm.modeling.ranking_model import RankingModel


def build_model(arm: Arm, schema: FeatureSchema) -> RankingModel:
    """The served part of an arm, its tables on the meta device.

    Raises:
        ConfigError: a component refuses its config or its inputs.
    """
    try:
        return RankingModel(arm.config, schema, arm.tasks)
    except ValueError as error:
        raise ConfigError(f"models.{arm.base}: {error}") from error


def build_strategies(arm: Arm, model: RankingModel, teachers: Mapping[str, TeacherShape]) -> list[TransferStrategy]:
    """What transfer adds to an arm, in the order of the file.

    Raises:
        ConfigError: a strategy refuses its teacher.
    """
    student = _student_shape(arm, model)
    strategies = []
    for number, spec in enumerate(arm.config.transfer):
        try:
            strategies.append(spec.build(student, _together([teachers[name] for name in spec.config.teachers])))
        except ValueError as error:
            raise ConfigError(f"models.{arm.base}.transfer.{number}: {error}") from error
    return strategies


def _student_shape(arm: Arm, model: RankingModel) -> StudentShape:
    featurizer = model.featurizer
    tables = {lookup.key: lookup.table for lookup in featurizer.bags}
    return StudentShape(
        arm.tasks, model.backbone.output_dim, model.new_head, arm.config.embedding_dim, tables, featurizer.table_rows
    )


def _together(teachers: Sequence[TeacherShape]) -> TeacherShape:
    """What several teachers know together: each task that one has, and embeddings if all have them in one width."""
    tasks = dict.fromkeys(task for teacher in teachers for task in teacher.tasks)
    widths = {teacher.embedding_dim for teacher in teachers}
    embedding_dim = widths.pop() if len(widths) == 1 else None
    return TeacherShape(teachers[0].name, tuple(tasks), embedding_dim, teachers[0].states)


def teacher_shapes(experiment: Experiment) -> dict[str, TeacherShape]:
    """The shape of every model as a teacher, and of the teachers from elsewhere, by name."""
    shapes = {arm.name: _teacher_shape(arm, experiment.schema) for arm in experiment.arms}
    external = experiment.config.teachers.items()
    return shapes | {name: TeacherShape(name, tuple(config.predictions)) for name, config in external}


def _teacher_shape(arm: Arm, schema: FeatureSchema) -> TeacherShape:
    states = dict.fromkeys(arm.config.supervision.states, arm.config.supervision.state_dim)
    return TeacherShape(arm.name, arm.tasks, _embedding_dim(arm, schema), states)


def check_models(experiment: Experiment) -> None:
    """Builds every arm without memory.

    Raises:
        ConfigError: a component refuses its config, its inputs or its teacher.
    """
    shapes = teacher_shapes(experiment)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        for arm in experiment.arms:
            build_strategies(arm, build_model(arm, experiment.schema), shapes)


def seed_of(seed: int, base: str) -> int:
    """The seed of a model's initialisation: no other model's depends on it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{base}".encode()).digest()[:7], "big")


def _embedding_dim(arm: Arm, schema: FeatureSchema) -> int | None:
    """Width of the embeddings it stores; only the model itself knows, so it is built, without memory."""
    if arm.config.supervision.embedding == "none":
        return None
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return int(build_model(arm, schema).backbone.output_dim)
