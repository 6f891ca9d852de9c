"""A model's teacher inputs: stored states that it reads, at the cost of a look-up each when it is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from exfm.config.component_field import ComponentSpec
from exfm.config.experiment import ExperimentConfig, ModelConfig
from exfm.errors import ConfigError, suggestion
from exfm.interfaces.schema import CategoricalFeature, FeatureSchema
from exfm.interfaces.teacher_input import InputSpec


@dataclass(frozen=True)
class ModelInput:
    """Describes an entry under ``models.M.inputs``, resolved.

    Attributes:
        spec: the component and its Config.
        inputs: its surroundings.
    """

    spec: ComponentSpec
    inputs: InputSpec

    @property
    def teacher(self) -> str:
        """Returns the teacher's name."""
        name: str = self.spec.config.teacher
        return name

    @property
    def lookups(self) -> tuple[str, ...]:
        """Lists the vectors that serving looks up, as results.json names them."""
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
        ConfigError: a teacher that is no model of the file, a state that it does not store, or of a feature that the
            model does not see; a label that is known late.
    """
    _check_labels(model, schema, key_path)
    inputs: list[ModelInput] = []
    models = {**borrowed, **config.models}
    for number, spec in enumerate(model.inputs):
        inputs.append(_resolve(spec, model, config, models, schema, f"{key_path}.{number}"))
    return tuple(inputs)


def _resolve(
    spec: ComponentSpec,
    model: ModelConfig,
    config: ExperimentConfig,
    models: Mapping[str, ModelConfig],
    schema: FeatureSchema,
    key_path: str,
) -> ModelInput:
    teacher, entities = spec.config.teacher, spec.config.entities
    if teacher in config.external_teachers:
        raise ConfigError(f"{key_path}.teacher: {teacher!r} is a teacher from elsewhere, which stores no states")
    if teacher not in models:
        raise ConfigError(f"{key_path}.teacher: no model is called {teacher!r}.{suggestion(teacher, models)}")
    supervision, seen = models[teacher].supervision, schema.select(model.features)
    features = [feature.name for feature in seen.features if isinstance(feature, CategoricalFeature)]
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


def _check_labels(model: ModelConfig, schema: FeatureSchema, key_path: str) -> None:
    """Refuses late labels: when such a label is learned, the newest state may already know the example's outcome."""
    tasks = schema.tasks if model.tasks is None else model.tasks
    late = [label.name for label in schema.labels if label.name in tasks and label.delay > timedelta(0)]
    if model.inputs and late:
        prompt = [task for task in tasks if task not in late]
        raise ConfigError(
            f"{key_path}: {', '.join(late)} is known late, and a state that is looked up then is newer than the "
            f"example; predict it with a model without inputs. Labels known at once: {', '.join(prompt) or 'none'}"
        )
