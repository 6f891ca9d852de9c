"""Builds an arm's modules from its config; what a component refuses is an error with its place in the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.errors import ConfigError, RunError
from exfm.interfaces.parallel_model import ParallelModel
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.interfaces.schema import FeatureSchema
from exfm.interfaces.transfer_specs import StudentSpec, TeacherSpec
from exfm.interfaces.transfer_strategy import TransferStrategy
from exfm.modeling.growth import Growth
from exfm.modeling.parts import part_specs
from exfm.modeling.ranking_model import RankingModel
from exfm.transfer.declared_transfers import DeclaredTransfers, check_copied_once, declared_transfers
from exfm.transfer.teacher_parameters import parameter_teachers

_SHAPE = {"backbone", "sequence_encoder", "embedding_dim", "embedding_init", "dense_tokens", "head_hidden"}
"""Fields of a model that decide its parameters, beside its features and tasks."""


def build_model(arm: Arm, schema: FeatureSchema) -> RankingModel:
    """The served part of an arm, its tables on the meta device.

    Raises:
        ConfigError: a component refuses its config or its inputs.
    """
    try:
        return RankingModel(arm.config, schema, arm.tasks, arm.inputs)
    except ValueError as error:
        raise ConfigError(f"models.{arm.base}: {error}") from error


def place(plan: ParallelPlan, model: RankingModel, arm: Arm) -> ParallelModel:
    """Places a model on the devices of a plan, in place.

    Raises:
        RunError: there is not enough memory.
    """
    try:
        return plan.parallelize(model, arm.config.optimizer.tables)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "t allocate memory" not in str(error):
            raise
        rows, dim = model.featurizer.table_rows, model.featurizer.dim
        largest = max(rows, key=lambda table: rows[table])
        raise RunError(
            f"models.{arm.base}: no memory for its tables, {sum(rows.values()) * dim * 4:,} bytes without the state of "
            f"their optimizer; the largest is {largest!r}, {rows[largest]:,} rows of {dim} numbers. `exfm plan CONFIG` "
            "says what a process needs, and what would make it fit"
        ) from error


def growth_of(arm: Arm, schema: FeatureSchema, seed: int) -> Growth:
    """What brings an arm's snapshots to the rows that the schema's tables have now. ``seed``: the experiment's."""
    return Growth(schema, arm.config.embedding_init, seed_of(seed, arm, schema))


def build_strategies(
    arm: Arm, model: RankingModel, teachers: Mapping[str, TeacherSpec]
) -> tuple[list[TransferStrategy], list[DeclaredTransfers]]:
    """Builds an arm's strategies, in the order of the file, and asks them for the transfers that they declare.

    Raises:
        ConfigError: a strategy refuses its teacher, or declares what cannot be done.
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
    )


def _merge(teachers: Sequence[TeacherSpec]) -> TeacherSpec:
    """Describes several teachers as one: all of their tasks, and embeddings if all have them in one width."""
    tasks = dict.fromkeys(task for teacher in teachers for task in teacher.tasks)
    widths = {teacher.embedding_dim for teacher in teachers}
    embedding_dim = widths.pop() if len(widths) == 1 else None
    return TeacherSpec(teachers[0].name, tuple(tasks), embedding_dim, teachers[0].states, teachers[0].parts)


def teacher_specs(experiment: Experiment) -> dict[str, TeacherSpec]:
    """Describes every model as a teacher, and the teachers from elsewhere, by name."""
    shared = {teacher for arm in experiment.arms for teacher in parameter_teachers(arm)}
    specs = {arm.name: _teacher_spec(arm, experiment.schema, arm.name in shared) for arm in experiment.arms}
    external = experiment.config.teachers.items()
    return specs | {name: TeacherSpec(name, tuple(config.predictions)) for name, config in external}


def _teacher_spec(arm: Arm, schema: FeatureSchema, shared: bool) -> TeacherSpec:
    """Describes a model as a teacher; a model that is built without memory knows its widths and parts."""
    states = dict.fromkeys(arm.config.supervision.states, arm.config.supervision.state_dim)
    stores_embeddings = arm.config.supervision.embedding != "none"
    embedding_dim = arm.config.supervision.embedding_dim
    if not shared and (embedding_dim is not None or not stores_embeddings):
        return TeacherSpec(arm.name, arm.tasks, embedding_dim, states)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = build_model(arm, schema)
    if stores_embeddings:
        embedding_dim = embedding_dim or model.backbone.output_dim
    return TeacherSpec(arm.name, arm.tasks, embedding_dim, states, part_specs(model) if shared else {})


def check_models(experiment: Experiment) -> None:
    """Builds every arm without memory.

    Raises:
        ConfigError: a component refuses its config, its inputs or its teacher.
    """
    specs = teacher_specs(experiment)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        for arm in experiment.arms:
            build_strategies(arm, build_model(arm, experiment.schema), specs)


def seed_of(seed: int, arm: Arm, schema: FeatureSchema) -> int:
    """Hashes the experiment's seed and a model's shape into the seed of the model's initial weights.

    Models of equal shape start from equal weights, whatever their names, traffic, optimizers, batches and transfer. The
    hash leaves out teacher inputs and states, which draw from a fork of the generator: all other weights are those of
    the same model without them. It leaves out the number of a table's rows, which may grow while a run goes on.
    """
    config = arm.config
    shape = {
        **config.model_dump(mode="json", include=_SHAPE),
        "features": [feature.name for feature in schema.select(config.features).features],
        "tasks": list(arm.tasks),
    }
    digest = hashlib.sha256(json.dumps([seed, config.init_seed, shape], sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:7], "big")
