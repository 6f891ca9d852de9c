"""A registry of a test's components alone, without the installed plugins."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import pytest

from exfm.registry import discovery, entry_points
from exfm.registry.entry_points import PluginEntryPoint
from exfm.registry.hooks import HOOK_BY_KIND, PROJECT, hookimpl
from exfm.registry.registry import Registry


class IsolatedRegistry:
    """Replaces the installed plugins, also for ``exfm.load_experiment`` and for nested components.

    Args:
        monkeypatch: restores the installed plugins after the test.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._entries: list[PluginEntryPoint] = []
        # A copy in each call, because the registry may keep the list.
        monkeypatch.setattr(entry_points, "find", lambda: list(self._entries))
        discovery.default_registry.cache_clear()

    def put(self, *offered: ModuleType | type[Any]) -> Registry:
        """Adds plugin modules, and component classes that no plugin offers.

        Returns:
            A registry of all components added so far.
        """
        for offer in offered:
            plugin = offer if isinstance(offer, ModuleType) else self._make_plugin(offer)
            point = EntryPoint(plugin.__name__.rpartition(".")[2], plugin.__name__, PROJECT)
            self._entries.append(PluginEntryPoint("put-in-by-a-test", "0", point))
        discovery.default_registry.cache_clear()  # cached with the components before
        return discovery.default_registry()

    def _make_plugin(self, component: type[Any]) -> ModuleType:
        """Makes a plugin module that offers a class."""
        plugin = ModuleType(f"exfm_test_plugin_{component.__name__.lower()}_{len(self._entries)}")

        def offer() -> list[type[Any]]:
            return [component]

        setattr(plugin, HOOK_BY_KIND[component.kind], hookimpl(offer))
        # Registered as imported, because an entry point imports its module by name.
        self._monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
        return plugin
