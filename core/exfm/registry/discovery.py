"""Finds plugins among the installed distributions and loads each behind its own wall.

A plugin that cannot be loaded is quarantined with a reason: it is fatal to an experiment that names one of its
components and to nothing else. Nothing is remembered from one run to the next.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Collection
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

import pluggy

from exfm.errors import suggestion
from exfm.registry.hooks import API_VERSION, HOOK_OF_KIND, PROJECT, HookSpecs, LazyComponent, Offer
from exfm.registry.registry import Plugin, Registry, check_component


def discover(block: Collection[str] = ()) -> Registry:
    """Loads every plugin whose name and distribution are not in ``block`` (those are never imported)."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    registry = Registry()
    for entry_point in sorted(entry_points(group=PROJECT), key=lambda point: (point.name, point.value)):
        plugin = _describe(entry_point, registry)
        if plugin.name in block or plugin.distribution in block:
            registry.quarantine(plugin, "blocked by the user", status="blocked")
            continue
        try:
            module = entry_point.load()
            offers = register(manager, module, plugin.name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may even call sys.exit() when it is imported
            registry.quarantine(plugin, _reason(error))
        else:
            registry.add(plugin, offers)
    return registry


@cache
def default_registry() -> Registry:
    """The registry of this process with nothing blocked."""
    return discover()


def register(manager: pluggy.PluginManager, module: ModuleType, name: str) -> list[tuple[str, str, Offer]]:
    """Registers one plugin module and returns its offers as (kind, name, class or reference).

    Raises:
        TypeError: the module's API version, its hooks' names or signatures, or what they return do not fit.
    """
    version = getattr(module, "EXFM_API_VERSION", API_VERSION)
    if version != API_VERSION:
        age = "newer" if isinstance(version, int) and version > API_VERSION else "older"
        raise TypeError(f"it was written for plugin API {version!r}, {age} than this exfm's API {API_VERSION}")
    unmarked = [
        attribute
        for attribute, value in vars(module).items()
        if attribute.startswith("exfm_register_") and not hasattr(value, f"{PROJECT}_impl")
    ]
    if unmarked:
        raise TypeError(f"{unmarked[0]} is not marked with @exfm.hookimpl")
    manager.register(module, name)
    others = [plugin for plugin in manager.get_plugins() if plugin is not module]
    unknown = [caller.name for caller in manager.get_hookcallers(module) or () if not caller.has_spec()]
    if unknown:
        manager.unregister(module)
        raise TypeError(f"no hook is called {unknown[0]!r}.{suggestion(unknown[0], HOOK_OF_KIND.values())}")
    offers = []
    for kind, hook in HOOK_OF_KIND.items():
        for returned in manager.subset_hook_caller(hook, others)():
            offers += [(kind, _checked_name(kind, offer), offer) for offer in returned]
    return offers


def _checked_name(kind: str, offer: Offer) -> str:
    if not isinstance(offer, LazyComponent):
        check_component(kind, offer)
    return str(offer.name)


def _describe(entry_point: EntryPoint, registry: Registry) -> Plugin:
    name = entry_point.name
    distribution = entry_point.dist.metadata["Name"] if entry_point.dist else "unknown"
    if name in registry.plugins:
        name = f"{distribution}:{name}"
    return Plugin(name, entry_point.value, distribution, entry_point.dist.version if entry_point.dist else "0")


def _reason(error: BaseException) -> str:
    """The error in one line, with the last place in the plugin's own code where there is one."""
    frames = traceback.extract_tb(sys.exc_info()[2])
    outside = [
        frame for frame in frames if "importlib" not in frame.filename and "/exfm/registry/" not in frame.filename
    ]
    place = f" ({outside[-1].filename}:{outside[-1].lineno})" if outside else ""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}{place}"
