"""Checks constraints across sections: the graph of models, and models against the data's schema."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from graphlib import CycleError, TopologicalSorter

from exfm.config.experiment import Bucket, Condition, ExperimentConfig, ExternalTeacher, ModelConfig
from exfm.config.inputs import DescribedModel, ModelInput, resolve_inputs, with_sources
from exfm.config.run_files import CONTROL_SUFFIX
from exfm.config.supervision_section import SupervisionConfig
from exfm.config.training_sections import GateConfig
from exfm.errors import ConfigError, suggestion
from exfm.interfaces.derived_features import BucketizedFeature
from exfm.interfaces.schema import CategoricalFeature, DenseFeature, FeatureSchema, Label, LabelKind


@dataclass(frozen=True)
class Arm:
    """A model that is trained: a model of the experiment, or its control.

    Attributes:
        name: the model's name, with ``.control`` for a control arm.
        base: the model's name under ``models``.
        teachers: the names under ``models`` and ``teachers`` that it learns from, without repetition.
        inputs: the stored vectors of teachers that are its input.
        stores: whether it stores its supervision, for students of this file or of others.
        labels: the labels of its tasks, which a job that reads no labels needs too.
    """

    name: str
    base: str
    config: ModelConfig
    tasks: tuple[str, ...]
    teachers: tuple[str, ...]
    inputs: tuple[ModelInput, ...] = ()
    stores: bool = False
    labels: Mapping[str, Label] = field(default_factory=dict)

    @property
    def lookups(self) -> list[str]:
        """Lists the lookups at serving, by which the model reads the stored vectors of teachers."""
        return [name for entry in self.inputs for name in entry.lookups]

    def late_tasks(self, arrived: Collection[str]) -> tuple[str, ...]:
        """Returns the tasks to train rows on for which the labels of ``arrived``, of a common delay, have arrived.

        They are these tasks, or with ``late_labels: together`` all tasks with a delay once the longest has passed.
        """
        if self.config.late_labels == "each":
            return tuple(task for task in self.tasks if task in arrived)
        delays = {task: self.labels[task].delay for task in self.tasks if self.labels[task].delay > timedelta(0)}
        longest = max(delays.values(), default=timedelta(0))
        return tuple(delays) if any(delays.get(task) == longest for task in arrived) else ()

    @property
    def labels_later(self) -> bool:
        """Returns whether it stores supervision that a labeller makes from its snapshots, after its delay."""
        return self.stores and self.config.supervision.delay > timedelta(0)

    @property
    def is_control(self) -> bool:
        """Tells whether the arm is trained without transfer, to measure the gain of its base."""
        return self.name != self.base

    @property
    def control(self) -> str | None:
        """Returns the name of the arm that the gain is measured against; None without a control."""
        control = self.config.control
        if isinstance(control, str):
            return control
        return self.name + CONTROL_SUFFIX if control else None


def row_conditions(arms: Iterable[Arm]) -> dict[str, Mapping[str, Condition]]:
    """Maps each arm to the conditions on the rows that it sees."""
    return {arm.name: arm.config.where for arm in arms}


def check_experiment(
    config: ExperimentConfig, schema: FeatureSchema, file: str, borrowed: Mapping[str, DescribedModel] | None = None
) -> tuple[Arm, ...]:
    """Checks constraints that no single field can, and returns the arms, teachers before students.

    Args:
        borrowed: the teachers that other runs train, by name.

    Raises:
        ConfigError: a teacher that does not exist, a cycle, a feature, task or column the data does not have, a
            student that shares no task with its teacher, a batch that no chunk can hold.
    """
    for name in config.teachers:
        if name in config.models:
            raise ConfigError(f"{file}: teachers.{name}: a model has this name; give the teacher another")
    for name, teacher in config.external_teachers.items():
        _check_names(teacher.predictions, schema.tasks, "task", f"{file}: teachers.{name}.predictions")
        _check_predictions(teacher, schema, f"{file}: teachers.{name}.predictions")
    borrowed = borrowed or {}
    for name, model in config.models.items():
        _check_model(model, config, schema, f"{file}: models.{name}", borrowed)
    graph: dict[str, tuple[str, ...]] = {}
    for name, model in config.models.items():
        # Teachers from elsewhere are not trained, and cannot be in a cycle.
        graph[name] = tuple(teacher for teacher in _teachers(model) if teacher in config.models)
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        # The second argument lists the nodes of the cycle, the first node again at the end (documented by graphlib).
        cycle = error.args[1]
        read = {spec.config.teacher for spec in config.models[cycle[1]].inputs}
        key = "inputs" if cycle[0] in read else "transfer"
        raise ConfigError(
            f"{file}: models.{cycle[1]}.{key}: teachers form a cycle: {' teaches '.join(cycle)}"
        ) from None
    arms: list[Arm] = []
    taught = {teacher for model in config.models.values() for teacher in _teachers(model)}
    # By depth and then as in the file, because a topological order alone leaves independent models in any order.
    positions = {name: position for position, name in enumerate(config.models)}
    for name in sorted(order, key=lambda name: (_depth(name, graph), positions[name])):
        model = config.models[name]
        tasks = _model_tasks(model, schema)
        labels = schema.labels_of(tasks)
        inputs = resolve_inputs(model, config, schema, f"{file}: models.{name}.inputs", _configs(borrowed))
        described = {arm.name: DescribedModel(arm, schema) for arm in arms}
        inputs = with_sources(inputs, {**borrowed, **described})
        stores = _stores(model, name in taught, not taught)
        arms.append(Arm(name, name, model, tasks, _teachers(model), inputs, stores, labels))
        if model.control is True:
            nothing = {"transfer": (), "inputs": (), "control": False, "supervision": SupervisionConfig()}
            untaught = model.model_copy(update=nothing)
            arms.append(Arm(name + CONTROL_SUFFIX, name, untaught, tasks, (), labels=labels))
    return tuple(arms)


def _stores(model: ModelConfig, is_taught_from: bool, nobody_learns: bool) -> bool:
    """Tells whether a model stores its supervision.

    Args:
        is_taught_from: whether a model of the file learns from it.
        nobody_learns: whether no model of the file has a teacher: then the file's models can only be for other files.
    """
    if model.supervision.store is not None:
        return model.supervision.store or is_taught_from
    return is_taught_from or nobody_learns or model.supervision != SupervisionConfig()


def _configs(borrowed: Mapping[str, DescribedModel]) -> dict[str, ModelConfig]:
    """Returns the sections of the teachers that other runs train, by name."""
    return {name: described.arm.config for name, described in borrowed.items()}


def _depth(name: str, graph: dict[str, tuple[str, ...]]) -> int:
    """Returns the number of models on the longest path of teachers that ends at a model."""
    return 1 + max((_depth(teacher, graph) for teacher in graph[name]), default=0)


def _teachers(model: ModelConfig) -> tuple[str, ...]:
    """Lists the teachers of a model's transfer and inputs, each once, in the order of the file."""
    teachers: list[str] = []
    for spec in model.transfer:
        teachers += spec.config.teachers
    for spec in model.inputs:
        teachers.append(spec.config.teacher)
    return tuple(dict.fromkeys(teachers))


