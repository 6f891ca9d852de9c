"""A model's teacher inputs: stored vectors that it reads, at the cost of a look-up each when it is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from exfm.config.component_field import ComponentSpec
from exfm.config.experiment import ExperimentConfig, ModelConfig
from exfm.errors import ConfigError, suggestion
from exfm.interfaces.input_spec import EXAMPLE, InputSpec
from exfm.interfaces.schema import FeatureSchema

if TYPE_CHECKING:
    from exfm.config.checks import Arm


@dataclass(frozen=True)
class DescribedModel:
    """Describes a model wherever it is trained, so that its network can be built.

    Attributes:
        schema: the columns of its stream, which a student need not see.
    """

    arm: Arm
    schema: FeatureSchema


@dataclass(frozen=True)
class ModelInput:
    """Describes an entry under ``models.M.inputs``, resolved.

    Attributes:
        spec: the component and its Config.
        inputs: its surroundings.
        source: the teacher whose network decides the width of ``inputs``, which is 0 until the model is built.
    """

    spec: ComponentSpec
    inputs: InputSpec
    source: DescribedModel | None = None

    @property
    def teacher(self) -> str:
        """Returns the teacher's name."""
        name: str = self.spec.config.teacher
        return name

    @property
    def reads_embedding(self) -> bool:
        """Tells whether it reads the teacher's embedding of the example, and not states of entities."""
        return bool(self.spec.component.reads == "embedding")

    @property
    def lookups(self) -> tuple[str, ...]:
        """Lists the vectors that serving looks up, as results.json names them."""
        if self.reads_embedding:
            return (f"{self.teacher}.embedding (of each pair)",)
        newest = f" (newest {self.inputs.length})" if self.inputs.length > 1 else ""
        return tuple(f"{self.teacher}.{entity}{newest}" for entity in self.inputs.widths)


def resolve_inputs(
    model: ModelConfig,
    config: ExperimentConfig,
    schema: FeatureSchema,
    key_path: str,
    borrowed: Mapping[str, ModelConfig],
) -> tuple[ModelInput, ...]:
    """Resolves and checks a model's inputs, in the order of the file.

    Args:
        borrowed: the teachers that other runs train, by name.

    Raises:
        ConfigError: a teacher that is no model of the file, a state or an embedding that it does not store, a state of
            a feature that the model does not see; a label that is known late.
    """
    _check_labels(model, schema, key_path)
    inputs: list[ModelInput] = []
    models = {**borrowed, **config.models}
    for number, spec in enumerate(model.inputs):
        inputs.append(_resolve(spec, model, config, models, schema, f"{key_path}.{number}"))
    return tuple(inputs)


def with_sources(inputs: tuple[ModelInput, ...], teachers: Mapping[str, DescribedModel]) -> tuple[ModelInput, ...]:
    """Adds the teacher to each input that reads a representation that is stored whole."""
    completed: list[ModelInput] = []
    for entry in inputs:
        if entry.reads_embedding and not entry.inputs.widths[EXAMPLE]:
            entry = replace(entry, source=teachers[entry.teacher])
        completed.append(entry)
    return tuple(completed)


def _resolve(
    spec: ComponentSpec,
    model: ModelConfig,
    config: ExperimentConfig,
    models: Mapping[str, ModelConfig],
    schema: FeatureSchema,
    key_path: str,
) -> ModelInput:
    teacher, entities = spec.config.teacher, spec.config.entities
    embedding = spec.component.reads == "embedding"
    if teacher in config.external_teachers:
        stored = "embedding" if embedding else "states"
        raise ConfigError(f"{key_path}.teacher: {teacher!r} is a teacher from elsewhere, which stores no {stored}")
    if teacher not in models:
        raise ConfigError(f"{key_path}.teacher: no model is called {teacher!r}.{suggestion(teacher, models)}")
    if embedding:
        return _resolve_embedding(spec, model, models[teacher], key_path)
    supervision, seen = models[teacher].supervision, schema.select(model.features)
    features = seen.entity_tables()
    if len(set(entities)) < len(entities):
        raise ConfigError(f"{key_path}.entities: name each once; given: {list(entities)}")
    for entity in entities:
        if entity not in supervision.states:
            hint = suggestion(entity, supervision.states)
            hint = hint or f" It stores none: see models.{teacher}.supervision.states."
            raise ConfigError(f"{key_path}.entities: {teacher!r} stores no state of {entity!r}.{hint}")
        if entity not in features:
            raise ConfigError(
                f"{key_path}.entities: the model does not see {entity!r}, which the state is looked up by."
                f"{suggestion(entity, features)}"
            )
    entities = entities or tuple(entity for entity in supervision.states if entity in features)
    if not entities:
        raise ConfigError(
            f"{key_path}: {teacher!r} stores no state of a feature that the model sees: the teacher stores "
            f"{', '.join(supervision.states) or 'none'}, the model sees {', '.join(features)}; see "
            f"models.{teacher}.supervision.states"
        )
    widths = dict.fromkeys(entities, supervision.state_dim)
    return ModelInput(spec, InputSpec(model.embedding_dim, spec.config.length, widths))


def _resolve_embedding(
    spec: ComponentSpec, model: ModelConfig, teacher_config: ModelConfig, key_path: str
) -> ModelInput:
    teacher, entities = spec.config.teacher, spec.config.entities
    if entities:
        raise ConfigError(
            f"{key_path}.entities: {spec.name} reads {teacher!r}'s embedding of the example, and states of no entity; "
            f"leave entities out. Given: {list(entities)}"
        )
    supervision = teacher_config.supervision
    if supervision.embedding == "none":
        raise ConfigError(
            f"{key_path}.teacher: {teacher!r} stores no embedding of its examples; write "
            f"models.{teacher}.supervision.embedding: float16"
        )
    widths = {EXAMPLE: supervision.embedding_dim or 0}
    return ModelInput(spec, InputSpec(model.embedding_dim, 1, widths))


def _check_labels(model: ModelConfig, schema: FeatureSchema, key_path: str) -> None:
    """Refuses late labels: when such a label is learned, the newest state may already know the example's outcome.

    The embedding of an example is not joined again then.
    """
    tasks = schema.tasks if model.tasks is None else model.tasks
    late = [label.name for label in schema.labels if label.name in tasks and label.delay > timedelta(0)]
    if model.inputs and late:
        prompt = [task for task in tasks if task not in late]
        reason = "a state that is looked up then is newer than the example"
        if all(spec.component.reads == "embedding" for spec in model.inputs):
            reason = "the teacher's embedding of the example is not looked up again then"
        raise ConfigError(
            f"{key_path}: {', '.join(late)} is known late, and {reason}; predict it with a model without inputs. "
            f"Labels known at once: {', '.join(prompt) or 'none'}"
        )
