"""Defines the plugin API: a hook per kind of component, in the entry-point group ``exfm``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pluggy

PROJECT = "exfm"
API_VERSION = 2
"""Version of the plugin API. A plugin module may declare its version of the API as ``EXFM_API_VERSION``."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

INTERFACES = {
    "backbone": "exfm.interfaces.backbone:Backbone",
    "sequence_encoder": "exfm.interfaces.sequence_encoder:SequenceEncoder",
    "transfer_strategy": "exfm.interfaces.transfer_strategy:TransferStrategy",
    "teacher_input": "exfm.interfaces.teacher_input:TeacherInput",
    "task_head": "exfm.interfaces.task_head:TaskHead",
    "metric": "exfm.interfaces.metric:Metric",
    "data_source": "exfm.interfaces.data_source:DataSource",
    "parallel_plan": "exfm.interfaces.parallel_plan:ParallelPlan",
    "launcher": "exfm.interfaces.launcher:Launcher",
    "tracker": "exfm.interfaces.tracker:Tracker",
}
"""The kinds of component, and the class that a component of each kind extends."""


def import_target(target: str) -> Any:
    """Imports the object that ``module:attribute`` names."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


@dataclass(frozen=True)
class LazyComponent:
    """A component by name, imported when an experiment uses it.

    A hook may return classes or lazy components. Lazy components are better, because commands that only list components
    then do not wait for the import of torch.

    Args:
        name: the component's name, equal to the class's ``name``.
        target: ``module:Class``.
    """

    name: str
    target: str


Offer = type[Any] | LazyComponent


class HookSpecs:
    """Hooks that a plugin module may implement, each marked with ``@exfm.hookimpl`` and without arguments."""

    @hookspec
    def exfm_register_backbones(self) -> Iterable[Offer]:  # type: ignore[empty-body]
        """Returns classes that extend ``exfm.Backbone``."""

    @hookspec
    def exfm_register_sequence_encoders(self) -> Iterable[Offer]:  # type: ignore[empty-body]
        """Returns classes that extend ``exfm.SequenceEncoder``."""

    @hookspec
    def exfm_register_transfer_strategies(self) -> Iterable[Offer]:  # type: ignore[empty-body]
        """Returns classes that extend ``exfm.DistillationStrategy`` or ``exfm.ParameterStrategy``."""

    @hookspec
    def exfm_register_teacher_inputs(self) -> Iterable[Offer]:  # type: ignore[empty-body]
        """Classes that extend ``exfm.TeacherInput``."""

    @hookspec
    def exfm_register_task_heads(self) -> Iterable[Offer]:  # type: ignore[empty-body]
        """Returns classes that extend ``exfm.TaskHead``."""

    @hookspec
    def exfm_register_metrics(self) -> Iterable[Offer]:  # type: ignore[empty-body]
        """Returns classes that extend ``exfm.Metric``."""

    @hookspec
    def exfm_register_data_sources(self) -> Iterable[Offer]:  # type: ignore[empty-body]
        """Returns classes that extend ``exfm.DataSource``."""

    @hookspec
    def exfm_register_parallel_plans(self) -> Iterable[Offer]:  # type: ignore[empty-body]
        """Returns classes that extend ``exfm.ParallelPlan``."""

    @hookspec
    def exfm_register_launchers(self) -> Iterable[Offer]:  # type: ignore[empty-body]
        """Returns classes that extend ``exfm.Launcher``."""

    @hookspec
    def exfm_register_trackers(self) -> Iterable[Offer]:  # type: ignore[empty-body]
        """Returns classes that extend ``exfm.Tracker``."""


HOOK_BY_KIND = {
    "backbone": "exfm_register_backbones",
    "sequence_encoder": "exfm_register_sequence_encoders",
    "transfer_strategy": "exfm_register_transfer_strategies",
    "teacher_input": "exfm_register_teacher_inputs",
    "task_head": "exfm_register_task_heads",
    "metric": "exfm_register_metrics",
    "data_source": "exfm_register_data_sources",
    "parallel_plan": "exfm_register_parallel_plans",
    "launcher": "exfm_register_launchers",
    "tracker": "exfm_register_trackers",
}
