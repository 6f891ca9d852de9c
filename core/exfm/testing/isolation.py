"""A registry that holds what a test puts in, and nothing that happens to be installed."""

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
    """Stands in for the installed plugins: ``exfm.load_experiment`` and nested components see the same.

    Args:
        monkeypatch: undoes it all.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._found: list[PluginEntryPoint] = []
        monkeypatch.setattr(entry_points, "find", lambda: list(self._found))
        discovery.default_registry.cache_clear()

    def put(self, *offered: ModuleType | type[Any]) -> Registry:
        """Adds plugin modules, and component classes that no plugin offers.

        Returns:
            A registry of all that was put in so far.
        """
        for one in offered:
            plugin = one if isinstance(one, ModuleType) else self._plugin_of(one)
            point = EntryPoint(plugin.__name__.rpartition(".")[2], plugin.__name__, PROJECT)
            self._found.append(PluginEntryPoint("put-in-by-a-test", "0", point))
        discovery.default_registry.cache_clear()
        return discovery.default_registry()

    def _plugin_of(self, component: type[Any]) -> ModuleType:
        """A plugin module that offers a class."""
        plugin = ModuleType(f"exfm_test_plugin_{component.__name__.lower()}_{len(self._found)}")

        def offer() -> list[type[Any]]:
            return [component]

        setattr(plugin, HOOK_BY_KIND[component.kind], hookimpl(offer))
        self._monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
        return plugin
