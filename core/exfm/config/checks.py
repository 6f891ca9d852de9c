"""The checks that span sections: the graph of models, and models against the data's schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from graphlib import CycleError, TopologicalSorter

from exfm.config.experiment import Bucket, ExperimentConfig, ModelConfig, SupervisionConfig
from exfm.config.inputs import ModelInput, resolve_inputs
from exfm.errors import ConfigError, suggestion
from exfm.interfaces.schema import CategoricalFeature, DenseFeature, FeatureSchema, SequenceFeature

CONTROL_SUFFIX = ".control"


@dataclass(frozen=True)
class Arm:
    """One model that is trained: a model of the experiment, or the control of one.

    Attributes:
        name: the model's name, with ``.control`` for a control arm.
        base: the model's name under ``models``.
        teachers: the names under ``models`` and ``teachers`` that it learns from, without repetition.
        inputs: the stored vectors of teachers that are its input.
    """

    name: str
    base: str
    config: ModelConfig
    tasks: tuple[str, ...]
    teachers: tuple[str, ...]
    inputs: tuple[ModelInput, ...] = ()

    @property
    def is_control(self) -> bool:
        """Whether it is trained without transfer to measure the gain of its base."""
        return self.name != self.base

    @property
    def control(self) -> str | None:
        """Name of the arm that its gain is measured against; None where it has no control."""
        named = self.config.control
        if isinstance(named, str):
            return named
        return self.name + CONTROL_SUFFIX if named else None


def check_experiment(config: ExperimentConfig, schema: FeatureSchema, file: str) -> tuple[Arm, ...]:
    """Checks what no single field can, and returns the arms with teachers before students.

    Raises:
        ConfigError: a teacher that does not exist, a cycle, a feature, task or column the data does not have, a
            student that shares no task with its teacher, a batch that no chunk can hold.
    """
    for name, teacher in config.teachers.items():
        if name in config.models:
            raise ConfigError(f"{file}: teachers.{name}: a model has this name; give the teacher another")
        _check_names(teacher.predictions, schema.tasks, "task", f"{file}: teachers.{name}.predictions")
    for name, model in config.models.items():
        _check_model(model, config, schema, f"{file}: models.{name}")
    graph = {
        name: tuple(teacher for teacher in _teachers(model) if teacher in config.models)
        for name, model in config.models.items()
    }
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        cycle = error.args[1]
        read = {spec.config.teacher for spec in config.models[cycle[1]].inputs}
        key = "inputs" if cycle[0] in read else "transfer"
        raise ConfigError(
            f"{file}: models.{cycle[1]}.{key}: teachers form a cycle: {' teaches '.join(cycle)}"
        ) from None
    arms: list[Arm] = []
    for name in sorted(order, key=lambda name: (_depth(name, graph), list(config.models).index(name))):
        model = config.models[name]
        tasks = _tasks(model, schema)
        inputs = resolve_inputs(model, config, schema, f"{file}: models.{name}.inputs")
        arms.append(Arm(name, name, model, tasks, _teachers(model), inputs))
        if model.control is True:
            nothing = {"transfer": (), "inputs": (), "control": False, "supervision": SupervisionConfig()}
            untaught = model.model_copy(update=nothing)
            arms.append(Arm(name + CONTROL_SUFFIX, name, untaught, tasks, ()))
    return tuple(arms)


def _depth(name: str, graph: dict[str, tuple[str, ...]]) -> int:
    return 1 + max((_depth(teacher, graph) for teacher in graph[name]), default=0)


def _teachers(model: ModelConfig) -> tuple[str, ...]:
    taught = (teacher for spec in model.transfer for teacher in spec.config.teachers)
    return tuple(dict.fromkeys((*taught, *(spec.config.teacher for spec in model.inputs))))


def _tasks(model: ModelConfig, schema: FeatureSchema) -> tuple[str, ...]:
    return schema.tasks if model.tasks is None else model.tasks


def _check_names(given: Iterable[str], allowed: Iterable[str], what: str, place: str) -> None:
    names = list(allowed)
    for name in given:
        if name not in names:
            raise ConfigError(f"{place}: the data has no {what} {name!r}.{suggestion(name, names)}")


def _check_model(model: ModelConfig, config: ExperimentConfig, schema: FeatureSchema, place: str) -> None:
    _check_names(model.features or (), (feature.name for feature in schema.features), "feature", f"{place}.features")
    _check_names(model.tasks or (), schema.tasks, "task", f"{place}.tasks")
    for key, given in (("features", model.features), ("tasks", model.tasks)):
        if given is not None and (not given or len(set(given)) < len(given)):
            raise ConfigError(f"{place}.{key}: name at least one, and each once; given: {list(given)}")
    _check_names(model.where, filter_columns(schema), "column", f"{place}.where")
    for column, condition in model.where.items():
        if isinstance(condition, Bucket):
            buckets = condition.bucket if isinstance(condition.bucket, tuple) else (condition.bucket,)
            if not buckets or not all(0 <= bucket < condition.of for bucket in buckets):
                raise ConfigError(
                    f"{place}.where.{column}.bucket: name at least one, from 0 to {condition.of - 1}; "
                    f"given: {list(buckets)}"
                )
        elif condition == ():
            raise ConfigError(f"{place}.where.{column}: name at least one value; given: []")
    _check_states(model, schema, f"{place}.supervision.states")
    _check_rows(model, schema, f"{place}.supervision.rows")
    resolve_inputs(model, config, schema, f"{place}.inputs")
    _check_managed(model, schema, place)
    if model.batch_size > config.stream.chunk_rows:
        raise ConfigError(
            f"{place}.batch_size: {model.batch_size} rows do not fit in a chunk; raise stream.chunk_rows, "
            f"now {config.stream.chunk_rows}, or lower the batch"
        )
    for index, spec in enumerate(model.transfer):
        for teacher in spec.config.teachers:
            key = "teacher" if teacher == spec.config.teacher else "fallback"
            _check_transfer(model, teacher, spec.config.tasks, config, schema, f"{place}.transfer.{index}.{key}")


def _check_states(model: ModelConfig, schema: FeatureSchema, place: str) -> None:
    """An entity is a categorical feature; what describes it, features that the model sees; a sequence is read raw."""
    seen = schema.select(model.features)
    entities = [feature.name for feature in seen.features if isinstance(feature, CategoricalFeature)]
    features = [feature.name for feature in seen.features if not isinstance(feature, DenseFeature)]
    _check_names(model.supervision.states, entities, "categorical feature that the model sees, called", place)
    for entity, described in model.supervision.described.items():
        _check_names(
            described, features, "feature, other than a dense one, that the model sees, called", f"{place}.{entity}"
        )
        if not described:
            raise ConfigError(f"{place}.{entity}: name at least one feature that describes it; given: []")
    for entity, vector in model.supervision.read.items():
        if vector == "tokens":
            raise ConfigError(
                f"{place}.{entity}.from: a state made of tokens is written as the list of the features that describe "
                f"the entity, such as {entity}: [{entity}]"
            )


def _check_managed(model: ModelConfig, schema: FeatureSchema, place: str) -> None:
    """What follows a table row by row would take the row of one id for another's."""
    managed = schema.select(model.features).managed()
    following = [
        f"transfer.{number}: {spec.name} follows"
        for number, spec in enumerate(model.transfer)
        if spec.component.requires & {"states", "parameters"}
    ]
    following += ["inputs: they follow"] if model.inputs else []
    if managed and following:
        raise ConfigError(
            f"{place}.{following[0]} a teacher row by row, and the ids of table {next(iter(managed))!r} are managed: "
            "their rows change, and differ between models. Leave one of the two out"
        )