def _model_tasks(model: ModelConfig, schema: FeatureSchema) -> tuple[str, ...]:
    return schema.tasks if model.tasks is None else model.tasks


def _check_names(names: Iterable[str], allowed: Iterable[str], noun: str, key_path: str) -> None:
    """Checks that all names are allowed; ``noun`` says in the message which kind of thing they name."""
    allowed = list(allowed)
    for name in names:
        if name not in allowed:
            raise ConfigError(f"{key_path}: the data has no {noun} {name!r}.{suggestion(name, allowed)}")


def _check_model(
    model: ModelConfig,
    config: ExperimentConfig,
    schema: FeatureSchema,
    key_path: str,
    borrowed: Mapping[str, DescribedModel],
) -> None:
    _check_names(model.features or (), (feature.name for feature in schema.features), "feature", f"{key_path}.features")
    _check_names(model.tasks or (), schema.tasks, "task", f"{key_path}.tasks")
    for key, names in (("features", model.features), ("tasks", model.tasks)):
        if names is not None and (not names or len(set(names)) < len(names)):
            raise ConfigError(f"{key_path}.{key}: name at least one, and each once; given: {list(names)}")
    _check_names(model.where, filter_columns(schema), "column", f"{key_path}.where")
    for column, condition in model.where.items():
        if isinstance(condition, Bucket):
            buckets = condition.bucket if isinstance(condition.bucket, tuple) else (condition.bucket,)
            if not buckets or not all(0 <= bucket < condition.of for bucket in buckets):
                raise ConfigError(
                    f"{key_path}.where.{column}.bucket: name at least one, from 0 to {condition.of - 1}; "
                    f"given: {list(buckets)}"
                )
        elif condition == ():
            raise ConfigError(f"{key_path}.where.{column}: name at least one value; given: []")
    _check_states(model, schema, f"{key_path}.supervision.states")
    _check_rows(model, schema, f"{key_path}.supervision.rows")
    resolve_inputs(model, config, schema, f"{key_path}.inputs", _configs(borrowed))
    _check_managed(model, schema, key_path)
    _check_epochs(model, key_path)
    _check_gate(model, schema, f"{key_path}.gate")
    if model.batch_size > config.stream.chunk_rows:
        raise ConfigError(
            f"{key_path}.batch_size: {model.batch_size} rows do not fit in a chunk; raise stream.chunk_rows, "
            f"now {config.stream.chunk_rows}, or lower the batch"
        )
    for index, spec in enumerate(model.transfer):
        for teacher in spec.config.teachers:
            key = "teacher" if teacher == spec.config.teacher else "fallback"
            teacher_tasks = _teacher_tasks(teacher, config, schema, borrowed, f"{key_path}.transfer.{index}.{key}")
            _check_shared_task(
                model, teacher, teacher_tasks, spec.config.tasks, schema, f"{key_path}.transfer.{index}.{key}"
            )


