"""Builds the transfer strategies of an arm, and describes its teachers to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.config.retention import parameter_teachers
from exfm.errors import ConfigError
from exfm.interfaces.schema import FeatureSchema, Label
from exfm.interfaces.transfer_specs import StudentSpec, TeacherSpec
from exfm.interfaces.transfer_strategy import TransferStrategy
from exfm.modeling.build import build_model
from exfm.modeling.parts import part_specs
from exfm.modeling.ranking_model import RankingModel
from exfm.transfer.declared_transfers import DeclaredTransfers, check_copied_once, declared_transfers


def build_strategies(
    arm: Arm, model: RankingModel, teachers: Mapping[str, TeacherSpec]
) -> tuple[list[TransferStrategy], list[DeclaredTransfers]]:
    """Builds an arm's strategies, in the order of the file, and asks them for the transfers that they declare.

    Raises:
        ConfigError: a strategy refuses its teacher, or declares a transfer that does not fit student or teacher.
    """
    student = _student_spec(arm, model)
    strategies: list[TransferStrategy] = []
    declared: list[DeclaredTransfers] = []
    for number, spec in enumerate(arm.config.transfer):
        try:
            teacher = _merge([teachers[name] for name in spec.config.teachers])
            strategies.append(spec.build(student, teacher))
            declared.append(declared_transfers(strategies[-1], student, teacher))
            check_copied_once(declared)
        except ValueError as error:
            raise ConfigError(f"models.{arm.base}.transfer.{number}: {error}") from error
    return strategies, declared


def _student_spec(arm: Arm, model: RankingModel) -> StudentSpec:
    """Describes an arm's model as a student."""
    featurizer = model.featurizer
    tables = {lookup.key: lookup.table for lookup in featurizer.bags}
    return StudentSpec(
        arm.tasks,
        model.backbone.output_dim,
        model.new_head,
        arm.config.embedding_dim,
        tables,
        featurizer.table_rows,
        part_specs(model),
        model.heads_by_task,
    )


def _merge(teachers: Sequence[TeacherSpec]) -> TeacherSpec:
    """Describes several teachers as a single teacher: all their tasks, and embeddings if all have the same width."""
    tasks = dict.fromkeys(task for teacher in teachers for task in teacher.tasks)
    widths = {teacher.embedding_dim for teacher in teachers}
    embedding_dim = widths.pop() if len(widths) == 1 else None
    first, has_age = teachers[0], all(teacher.has_age for teacher in teachers)
    labels: dict[str, Label] = {}
    for teacher in teachers:
        for task in teacher.tasks:
            label = teacher.labels.get(task, Label(name=task))
            kept = labels.setdefault(task, label)
            if (kept.kind, kept.classes) != (label.kind, label.classes):
                raise ValueError(
                    f"fallback: {task} is {kept.kind} for {first.name!r}, and {label.kind} for {teacher.name!r}"
                )
    return TeacherSpec(first.name, tuple(tasks), embedding_dim, first.states, first.parts, has_age, labels)


def teacher_specs(experiment: Experiment) -> dict[str, TeacherSpec]:
    """Describes every model as a teacher, and the teachers from elsewhere, by name."""
    shared = {teacher for arm in experiment.arms for teacher in parameter_teachers(arm)}
    specs = {arm.name: _teacher_spec(arm, experiment.schema, arm.name in shared) for arm in experiment.arms}
    for name, lender in experiment.lenders.items():
        specs[name] = _teacher_spec(lender.arm, lender.schema, name in shared)
    for name, config in experiment.config.external_teachers.items():
        labels = experiment.schema.labels_of(tuple(config.predictions))
        specs[name] = TeacherSpec(name, tuple(config.predictions), has_age=False, labels=labels)
    return specs


def _teacher_spec(arm: Arm, schema: FeatureSchema, shared: bool) -> TeacherSpec:
    """Describes a model as a teacher; its widths and model parts are read from a model on the meta device."""
    states = dict.fromkeys(arm.config.supervision.states, arm.config.supervision.state_dim)
    stores_embeddings = arm.config.supervision.embedding != "none"
    embedding_dim = arm.config.supervision.embedding_dim
    if not shared and (embedding_dim is not None or not stores_embeddings):
        return TeacherSpec(arm.name, arm.tasks, embedding_dim, states, labels=arm.labels)
    # A fork of the generator, because building on the meta device draws numbers too.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = build_model(arm, schema)
    if stores_embeddings:
        embedding_dim = embedding_dim or model.backbone.output_dim
    parts = part_specs(model) if shared else {}
    return TeacherSpec(arm.name, arm.tasks, embedding_dim, states, parts, labels=arm.labels)


def check_models(experiment: Experiment) -> None:
    """Builds every arm on the meta device, which takes no memory.

    Raises:
        ConfigError: a component refuses its config, its inputs or its teacher.
    """
    specs = teacher_specs(experiment)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        for arm in experiment.arms:
            build_strategies(arm, build_model(arm, experiment.schema), specs)