def _check_rows(model: ModelConfig, schema: FeatureSchema, place: str) -> None:
    """Rows are those of features with one id, each of a table of its own, and of a model that labels as it trains."""
    seen = schema.select(model.features)
    tables = {feature.name: feature.table_name for feature in seen.features if isinstance(feature, CategoricalFeature)}
    _check_names(model.supervision.rows, tables, "categorical feature that the model sees, called", place)
    read = [tables[feature] for feature in model.supervision.rows]
    twice = next((table for table in read if read.count(table) > 1), None)
    if twice is not None:
        named = ", ".join(feature for feature in model.supervision.rows if tables[feature] == twice)
        raise ConfigError(f"{place}: {named} read one table, {twice!r}: name one of them")
    if model.supervision.rows and model.supervision.delay > timedelta(0):
        raise ConfigError(
            f"{place}: rows are stored while the model trains, and with a delay it labels later; "
            "leave rows out, or set delay: 0s"
        )


def _check_transfer(
    model: ModelConfig,
    teacher: str,
    mapping: Mapping[str, str],
    config: ExperimentConfig,
    schema: FeatureSchema,
    place: str,
) -> None:
    if teacher not in config.models and teacher not in config.teachers:
        names = (*config.models, *config.teachers)
        raise ConfigError(f"{place}: no model is called {teacher!r}.{suggestion(teacher, names)}")
    external = config.teachers.get(teacher)
    own = _tasks(model, schema)
    taught = _tasks(config.models[teacher], schema) if external is None else tuple(external.predictions)
    if not (set(mapping.values()) or set(own)) & set(taught):
        raise ConfigError(
            f"{place}: {teacher!r} predicts {', '.join(taught)}, the student {', '.join(own)}: no task in common"
        )


def filter_columns(schema: FeatureSchema) -> dict[str, str]:
    """The names ``where`` may use, and the Arrow column behind each: scalar features, group, domain, example id."""
    columns = {
        feature.name: feature.source_column
        for feature in schema.features
        if not isinstance(feature, SequenceFeature) and feature.kind != "multi_valued"
    }
    return columns | {column: column for column in (schema.group, schema.domain, schema.example_id) if column}
