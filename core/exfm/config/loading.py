"""Loads an experiment: YAML and overrides through OmegaConf, then types, then the checks that span sections."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import fsspec
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from exfm.config.baselines import check_baselines
from exfm.config.checks import Arm, check_experiment
from exfm.config.experiment import ExperimentConfig
from exfm.config.explain import explain
from exfm.config.external_files import check_files
from exfm.config.references import Reference, with_references, written
from exfm.errors import ConfigError, PluginError
from exfm.interfaces.data_source import DataSource
from exfm.interfaces.schema import FeatureSchema
from exfm.redaction import concealed
from exfm.registry.discovery import discover
from exfm.registry.registry import Registry

_MOST_NODES = 200_000
"""YAML nodes of a file with its aliases expanded: room for a fleet of a thousand models, and no room for a bomb."""

_SHAPE = "a mapping of keys such as name, stream and models"


@dataclass(frozen=True)
class Experiment:
    """An experiment that can be run: checked against its plugins, its data source and its own graph of models.

    Attributes:
        arms: the models in an order in which every teacher comes before its students, control arms included.
        given: the file's content and the overrides, in which references to environment variables are still text.
    """

    config: ExperimentConfig
    registry: Registry
    source: DataSource
    schema: FeatureSchema
    arms: tuple[Arm, ...]
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def run_dir(self) -> str:
        """Where the run is kept."""
        return self.config.run_dir or f"runs/{self.config.name}"

    def run_dir_as_given(self) -> str:
        """Where the run is kept, as an override may say it: with references to environment variables."""
        given = self.given.get("run_dir") or Reference(f"runs/{self.given.get('name', self.config.name)}")
        return str(written(self.run_dir, given))

    def as_dict(self) -> dict[str, Any]:
        """The resolved config, as a user would write it with every default filled in, and without secrets.

        References to environment variables are kept as they are; credentials in URLs, and what stands under keys such
        as ``password``, are ``***``.
        """
        complete = written(self.config.model_dump(mode="json"), self.given)
        return {key: concealed(value, key) for key, value in complete.items()}

    def as_yaml(self) -> str:
        """The resolved config as YAML."""
        return OmegaConf.to_yaml(OmegaConf.create(self.as_dict()))  # quotes what its own loader would misread


def load_experiment(
    path: str,
    overrides: Sequence[str] = (),
    *,
    block: Sequence[str] = (),
    components: Sequence[type[Any]] = (),
    registry: Registry | None = None,
) -> Experiment:
    """Loads and checks an experiment file without running it.

    Args:
        path: the YAML file, any fsspec URL.
        overrides: ``key.path=value`` each, applied over the file in order.
        block: plugins or distributions that must not be imported, added to the file's ``plugins.block``.
        components: classes to choose from beside those of the registry, such as one that a notebook defines.
        registry: the components to choose from; the installed ones by default.

    Raises:
        ConfigError: the file cannot be read, or anything in it is wrong; the message names file and key path.
    """
    raw, given = _merge(_read(path), overrides, path)
    if registry is None:
        registry = discover([*block, *_blocked(raw)])
    registry = _with(registry, components)
    keys = [override.partition("=")[0] for override in overrides]
    try:
        if "parallel" not in raw:
            raw["parallel"] = {"name": registry.default_plan()}
        config = ExperimentConfig.model_validate(raw, context={"registry": registry})
    except ValidationError as error:
        raise explain(error, ExperimentConfig, raw, given, path, keys, registry) from None
    except PluginError as error:
        raise ConfigError(f"{path}: parallel: {error}") from None
    try:
        source = config.stream.source.build()
        schema = source.schema()
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(f"{path}: stream.source: {_line(error)}") from error
    arms = check_experiment(config, schema, path)
    check_baselines(arms, config.compare, path)
    check_files(config.teachers, path)
    return Experiment(config, registry, source, schema, arms, given)


def _with(registry: Registry, components: Sequence[type[Any]]) -> Registry:
    """The registry, or where components are given a copy that has them too."""
    if not components:
        return registry
    try:
        return registry.with_classes(components)
    except TypeError as error:
        raise ConfigError(f"components: {error}") from error


def _read(path: str) -> DictConfig:
    try:
        with fsspec.open(path, "rt", encoding="utf-8") as file:
            text = file.read()
    except (OSError, ValueError, ImportError) as error:  # ImportError: a protocol whose package is not installed
        raise ConfigError(f"{path}: the experiment file cannot be read: {_line(error)}") from error
    try:
        loaded = OmegaConf.load(StringIO(text), max_yaml_expanded_nodes=_MOST_NODES)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: this is not valid YAML: {_line(error)}") from error
    except (OmegaConfBaseException, ValueError, OSError) as error:
        raise ConfigError(f"{path}: {_where(error)}{_line(error)}") from error
    if not isinstance(loaded, DictConfig) or not loaded:
        raise ConfigError(f"{path}: {'the file is empty' if not loaded else 'this is a list'}; a file is {_SHAPE}")
    return loaded


def _merge(config: DictConfig, overrides: Sequence[str], path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content with all references resolved, and with those to environment variables as text."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not all(key.replace("[", ".").split(".")):
            raise ConfigError(f"override {override!r}: write key.path=value, such as models.vm.embedding_dim=8")
        try:
            read = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))  # by the rules of the file
            parsed = read["value"] if value and isinstance(read, dict) else ""
            OmegaConf.update(config, key, parsed, merge=False, force_add=True)
        except (OmegaConfBaseException, yaml.YAMLError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise ConfigError(f"override {override!r}: {_where(error)}{_line(error)}") from error
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_where(error)}{_unresolved(error)}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}, with_references(config)


def _where(error: Exception) -> str:
    """The key path that OmegaConf blames, in front of a message."""
    path = getattr(error, "full_key", None)
    return f"{path}: " if path else ""


def _line(error: Exception) -> str:
    """An error's message in one line, without the lines in which OmegaConf repeats key and type."""
    lines = [line for line in str(error).splitlines() if not line.lstrip().startswith(("full_key:", "object_type="))]
    text = re.sub(r' in "<(file|unicode string)>",', " at", " ".join(" ".join(lines).split()))
    return text or type(error).__name__


def _unresolved(error: Exception) -> str:
    """What a reference lacks, and how one is written."""
    unset = re.search(r"Environment variable '(.*?)' not found", str(error))
    if unset:
        name = unset[1]
        return (
            f"the environment variable {name} is not set, which ${{oc.env:{name}}} refers to; set it, or give a "
            f"default: ${{oc.env:{name},default}}"
        )
    hint = "; a reference is written ${key.path}, from the top of the file" if "nterpolation" in str(error) else ""
    return f"{_line(error)}{hint}"


def _blocked(raw: dict[str, Any]) -> list[str]:
    """``plugins.block``, read before any plugin is imported; its type is checked with the rest of the file."""
    section = raw.get("plugins")
    block = section.get("block") if isinstance(section, dict) else None
    return [str(name) for name in block] if isinstance(block, list) else [block] if isinstance(block, str) else []
