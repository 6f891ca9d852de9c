"""States of a teacher that a model reads as input, at the cost of a lookup each when it is served."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from exfm.config.experiment import ExperimentConfig, ModelConfig
from exfm.errors import ConfigError, suggestion
from exfm.interfaces.schema import CategoricalFeature, FeatureSchema


@dataclass(frozen=True)
class StateLookup:
    """One input token.

    Attributes:
        teacher: whose state it is made of.
        entity: the categorical feature whose state that is.
        width: numbers of the state.
    """

    teacher: str
    entity: str
    width: int

    @property
    def name(self) -> str:
        """What the token is called, in results.json too."""
        return f"{self.teacher}.{self.entity}"


def lookups_of(model: ModelConfig, config: ExperimentConfig) -> tuple[StateLookup, ...]:
    """A model's lookups, in the order of the file, once they have been checked."""
    return tuple(
        StateLookup(teacher, entity, config.models[teacher].supervision.state_dim)
        for teacher, entities in model.lookups.items()
        for entity in entities
    )


def check_lookups(model: ModelConfig, config: ExperimentConfig, schema: FeatureSchema, place: str) -> None:
    """Checks a model's lookups.

    Raises:
        ConfigError: a teacher that is no model of the file, a state that it does not store, or of a feature that the
            model does not see; a label that is known late.
    """
    for teacher, entities in model.lookups.items():
        _check_teacher(teacher, config, place)
        if not entities or len(set(entities)) < len(entities):
            raise ConfigError(f"{place}.{teacher}: name at least one, and each once; given: {list(entities)}")
        stored = config.models[teacher].supervision.states
        seen = schema.select(model.features)
        features = [feature.name for feature in seen.features if isinstance(feature, CategoricalFeature)]
        for entity in entities:
            if entity not in stored:
                hint = suggestion(entity, stored) or f" It stores none: see models.{teacher}.supervision.states."
                raise ConfigError(f"{place}.{teacher}: {teacher!r} stores no state of {entity!r}.{hint}")
            if entity not in features:
                raise ConfigError(
                    f"{place}.{teacher}: the model does not see {entity!r}, which the state is looked up by."
                    f"{suggestion(entity, features)}"
                )
    _check_labels(model, schema, place)


def _check_teacher(teacher: str, config: ExperimentConfig, place: str) -> None:
    if teacher in config.teachers:
        raise ConfigError(f"{place}: {teacher!r} is a teacher from elsewhere, which stores no states")
    if teacher not in config.models:
        raise ConfigError(f"{place}: no model is called {teacher!r}.{suggestion(teacher, config.models)}")


def _check_labels(model: ModelConfig, schema: FeatureSchema, place: str) -> None:
    """When a late label is learned, the newest state may already know of the example: its click, and what followed."""
    tasks = schema.tasks if model.tasks is None else model.tasks
    late = [label.name for label in schema.labels if label.name in tasks and label.delay > timedelta(0)]
    if model.lookups and late:
        prompt = [task for task in tasks if task not in late]
        raise ConfigError(
            f"{place}: {', '.join(late)} is known late, and a state that is looked up then is newer than the example; "
            f"predict it with a model without lookups. Labels known at once: {', '.join(prompt) or 'none'}"
        )
