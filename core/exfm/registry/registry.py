"""Registers components by kind and name, with the plugins that offer them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from exfm.errors import PluginError, suggestion
from exfm.mappings import map_values
from exfm.registry.hooks import INTERFACES, LazyComponent, Offer, import_target
from exfm.registry.reasons import failure_reason


@dataclass(frozen=True)
class Plugin:
    """An entry point of the group ``exfm``, and the outcome of loading it."""

    name: str
    module: str
    distribution: str
    version: str
    status: Literal["loaded", "blocked", "broken"] = "loaded"
    reason: str = ""
    components: tuple[str, ...] = ()

    @property
    def provider(self) -> str:
        """Returns distribution and version, as error messages name the plugin."""
        return f"{self.distribution} {self.version} (plugin {self.name!r})"

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as ``exfm plugins --json`` prints them."""
        return asdict(self)


@dataclass
class Registry:
    """Holds every component that installed plugins offer. ``exfm.registry.discovery`` fills it."""

    plugins: dict[str, Plugin] = field(default_factory=dict)
    _offers: dict[tuple[str, str], tuple[Offer, Plugin]] = field(default_factory=dict)
    # All plugins that ever offered a name, quarantined plugins included, so that a third plugin is contested too.
    _claims: dict[tuple[str, str], list[Plugin]] = field(default_factory=dict)

    def add(self, plugin: Plugin, offers: list[tuple[str, str, Offer]]) -> None:
        """Records a loaded plugin and its offers (kind, name, class or reference).

        A name that two plugins offer belongs to neither: both are quarantined, with a reason that names both.
        """
        keys = [(kind, name) for kind, name, _ in offers]
        plugin = replace(plugin, components=tuple(map(".".join, keys)))
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            self.quarantine(plugin, f"it offers {twice[0][0]} {twice[0][1]!r} twice")
            return
        for key in keys:
            self._claims.setdefault(key, []).append(plugin)
        contested = [key for key in keys if len(self._claims[key]) > 1]
        if not contested:
            self.plugins[plugin.name] = plugin
            for kind, name, offer in offers:
                self._offers[kind, name] = offer, plugin
        for kind, name in contested:
            parties = self._claims[kind, name]
            who = " and by ".join(party.provider for party in parties)
            for party in parties:
                self.quarantine(party, f"{kind} {name!r} is offered by {who}; block all but one with --block-plugin")

    def with_classes(self, components: Sequence[type[Any]]) -> Registry:
        """Copies the registry and adds classes that no installed plugin offers.

        Raises:
            TypeError: a class is no component, or has no name.
        """
        offers: list[tuple[str, str, Offer]] = []
        for component in components:
            kind = getattr(component, "kind", None)
            if kind not in INTERFACES:
                raise TypeError(f"{component!r} extends none of exfm's base classes")
            check_component(kind, component)
            offers.append((kind, component.name, component))
        # The lists of claims are copied too, because add appends to them.
        claims = map_values(list, self._claims)
        copy = Registry(dict(self.plugins), dict(self._offers), claims)
        copy.add(Plugin("components", "", "(this process)", "0"), offers)
        return copy

    def quarantine(self, plugin: Plugin, reason: str, status: Literal["broken", "blocked"] = "broken") -> None:
        """Records a plugin whose components cannot be used, with the reason, and withdraws its offers."""
        for key, (_, provider) in list(self._offers.items()):
            if provider.name == plugin.name:
                del self._offers[key]
        self.plugins[plugin.name] = replace(plugin, status=status, reason=reason)

    def names(self, kind: str) -> list[str]:
        """Lists the names of a kind's components, sorted."""
        return sorted(name for offered_kind, name in self._offers if offered_kind == kind)

    def provider(self, kind: str, name: str) -> Plugin:
        """Returns the plugin that offers a component."""
        return self._offers[kind, name][1]

    def resolve(self, kind: str, name: str) -> type[Any]:
        """Returns the class of a component, and imports a lazy component.

        Raises:
            PluginError: no plugin offers the component, or its plugin is blocked or broken (with the reason).
        """
        if (kind, name) not in self._offers:
            raise PluginError(self._missing(kind, name))
        offer, plugin = self._offers[kind, name]
        if not isinstance(offer, LazyComponent):
            return offer
        try:
            # stdout belongs to the command, whatever a plugin prints.
            with redirect_stdout(sys.stderr):
                component = import_target(offer.target)
                check_component(kind, component)
                if component.name != name:
                    raise TypeError(f"{offer.target} is called {component.name!r}, not {name!r}")
        except KeyboardInterrupt:
            raise
        # BaseException, because a plugin may even call sys.exit() when it is imported.
        except BaseException as error:
            hint = "; `exfm doctor` says what to install" if isinstance(error, ImportError) else ""
            raise PluginError(
                f"{kind} {name!r} of {plugin.provider} cannot be loaded: {failure_reason(error)}{hint}"
            ) from error
        assert isinstance(component, type)
        return component

    def default_plan(self) -> str:
        """Returns the name of the parallel plan for an experiment that names none.

        Raises:
            PluginError: no plan, or several plans, declare themselves the default.
        """
        return self._default("parallel_plan", "name a parallel plan")

    def default_launcher(self) -> str:
        """Returns the name of the launcher of an experiment that names none.

        Raises:
            PluginError: no launcher, or several launchers, declare themselves the default.
        """
        return self._default("launcher", "name a launcher")

    def _default(self, kind: str, request: str) -> str:
        names = self.names(kind)
        defaults = [name for name in names if self.resolve(kind, name).is_default]
        if len(defaults) != 1:
            raise PluginError(f"{request}: {len(defaults)} are the default.{suggestion('', names)}")
        return defaults[0]

    def default_head(self, label_kind: str) -> str:
        """Returns the name of the task head for labels of a kind, of which the experiment names none.

        Raises:
            PluginError: no head of the kind, or several heads, declare themselves the default.
        """
        heads = {name: self.resolve("task_head", name) for name in self.names("task_head")}
        fitting = [name for name, head in heads.items() if head.label_kind == label_kind]
        defaults = [name for name in fitting if heads[name].is_default]
        if len(defaults) != 1:
            raise PluginError(f"name a task_head: {len(defaults)} are the default.{suggestion('', fitting)}")
        return defaults[0]

    def _missing(self, kind: str, name: str) -> str:
        """Explains why a component is missing: its name belongs to another kind, or its plugin is unusable."""
        others: list[str] = []
        for other_kind, other_name in self._offers:
            if other_name == name:
                others.append(f" {name!r} is a {other_kind}.")
        unusable: list[Plugin] = []
        culprits: list[Plugin] = []
        for plugin in self.plugins.values():
            if plugin.status != "loaded":
                unusable.append(plugin)
                if f"{kind}.{name}" in plugin.components or plugin.name == name:
                    culprits.append(plugin)
        # A plugin that failed at import names no components: any of them may be the culprit.
        reasons: list[str] = []
        for plugin in culprits or unusable:
            reason = f" {plugin.provider} is {plugin.status}: {plugin.reason.rstrip('.')}."
            if reason not in reasons:
                reasons.append(reason)
        return f"no {kind} is called {name!r}.{suggestion(name, self.names(kind))}{''.join(others + reasons)}"


def check_component(kind: str, component: object) -> None:
    """Checks a component.

    Raises:
        TypeError: it is not a class that extends its kind's interface, or its name is not a lower-case identifier.
    """
    base = import_target(INTERFACES[kind])
    if not (isinstance(component, type) and issubclass(component, base)):
        raise TypeError(f"{component!r} is not a subclass of exfm.{base.__name__}")
    check_name(getattr(component, "name", None), component.__qualname__)


def check_name(name: object, owner: str) -> None:
    """Checks a component's name.

    Raises:
        TypeError: it is not a lower-case identifier.
    """
    if not (isinstance(name, str) and name.isidentifier() and name == name.lower()):
        raise TypeError(f"{owner}.name must be a lower-case identifier, not {name!r}")
