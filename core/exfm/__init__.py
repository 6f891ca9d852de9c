"""exfm: external distillation for recommendation, from a foundation model to the models that are served.

Exports every name that a plugin or a script needs. A name is imported when it is first used, because then
``import exfm`` costs nothing and no command waits for torch that does not need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from exfm import components as components
    from exfm import layers as layers
    from exfm import parallel as parallel
    from exfm import schema as schema
    from exfm import sources as sources
    from exfm import transfer as transfer
    from exfm.config.loading import Experiment as Experiment
    from exfm.config.loading import load_experiment as load_experiment
    from exfm.errors import ConfigError as ConfigError
    from exfm.errors import RunError as RunError
    from exfm.experiment.run import run as run
    from exfm.interfaces.backbone import Backbone as Backbone
    from exfm.interfaces.component import ComponentConfig as ComponentConfig
    from exfm.interfaces.data_source import DataSource as DataSource
    from exfm.interfaces.distillation_strategy import DistillationStrategy as DistillationStrategy
    from exfm.interfaces.parallel_plan import ParallelPlan as ParallelPlan
    from exfm.interfaces.parameter_strategy import ParameterStrategy as ParameterStrategy
    from exfm.interfaces.sequence_encoder import SequenceEncoder as SequenceEncoder
    from exfm.interfaces.teacher_input import TeacherInput as TeacherInput
    from exfm.interfaces.transfer_strategy import TransferStrategy as TransferStrategy
    from exfm.registry.hooks import LazyComponent as LazyComponent
    from exfm.registry.hooks import hookimpl as hookimpl

_HOME = {
    "Backbone": "exfm.interfaces.backbone",
    "ComponentConfig": "exfm.interfaces.component",
    "ConfigError": "exfm.errors",
    "DataSource": "exfm.interfaces.data_source",
    "DistillationStrategy": "exfm.interfaces.distillation_strategy",
    "Experiment": "exfm.config.loading",
    "LazyComponent": "exfm.registry.hooks",
    "ParallelPlan": "exfm.interfaces.parallel_plan",
    "ParameterStrategy": "exfm.interfaces.parameter_strategy",
    "RunError": "exfm.errors",
    "SequenceEncoder": "exfm.interfaces.sequence_encoder",
    "TeacherInput": "exfm.interfaces.teacher_input",
    "TransferStrategy": "exfm.interfaces.transfer_strategy",
    "hookimpl": "exfm.registry.hooks",
    "load_experiment": "exfm.config.loading",
    "run": "exfm.experiment.run",
}
"""Where each name lives; a test compares it with the imports above."""

_NAMESPACES = {"layers", "sources", "components", "schema", "transfer", "parallel"}
"""Modules with the other public names, imported when they are first used."""

__all__ = sorted({*_HOME, *_NAMESPACES})


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return import_module(f"exfm.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'exfm' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