def _check_states(model: ModelConfig, schema: FeatureSchema, key_path: str) -> None:
    """Checks ``supervision.states``: an entity is a categorical feature, described by features that the model sees."""
    # Dense features cannot describe an entity: a state is made of embeddings and of raw sequences.
    seen = schema.select(model.features)
    entities = seen.entity_tables()
    allowed = [feature.name for feature in seen.features if not isinstance(feature, DenseFeature)]
    _check_names(model.supervision.states, entities, "categorical feature that the model sees, called", key_path)
    for entity, described in model.supervision.described.items():
        _check_names(
            described,
            allowed,
            "feature, other than a dense one, that the model sees, called",
            f"{key_path}.{entity}",
        )
        if not described:
            raise ConfigError(f"{key_path}.{entity}: name at least one feature that describes it; given: []")
    for entity, vector in model.supervision.read.items():
        if vector == "tokens":
            raise ConfigError(
                f"{key_path}.{entity}.from: a state made of tokens is written as the list of the features that "
                f"describe the entity, such as {entity}: [{entity}]"
            )


def _check_epochs(model: ModelConfig, key_path: str) -> None:
    """Checks that the epochs end after the model's start."""
    if model.epochs is not None and model.start is not None and model.epochs.until <= model.start:
        raise ConfigError(
            f"{key_path}.epochs.until: {model.epochs.until:%Y-%m-%dT%H:%M}Z is not after the model's start, "
            f"{model.start:%Y-%m-%dT%H:%M}Z: no window would be trained on again"
        )


def _check_managed(model: ModelConfig, schema: FeatureSchema, key_path: str) -> None:
    """Checks that managed ids are not combined with teachers that are followed row by row."""
    # With managed ids a row changes its id over time, and the same row has other ids in other models.
    managed = schema.select(model.features).managed()
    following: list[str] = []
    for number, spec in enumerate(model.transfer):
        if spec.component.requires & {"states", "parameters"}:
            following.append(f"transfer.{number}: {spec.name} follows")
    if any(spec.component.reads == "states" for spec in model.inputs):
        following.append("inputs: they follow")
    if managed and following:
        raise ConfigError(
            f"{key_path}.{following[0]} a teacher row by row, and the ids of table {next(iter(managed))!r} are "
            "managed: their rows change, and differ between models. Leave one of the two out"
        )


