"""Helpers of the tests of plugins."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any, TypeAlias

from torch import Tensor

from exfm.components import Component

# A module whose weights a test reads by name, to compute its output by hand. torch types every attribute of a
# module and every member of a list of modules as `Tensor | Module`.
Net: TypeAlias = Any


def gradient(tensor: Tensor) -> Tensor:
    """The gradient of a tensor that a backward pass has reached."""
    assert tensor.grad is not None
    return tensor.grad


def check_offers(plugin: ModuleType, component: type[Component]) -> None:
    """The plugin's hook offers the component under its name, and the offer leads to that very class."""
    hooks = [value for name, value in vars(plugin).items() if name.startswith("exfm_register_")]
    offers = {offer.name: offer.target for hook in hooks for offer in hook()}
    module, _, attribute = offers[component.name].partition(":")
    assert getattr(import_module(module), attribute) is component
