"""What a plugin's hook must offer."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from exfm.components import Component


def check_offers(plugin: ModuleType, component: type[Component]) -> None:
    """The plugin's hook offers the component under its name, and the offer leads to that very class."""
    hooks = [value for name, value in vars(plugin).items() if name.startswith("exfm_register_")]
    offers = {offer.name: offer.target for hook in hooks for offer in hook()}
    module, _, attribute = offers[component.name].partition(":")
    assert getattr(import_module(module), attribute) is component
