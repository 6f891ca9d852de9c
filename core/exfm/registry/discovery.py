"""Discovers plugins among the installed distributions, and loads each in isolation from the others.

A plugin that cannot be loaded is quarantined with a reason: it is fatal only to an experiment that names a component of
it. Nothing is remembered from run to run.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from contextlib import redirect_stdout
from functools import cache
from types import ModuleType
from typing import Any

import pluggy

from exfm.errors import suggestion
from exfm.mappings import names_of
from exfm.registry import entry_points
from exfm.registry.entry_points import PluginEntryPoint
from exfm.registry.hooks import API_VERSION, HOOK_BY_KIND, PROJECT, HookSpecs, LazyComponent, Offer
from exfm.registry.reasons import failure_reason, is_missing
from exfm.registry.registry import Plugin, Registry, check_component, check_name


def discover(block: Collection[str] = ()) -> Registry:
    """Loads every plugin whose name and distribution are not in ``block`` (those are never imported)."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    registry = Registry()
    for installed in entry_points.find():
        plugin = _describe(installed, registry)
        point = installed.entry_point
        names = [plugin.name, plugin.distribution]
        # The name of a plugin may have a prefix; users block the name that the plugin's author chose.
        if point is not None:
            names.append(point.name)
        if entry_points.matches(block, *names):
            registry.quarantine(plugin, "the user said so (--block-plugin or plugins.block)", status="blocked")
        elif point is None:
            assert installed.problem is not None
            registry.quarantine(plugin, f"its entry_points.txt cannot be read: {failure_reason(installed.problem)}")
        else:
            try:
                # stdout belongs to the command, whatever a plugin prints.
                with redirect_stdout(sys.stderr):
                    offers = register(manager, point.load(), plugin.name)
            except KeyboardInterrupt:
                raise
            # BaseException, because a plugin may even call sys.exit() when it is imported.
            except BaseException as error:
                registry.quarantine(plugin, failure_reason(error))
            else:
                registry.add(plugin, offers)
    return registry


@cache
def default_registry() -> Registry:
    """Returns this process's registry of all installed plugins, none blocked."""
    return discover()


def register(manager: pluggy.PluginManager, module: ModuleType, name: str) -> list[tuple[str, str, Offer]]:
    """Registers a plugin module and returns its offers as (kind, name, class or reference).

    Raises:
        TypeError: the module has another API version, a hook of an unknown name or signature, or a hook that returns
            an unexpected value.
    """
    _check_version(getattr(module, "EXFM_API_VERSION", API_VERSION))
    # pluggy ignores a function without its mark: the plugin would silently offer nothing.
    for attribute, value in vars(module).items():
        if attribute.startswith("exfm_register_") and not hasattr(value, f"{PROJECT}_impl"):
            raise TypeError(f"{attribute} is not marked with @exfm.hookimpl")
    manager.register(module, name)
    callers = manager.get_hookcallers(module) or []
    unknown = [caller.name for caller in callers if not caller.has_spec()]
    if unknown:
        # Unregistered, so that no later call reaches the plugin's other hooks.
        manager.unregister(module)
        raise TypeError(f"no hook is called {unknown[0]!r}.{suggestion(unknown[0], HOOK_BY_KIND.values())}")
    if not callers:
        raise TypeError("it offers nothing: none of its functions is marked with @exfm.hookimpl")
    # The hooks of this module alone are called, so that an exception is this plugin's.
    others = [plugin for plugin in manager.get_plugins() if plugin is not module]
    hooks = names_of(callers)
    offers: list[tuple[str, str, Offer]] = []
    for kind, hook in HOOK_BY_KIND.items():
        if hook in hooks:
            answers = manager.subset_hook_caller(hook, others)()
            for offer in _offered(hook, answers):
                offers.append((kind, _checked_name(kind, offer), offer))
    return offers


def _check_version(version: object) -> None:
    # True is an int to Python.
    if not isinstance(version, int) or isinstance(version, bool):
        raise TypeError(f"EXFM_API_VERSION must be a whole number, such as {API_VERSION}, not {version!r}")
    if version != API_VERSION:
        age = "newer" if version > API_VERSION else "older"
        raise TypeError(f"it was written for plugin API {version}, {age} than this exfm's API {API_VERSION}")


def _offered(hook: str, answers: list[Any]) -> list[Any]:
    """Returns the offers of a hook, whose return value pluggy puts into a list unless it is None."""
    if not answers or isinstance(answers[0], str | type) or not hasattr(answers[0], "__iter__"):
        returned = repr(answers[0]) if answers else "None"
        raise TypeError(f"{hook} must return a list of classes or exfm.LazyComponent, not {returned}")
    return list(answers[0])


def _checked_name(kind: str, offer: Offer) -> str:
    """Checks an offer as far as possible without importing it, and returns its name."""
    if not isinstance(offer, LazyComponent):
        check_component(kind, offer)
        return str(offer.name)
    check_name(offer.name, "exfm.LazyComponent")
    module, _, attribute = offer.target.partition(":")
    if not (module and attribute.isidentifier()):
        raise TypeError(f"the target of {kind} {offer.name!r} must be written 'module:Class', not {offer.target!r}")
    if is_missing(module):
        raise ModuleNotFoundError(f"{kind} {offer.name!r} is said to be in {offer.target}, but there is no such module")
    return offer.name


def _describe(installed: PluginEntryPoint, registry: Registry) -> Plugin:
    """Names a plugin after its entry point, or after its distribution where the entry points cannot be read."""
    name, module = installed.distribution, ""
    if installed.entry_point is not None:
        name, module = installed.entry_point.name, installed.entry_point.value
    # Two distributions may choose the same name; a prefix keeps both visible.
    if name in registry.plugins:
        name = f"{installed.distribution}:{name}"
    return Plugin(name, module, installed.distribution, installed.version)