def _check_gate(model: ModelConfig, schema: FeatureSchema, key_path: str) -> None:
    """Checks that a model with a gate of its own has a label that is known at the end of a window."""
    late = {label.name for label in schema.labels if label.delay > timedelta(0)}
    tasks = _model_tasks(model, schema)
    # The default gate judges no window of such a model.
    if model.gate not in (None, GateConfig.of_own_windows()) and late.issuperset(tasks):
        raise ConfigError(
            f"{key_path}: a window is judged when it ends, and the labels {', '.join(tasks)} are known later: leave "
            "gate out, or give the model a task whose label has no delay"
        )


def _check_rows(model: ModelConfig, schema: FeatureSchema, key_path: str) -> None:
    """Checks ``supervision.rows``: categorical features without a shared table, of a model that labels as it trains."""
    # A shared table would be stored twice, and a model that labels later has rows of another time.
    seen = schema.select(model.features)
    tables = seen.entity_tables()
    _check_names(model.supervision.rows, tables, "categorical feature that the model sees, called", key_path)
    read = [tables[feature] for feature in model.supervision.rows]
    twice = next((table for table in read if read.count(table) > 1), None)
    if twice is not None:
        named = ", ".join(feature for feature in model.supervision.rows if tables[feature] == twice)
        raise ConfigError(f"{key_path}: {named} read one table, {twice!r}: name one of them")
    if model.supervision.rows and model.supervision.delay > timedelta(0):
        raise ConfigError(
            f"{key_path}: rows are stored while the model trains, and with a delay it labels later; "
            "leave rows out, or set delay: 0s"
        )


def _teacher_tasks(
    teacher: str, config: ExperimentConfig, schema: FeatureSchema, borrowed: Mapping[str, DescribedModel], key_path: str
) -> tuple[str, ...]:
    """Returns the tasks that a teacher predicts, wherever it is trained."""
    if teacher in config.models:
        return _model_tasks(config.models[teacher], schema)
    if teacher in borrowed:
        return borrowed[teacher].arm.tasks
    if teacher in config.external_teachers:
        return tuple(config.external_teachers[teacher].predictions)
    names = (*config.models, *config.teachers)
    raise ConfigError(f"{key_path}: no model is called {teacher!r}.{suggestion(teacher, names)}")


def _check_predictions(teacher: ExternalTeacher, schema: FeatureSchema, key_path: str) -> None:
    """Checks that the predictions of a teacher from elsewhere are on the scale of their labels."""
    allowed: dict[LabelKind, tuple[str, ...]] = {"binary": ("probability", "logit"), "regression": ("value",)}
    for task, label in schema.labels_of(tuple(teacher.predictions)).items():
        scale = teacher.predictions[task].kind
        if label.kind not in allowed:
            raise ConfigError(
                f"{key_path}.{task}: {task} has a {label.kind} label, of which a column holds no prediction: a model "
                "of a run can teach it (run, model), files cannot"
            )
        if scale not in allowed[label.kind]:
            raise ConfigError(
                f"{key_path}.{task}.kind: {task} has a {label.kind} label, whose predictions are "
                f"{' or '.join(allowed[label.kind])}; given: {scale}"
            )


def _check_shared_task(
    model: ModelConfig,
    teacher: str,
    teacher_tasks: tuple[str, ...],
    mapping: Mapping[str, str],
    schema: FeatureSchema,
    key_path: str,
) -> None:
    student_tasks = _model_tasks(model, schema)
    # An explicit mapping of tasks replaces the match by name.
    if not (set(mapping.values()) or set(student_tasks)) & set(teacher_tasks):
        raise ConfigError(
            f"{key_path}: {teacher!r} predicts {', '.join(teacher_tasks)}, the student {', '.join(student_tasks)}: "
            "no task in common"
        )


def filter_columns(schema: FeatureSchema) -> dict[str, str]:
    """Maps the names allowed in ``where`` to Arrow columns: scalar features, group, domain, example id."""
    columns: dict[str, str] = {}
    for feature in schema.features:
        if isinstance(feature, DenseFeature | CategoricalFeature | BucketizedFeature):
            columns[feature.name] = feature.source_column
    for column in (schema.group, schema.domain, schema.example_id):
        if column:
            columns[column] = column
    return columns
