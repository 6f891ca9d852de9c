"""Finds plugins among the installed distributions and loads each behind its own wall.

A plugin that cannot be loaded is quarantined with a reason: it is fatal to an experiment that names one of its
components and to nothing else. Nothing is remembered from one run to the next.
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
from exfm.registry import entry_points
from exfm.registry.entry_points import Found
from exfm.registry.hooks import API_VERSION, HOOK_OF_KIND, PROJECT, HookSpecs, LazyComponent, Offer
from exfm.registry.reasons import is_missing, reason_of
from exfm.registry.registry import Plugin, Registry, check_component, check_name


def discover(block: Collection[str] = ()) -> Registry:
    """Loads every plugin whose name and distribution are not in ``block`` (those are never imported)."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HookSpecs)
    registry = Registry()
    for found in entry_points.find():
        plugin = _describe(found, registry)
        point = found.entry_point
        if entry_points.matches(block, plugin.name, plugin.distribution, *([point.name] if point else [])):
            registry.quarantine(plugin, "the user said so (--block-plugin or plugins.block)", status="blocked")
        elif point is None:
            assert found.problem is not None
            registry.quarantine(plugin, f"its entry_points.txt cannot be read: {reason_of(found.problem)}")
        else:
            try:
                with redirect_stdout(sys.stderr):  # stdout belongs to the command, whatever a plugin prints
                    offers = register(manager, point.load(), plugin.name)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # a plugin may even call sys.exit() when it is imported
                registry.quarantine(plugin, reason_of(error))
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
    _check_version(getattr(module, "EXFM_API_VERSION", API_VERSION))
    for attribute, value in vars(module).items():
        if attribute.startswith("exfm_register_") and not hasattr(value, f"{PROJECT}_impl"):
            raise TypeError(f"{attribute} is not marked with @exfm.hookimpl")
    manager.register(module, name)
    callers = manager.get_hookcallers(module) or []
    unknown = [caller.name for caller in callers if not caller.has_spec()]
    if unknown:
        manager.unregister(module)
        raise TypeError(f"no hook is called {unknown[0]!r}.{suggestion(unknown[0], HOOK_OF_KIND.values())}")
    if not callers:
        raise TypeError("it offers nothing: none of its functions is marked with @exfm.hookimpl")
    others = [plugin for plugin in manager.get_plugins() if plugin is not module]
    hooks = {caller.name for caller in callers}
    offers = []
    for kind, hook in HOOK_OF_KIND.items():
        if hook in hooks:
            answers = manager.subset_hook_caller(hook, others)()
            offers += [(kind, _checked_name(kind, offer), offer) for offer in _offered(hook, answers)]
    return offers


def _check_version(version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool):
        raise TypeError(f"EXFM_API_VERSION must be a whole number, such as {API_VERSION}, not {version!r}")
    if version != API_VERSION:
        age = "newer" if version > API_VERSION else "older"
        raise TypeError(f"it was written for plugin API {version}, {age} than this exfm's API {API_VERSION}")


def _offered(hook: str, answers: list[Any]) -> list[Any]:
    """What a hook returned, which pluggy puts in a list unless it is None."""
    if not answers or isinstance(answers[0], str | type) or not hasattr(answers[0], "__iter__"):
        returned = repr(answers[0]) if answers else "None"
        raise TypeError(f"{hook} must return a list of classes or exfm.LazyComponent, not {returned}")
    return list(answers[0])


def _checked_name(kind: str, offer: Offer) -> str:
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


def _describe(found: Found, registry: Registry) -> Plugin:
    point = found.entry_point
    name = point.name if point else found.distribution
    if name in registry.plugins:
        name = f"{found.distribution}:{name}"
    return Plugin(name, point.value if point else "", found.distribution, found.version)
