"""Chooses the head of each task whose label is not binary, and checks the heads that the experiment names."""

from __future__ import annotations

from collections.abc import Mapping

from exfm.config.component_field import ComponentSpec
from exfm.config.experiment import ExperimentConfig, ModelConfig
from exfm.errors import ConfigError, PluginError, suggestion
from exfm.interfaces.schema import FeatureSchema, Label
from exfm.registry.registry import Registry


def with_heads(config: ExperimentConfig, schema: FeatureSchema, registry: Registry, file: str) -> ExperimentConfig:
    """Returns the experiment with a head for each task of a model whose label is not binary.

    A binary label without a head is learned by cross-entropy on a logit, which needs no component.

    Raises:
        ConfigError: a head is of no task of its model, or of another kind of label; or there is no default.
    """
    labels = {label.name: label for label in schema.labels}
    models: dict[str, ModelConfig] = {}
    for name, model in config.models.items():
        key_path = f"{file}: models.{name}.heads"
        tasks = [task for task in (schema.tasks if model.tasks is None else model.tasks) if task in labels]
        _check(model.heads, {task: labels[task] for task in tasks}, registry, key_path)
        heads = dict(model.heads)
        for task in tasks:
            if task not in heads and labels[task].kind != "binary":
                heads[task] = _default(labels[task], registry, f"{key_path}.{task}")
        models[name] = model.model_copy(update={"heads": heads}) if heads else model
    return config.model_copy(update={"models": models})


def _check(heads: Mapping[str, ComponentSpec], labels: Mapping[str, Label], registry: Registry, key_path: str) -> None:
    for task, spec in heads.items():
        if task not in labels:
            raise ConfigError(f"{key_path}: the model predicts no task {task!r}.{suggestion(task, labels)}")
        kind, learns = labels[task].kind, spec.component.label_kind
        if kind != learns:
            fitting = [name for name in registry.names("task_head") if _learns(registry, name, kind)]
            raise ConfigError(
                f"{key_path}.{task}: {spec.name} learns {learns} labels, and {task} is {kind}; heads of its kind: "
                f"{', '.join(fitting) or 'none is installed, and a binary label needs none'}"
            )


def _learns(registry: Registry, name: str, kind: str) -> bool:
    """Tells whether a head learns labels of a kind; a head that cannot be loaded learns none."""
    try:
        return bool(registry.resolve("task_head", name).label_kind == kind)
    except PluginError:
        return False


def _default(label: Label, registry: Registry, key_path: str) -> ComponentSpec:
    try:
        name = registry.default_head(label.kind)
        component = registry.resolve("task_head", name)
    except PluginError as error:
        raise ConfigError(f"{key_path}: {error}") from None
    return ComponentSpec("task_head", name, component, component.Config())
