"""Loads an experiment: YAML and overrides through OmegaConf, then types, then the checks across sections."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from io import StringIO
from os import PathLike, fspath
from typing import Any

import fsspec
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from exfm.config.baselines import check_baselines
from exfm.config.checks import Arm, check_experiment
from exfm.config.experiment import ExperimentConfig, RunTeacher
from exfm.config.explain import explain
from exfm.config.external_files import check_files
from exfm.config.frozen_teachers import check_frozen, frozen_arm
from exfm.config.inputs import DescribedModel
from exfm.config.lenders import Lender, read_lender
from exfm.config.references import ReferenceText, keep_references, write_back
from exfm.config.task_heads import with_heads
from exfm.errors import ConfigError, PluginError
from exfm.interfaces.data_source import DataSource
from exfm.interfaces.duration import format_duration, parse_duration
from exfm.interfaces.schema import FeatureSchema
from exfm.mappings import with_text_keys
from exfm.redaction import concealed
from exfm.registry.discovery import discover
from exfm.registry.registry import Registry

_MOST_NODES = 200_000
"""Limit of YAML nodes with aliases expanded: enough for a thousand models, and few enough to stop a YAML bomb."""

_SHAPE = "a mapping of keys such as name, stream and models"
_MAPPING = "experiment"
"""Stands for the file's name in messages about an experiment that is a mapping."""


@dataclass(frozen=True)
class Experiment:
    """An experiment that can be run: checked against its plugins, its data source and its graph of models.

    Attributes:
        arms: the models and their control arms, every teacher before its students.
        unresolved: the file's content and the overrides, with references to environment variables as text.
        lenders: the teachers that other runs train, by name.
        parents: the models that models start from, by the name of the model that starts.
    """

    config: ExperimentConfig
    registry: Registry
    source: DataSource
    schema: FeatureSchema
    arms: tuple[Arm, ...]
    unresolved: dict[str, Any] = field(default_factory=dict)
    lenders: Mapping[str, Lender] = field(default_factory=dict)
    parents: Mapping[str, Lender] = field(default_factory=dict)

    @property
    def lent_arms(self) -> tuple[Arm, ...]:
        """Returns the teachers that other runs train, and that teach as they go on."""
        return tuple(lender.arm for lender in self.lenders.values() if not lender.at)

    @property
    def frozen(self) -> Mapping[str, Lender]:
        """Returns the teachers that are frozen at a snapshot, by name."""
        return {name: lender for name, lender in self.lenders.items() if lender.at}

    @property
    def trained_tasks(self) -> set[str]:
        """Returns the tasks that any arm trains."""
        return {task for arm in self.arms for task in arm.tasks}

    @property
    def run_dir(self) -> str:
        """Returns the folder or URL of the run."""
        return self.config.run_dir or f"runs/{self.config.name}"

    def frozen_tasks(self) -> dict[str, tuple[str, ...]]:
        """Returns the tasks of the teachers that are frozen at a snapshot, by name."""
        return {name: lender.arm.tasks for name, lender in self.frozen.items()}

    def unresolved_run_dir(self) -> str:
        """Returns the folder or URL of the run with references to environment variables, as an override writes it."""
        reference = self.unresolved.get("run_dir")
        if not reference:
            reference = ReferenceText(f"runs/{self.unresolved.get('name', self.config.name)}")
        return str(write_back(self.run_dir, reference))

    def as_dict(self) -> dict[str, Any]:
        """Returns the resolved config, as a user would write it with every default filled in, and without secrets.

        References to environment variables stay references; credentials in URLs, and text under keys such as
        ``password``, become ``***``.
        """
        complete = write_back(self.config.model_dump(mode="json"), self.unresolved)
        if complete["search"] is None:  # left out where it is not used, as in runs of before there was any
            del complete["search"]
        return {key: concealed(value, key) for key, value in complete.items()}

    def as_yaml(self) -> str:
        """Returns the resolved config as YAML."""
        # By OmegaConf, because it quotes text that its loader would read as a number or a date.
        return OmegaConf.to_yaml(OmegaConf.create(self.as_dict()))

    def __repr__(self) -> str:
        models = ", ".join(arm.name for arm in self.arms)
        return f"Experiment({self.config.name!r}, models: {models}, run_dir: {concealed(self.run_dir)})"


