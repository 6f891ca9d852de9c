"""Loads an experiment: YAML and overrides through OmegaConf, then types, then the checks that span sections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from exfm.config.checks import Arm, check_experiment
from exfm.config.experiment import ExperimentConfig
from exfm.config.explain import explain
from exfm.errors import ConfigError, PluginError
from exfm.interfaces.data_source import DataSource
from exfm.interfaces.schema import FeatureSchema
from exfm.registry.discovery import discover
from exfm.registry.registry import Registry


@dataclass(frozen=True)
class Experiment:
    """An experiment that can be run: checked against its plugins, its data source and its own graph of models.

    Attributes:
        arms: the models in an order in which every teacher comes before its students, control arms included.
    """

    config: ExperimentConfig
    registry: Registry
    source: DataSource
    schema: FeatureSchema
    arms: tuple[Arm, ...]

    @property
    def run_dir(self) -> str:
        """Where the run is kept."""
        return self.config.run_dir or f"runs/{self.config.name}"

    def as_dict(self) -> dict[str, Any]:
        """The resolved config, as a user would write it with every default filled in."""
        return self.config.model_dump(mode="json")

    def as_yaml(self) -> str:
        """The resolved config as YAML."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True)


def load_experiment(
    path: str, overrides: Sequence[str] = (), *, block: Sequence[str] = (), registry: Registry | None = None
) -> Experiment:
    """Loads and checks an experiment file without running it.

    Args:
        path: the YAML file, any fsspec URL.
        overrides: ``key.path=value`` each, applied over the file in order.
        block: plugins or distributions that must not be imported, added to the file's ``plugins.block``.
        registry: the components to choose from; the installed ones by default.

    Raises:
        ConfigError: the file cannot be read, or anything in it is wrong; the message names file and key path.
    """
    raw = _merge(_read(path), overrides, path)
    if registry is None:
        registry = discover([*block, *_blocked(raw)])
    keys = [override.partition("=")[0] for override in overrides]
    try:
        if "parallel" not in raw:
            raw["parallel"] = {"name": registry.default_plan()}
        config = ExperimentConfig.model_validate(raw, context={"registry": registry})
    except ValidationError as error:
        raise explain(error, ExperimentConfig, raw, path, keys, registry) from None
    except PluginError as error:
        raise ConfigError(f"{path}: parallel: {error}") from None
    try:
        source = config.stream.source.build()
        schema = source.schema()
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path}: stream.source: {error}") from error
    return Experiment(config, registry, source, schema, check_experiment(config, schema, path))


def _read(path: str) -> DictConfig:
    try:
        with fsspec.open(path, "rt", encoding="utf-8") as file:
            text = file.read()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: the experiment file cannot be read: {error}") from error
    try:
        loaded = OmegaConf.create(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: this is not valid YAML: {' '.join(str(error).split())}") from error
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: an experiment file is a mapping of keys such as name, stream and models")
    return loaded


def _merge(config: DictConfig, overrides: Sequence[str], path: str) -> dict[str, Any]:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: write key.path=value, such as models.vm.embedding_dim=8")
        try:
            OmegaConf.update(config, key, yaml.safe_load(value) if value else "", merge=False, force_add=True)
        except (OmegaConfBaseException, yaml.YAMLError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"override {override!r}: {' '.join(str(error).split())}") from error
    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{path}: {where}{str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _blocked(raw: dict[str, Any]) -> list[str]:
    """``plugins.block``, read before any plugin is imported; its type is checked with the rest of the file."""
    section = raw.get("plugins")
    block = section.get("block") if isinstance(section, dict) else None
    return [str(name) for name in block] if isinstance(block, list) else []
