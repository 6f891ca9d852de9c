"""Checks state lookups: a model reads a teacher's state as input, at the cost of a lookup when it is served."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from exfm.config.experiment import ExperimentConfig, ModelConfig
from exfm.errors import ConfigError, suggestion
from exfm.interfaces.schema import CategoricalFeature, FeatureSchema


@dataclass(frozen=True)
class StateLookup:
    """An input token that is read from a teacher's state.

    Attributes:
        teacher: the model under ``models`` that stores the state.
        entity: the categorical feature whose state is read.
        width: dimension of the state.
    """

    teacher: str
    entity: str
    width: int

    @property
    def name(self) -> str:
        """Returns the name of the token, as in results.json."""
        return f"{self.teacher}.{self.entity}"


def model_lookups(model: ModelConfig, config: ExperimentConfig) -> tuple[StateLookup, ...]:
    """Lists a model's lookups, which have been checked, in the order of the file."""
    lookups: list[StateLookup] = []
    for teacher, entities in model.lookups.items():
        width = config.models[teacher].supervision.state_dim
        lookups += [StateLookup(teacher, entity, width) for entity in entities]
    return tuple(lookups)


def check_lookups(model: ModelConfig, config: ExperimentConfig, schema: FeatureSchema, key_path: str) -> None:
    """Checks a model's lookups.

    Raises:
        ConfigError: the teacher is no model of the file or does not store the state, the model does not see the
            entity's feature, or the model predicts a late label.
    """
    for teacher, entities in model.lookups.items():
        _check_teacher(teacher, config, key_path)
        if not entities or len(set(entities)) < len(entities):
            raise ConfigError(f"{key_path}.{teacher}: name at least one, and each once; given: {list(entities)}")
        stored = config.models[teacher].supervision.states
        seen = schema.select(model.features)
        features = [feature.name for feature in seen.features if isinstance(feature, CategoricalFeature)]
        for entity in entities:
            if entity not in stored:
                hint = suggestion(entity, stored) or f" It stores none: see models.{teacher}.supervision.states."
                raise ConfigError(f"{key_path}.{teacher}: {teacher!r} stores no state of {entity!r}.{hint}")
            if entity not in features:
                raise ConfigError(
                    f"{key_path}.{teacher}: the model does not see {entity!r}, which the state is looked up by."
                    f"{suggestion(entity, features)}"
                )
    _check_labels(model, schema, key_path)


def _check_teacher(teacher: str, config: ExperimentConfig, key_path: str) -> None:
    if teacher in config.teachers:
        raise ConfigError(f"{key_path}: {teacher!r} is a teacher from elsewhere, which stores no states")
    if teacher not in config.models:
        raise ConfigError(f"{key_path}: no model is called {teacher!r}.{suggestion(teacher, config.models)}")


def _check_labels(model: ModelConfig, schema: FeatureSchema, key_path: str) -> None:
    """Checks that a model with lookups predicts no late label."""
    # When a late label is learned, the newest state may have seen the example's click and later events: a leak.
    tasks = schema.tasks if model.tasks is None else model.tasks
    late = [label.name for label in schema.labels if label.name in tasks and label.delay > timedelta(0)]
    if model.lookups and late:
        prompt = [task for task in tasks if task not in late]
        raise ConfigError(
            f"{key_path}: {', '.join(late)} is known late, and a state that is looked up then is newer than the "
            f"example; predict it with a model without lookups. Labels known at once: {', '.join(prompt) or 'none'}"
        )