def override_keys(overrides: Sequence[str]) -> list[str]:
    """Lists the key paths of overrides ``key=value``."""
    return [override.partition("=")[0] for override in overrides]


def load_experiment(
    path: str | PathLike[str] | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    block: Sequence[str] = (),
    components: Sequence[type[Any]] = (),
    registry: Registry | None = None,
) -> Experiment:
    """Loads and checks an experiment without running it.

    Args:
        path: the YAML file, any fsspec URL; or the content of a file as a mapping.
        overrides: ``key.path=value`` each, applied over the file in order.
        block: plugins or distributions that must not be imported, added to the file's ``plugins.block``.
        components: classes to choose from beside those of the registry, such as a class that a notebook defines.
        registry: the components to choose from; the installed ones by default.

    Raises:
        ConfigError: the file cannot be read, or anything in it is wrong; the message names file and key path.
    """
    if isinstance(path, Mapping):
        content, path = _read_mapping(path), _MAPPING
    else:
        path = fspath(path)
        content = _read_yaml(path)
    raw, unresolved = _merge(content, overrides, path)
    if registry is None:
        registry = discover([*block, *_blocked(raw)])
    registry = _extend(registry, components)
    keys = override_keys(overrides)
    try:
        if "parallel" not in raw:
            raw["parallel"] = {"name": registry.default_plan()}
        config = ExperimentConfig.model_validate(raw, context={"registry": registry})
    except ValidationError as error:
        # Without the cause: pydantic's report repeats the values, and a value may be a secret.
        raise explain(error, ExperimentConfig, raw, unresolved, path, keys, registry) from None
    except PluginError as error:
        raise ConfigError(f"{path}: parallel: {error}") from None
    try:
        source = config.stream.source.build()
        schema = source.schema()
    except (ValueError, OSError, ImportError) as error:
        raise ConfigError(f"{path}: stream.source: {_line(error)}") from error
    config = with_heads(config, schema, registry, path)
    lenders: dict[str, Lender] = {}
    for name, teacher in config.run_teachers.items():
        lender = read_lender(teacher, registry, f"{path}: teachers.{name}", name)
        lenders[name] = replace(lender, arm=frozen_arm(lender)) if lender.at else lender
    arms = check_experiment(
        config, schema, path, {name: DescribedModel(lender.arm, lender.schema) for name, lender in lenders.items()}
    )
    _check_lenders(config, lenders, path)
    for name, lender in lenders.items():
        if lender.at:
            check_frozen(lender, schema, arms, f"{path}: teachers.{name}")
    check_baselines(arms, config.compare, path)
    check_files(config.external_teachers, path)
    return Experiment(config, registry, source, schema, arms, unresolved, lenders, _parents(config, registry, path))


def _parents(config: ExperimentConfig, registry: Registry, path: str) -> dict[str, Lender]:
    """Reads the records of the models that models start from."""
    parents: dict[str, Lender] = {}
    for name, model in config.models.items():
        if model.init_from is not None and model.init_from.model:
            folder = model.init_from.run or config.run_dir or f"runs/{config.name}"
            parent = RunTeacher(run=folder, model=model.init_from.model)
            parents[name] = read_lender(parent, registry, f"{path}: models.{name}.init_from")
    return parents


def _check_lenders(config: ExperimentConfig, lenders: Mapping[str, Lender], path: str) -> None:
    """Checks that the teachers of other runs store their supervision, in windows of the same length, if they go on.

    Raises:
        ConfigError: a teacher does not.
    """
    folder = (config.run_dir or f"runs/{config.name}").rstrip("/")
    for name, lender in lenders.items():
        if lender.run.rstrip("/") == folder:
            raise ConfigError(
                f"{path}: teachers.{name}.run: {lender.run!r} is this experiment's own run_dir. Write the model's "
                "section under models, as its own file has it, or give this experiment another run_dir"
            )
        if lender.at:  # this run labels its own windows with the snapshot
            continue
        where = f"{path}: teachers.{name}: {lender.model!r} of {lender.run!r}"
        if parse_duration(lender.window) != config.stream.window:
            raise ConfigError(
                f"{where} has windows of {lender.window}; this file has {format_duration(config.stream.window)} at "
                "stream.window, and both must be equal"
            )
        if not lender.arm.stores:
            raise ConfigError(
                f"{where} does not store its supervision: set models.{lender.model}.supervision.store=true in its file"
            )


def _extend(registry: Registry, components: Sequence[type[Any]]) -> Registry:
    """Returns a copy of the registry with more components, or the registry itself where there are none."""
    if not components:
        return registry
    try:
        return registry.with_classes(components)
    except TypeError as error:
        raise ConfigError(f"components: {error}") from error


def _read_mapping(content: Mapping[str, Any]) -> DictConfig:
    """Reads an experiment that Python code has written."""
    if not content:
        raise ConfigError(f"{_MAPPING}: it is empty; an experiment is {_SHAPE}")
    try:
        created = OmegaConf.create(_plain(content))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{_MAPPING}: {_where(error)}{_line(error)}") from error
    assert isinstance(created, DictConfig)
    return created


def _plain(node: Any) -> Any:
    """Copies mappings and sequences of any type to dictionaries and lists, as a file has them; times become text."""
    if isinstance(node, Mapping):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(value) for value in node]
    if isinstance(node, date):
        return node.isoformat()
    return fspath(node) if isinstance(node, PathLike) else node


def _read_yaml(path: str) -> DictConfig:
    """Reads and parses the experiment file."""
    try:
        with fsspec.open(path, "rt", encoding="utf-8") as file:
            text = file.read()
    # ImportError: the package of the URL's protocol is not installed.
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{path}: the experiment file cannot be read: {_line(error)}") from error
    try:
        loaded = OmegaConf.load(StringIO(text), max_yaml_expanded_nodes=_MOST_NODES)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: this is not valid YAML: {_line(error)}") from error
    except (OmegaConfBaseException, ValueError, OSError) as error:
        raise ConfigError(f"{path}: {_where(error)}{_line(error)}") from error
    if not loaded:
        raise ConfigError(f"{path}: the file is empty; a file is {_SHAPE}")
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: this is a list; a file is {_SHAPE}")
    return loaded


def _merge(config: DictConfig, overrides: Sequence[str], path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Applies overrides; returns the content resolved, and with references to environment variables as text."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not all(key.replace("[", ".").split(".")):
            raise ConfigError(f"override {override!r}: write key.path=value, such as models.vm.embedding_dim=8")
        try:
            # Parsed by OmegaConf, so that a value means the same as in the file.
            read = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
            parsed = read["value"] if value and isinstance(read, dict) else ""
            OmegaConf.update(config, key, parsed, merge=False, force_add=True)
        except (OmegaConfBaseException, yaml.YAMLError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise ConfigError(f"override {override!r}: {_where(error)}{_line(error)}") from error
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_where(error)}{_unresolved(error)}") from error
    assert isinstance(plain, dict)
    return with_text_keys(plain), keep_references(config)


def _where(error: Exception) -> str:
    """Returns the key path that OmegaConf blames, as the beginning of a message."""
    path = getattr(error, "full_key", None)
    return f"{path}: " if path else ""


def _line(error: Exception) -> str:
    """Joins an error's message to a line, without the lines in which OmegaConf repeats key and type."""
    lines = [line for line in str(error).splitlines() if not line.lstrip().startswith(("full_key:", "object_type="))]
    # YAML names the stream that it was passed, which is not the user's file.
    text = re.sub(r' in "<(file|unicode string)>",', " at", " ".join(" ".join(lines).split()))
    return text or type(error).__name__


def _unresolved(error: Exception) -> str:
    """Explains a reference that cannot be resolved, and the form of a reference."""
    unset = re.search(r"Environment variable '(.*?)' not found", str(error))
    if unset:
        name = unset[1]
        return (
            f"the environment variable {name} is not set, which ${{oc.env:{name}}} refers to; set it, or give a "
            f"default: ${{oc.env:{name},default}}"
        )
    # OmegaConf's messages say Interpolation or interpolation.
    if "nterpolation" in str(error):
        return f"{_line(error)}; a reference is written ${{key.path}}, from the top of the file"
    return _line(error)


def _blocked(raw: dict[str, Any]) -> list[str]:
    """Reads ``plugins.block`` before any plugin is imported; its type is checked later, with the whole file."""
    section = raw.get("plugins")
    if not isinstance(section, dict):
        return []
    block = section.get("block")
    if isinstance(block, str):
        return [block]
    return list(map(str, block)) if isinstance(block, list) else []
