"""The registry: components by kind and name, and the plugins they come from."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from exfm.errors import PluginError, suggestion
from exfm.registry.hooks import INTERFACES, LazyComponent, Offer, import_target
from exfm.registry.reasons import reason_of


@dataclass(frozen=True)
class Plugin:
    """One entry point of the group ``exfm``, and what became of it."""

    name: str
    module: str
    distribution: str
    version: str
    status: Literal["loaded", "blocked", "broken"] = "loaded"
    reason: str = ""
    components: tuple[str, ...] = ()

    @property
    def provider(self) -> str:
        """Distribution and version, as error messages name it."""
        return f"{self.distribution} {self.version} (plugin {self.name!r})"

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


@dataclass
class Registry:
    """Every component the installed plugins offer. ``exfm.registry.discovery`` fills it."""

    plugins: dict[str, Plugin] = field(default_factory=dict)
    _offers: dict[tuple[str, str], tuple[Offer, Plugin]] = field(default_factory=dict)
    _claims: dict[tuple[str, str], list[Plugin]] = field(default_factory=dict)

    def add(self, plugin: Plugin, offers: list[tuple[str, str, Offer]]) -> None:
        """Records a loaded plugin and its offers (kind, name, class or reference).

        A name that two plugins offer belongs to neither: both are quarantined, with a reason that names both.
        """
        plugin = replace(plugin, components=tuple(f"{kind}.{name}" for kind, name, _ in offers))
        keys = [(kind, name) for kind, name, _ in offers]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            self.quarantine(plugin, f"it offers {twice[0][0]} {twice[0][1]!r} twice")
            return
        for key in keys:
            self._claims.setdefault(key, []).append(plugin)
        contested = [key for key in keys if len(self._claims[key]) > 1]
        if not contested:
            self.plugins[plugin.name] = plugin
            self._offers |= {(kind, name): (offer, plugin) for kind, name, offer in offers}
        for kind, name in contested:
            parties = self._claims[kind, name]
            who = " and by ".join(party.provider for party in parties)
            for party in parties:
                self.quarantine(party, f"{kind} {name!r} is offered by {who}; block all but one with --block-plugin")

    def with_classes(self, components: Sequence[type[Any]]) -> Registry:
        """A copy that also has these classes, which no installed plugin offers.

        Raises:
            TypeError: one of them is no component, or has no name.
        """
        offers: list[tuple[str, str, Offer]] = []
        for component in components:
            kind = getattr(component, "kind", None)
            if kind not in INTERFACES:
                raise TypeError(f"{component!r} extends none of exfm's base classes")
            check_component(kind, component)
            offers.append((kind, component.name, component))
        copy = Registry(dict(self.plugins), dict(self._offers), {key: [*found] for key, found in self._claims.items()})
        copy.add(Plugin("components", "", "(this process)", "0"), offers)
        return copy

    def quarantine(self, plugin: Plugin, reason: str, status: Literal["broken", "blocked"] = "broken") -> None:
        """Records a plugin whose components cannot be used, and why."""
        self._offers = {key: value for key, value in self._offers.items() if value[1].name != plugin.name}
        self.plugins[plugin.name] = replace(plugin, status=status, reason=reason)

    def names(self, kind: str) -> list[str]:
        """Names of a kind's components, in order."""
        return sorted(name for of_kind, name in self._offers if of_kind == kind)

    def provider(self, kind: str, name: str) -> Plugin:
        """The plugin a component comes from."""
        return self._offers[kind, name][1]

    def resolve(self, kind: str, name: str) -> type[Any]:
        """The class of a component.

        Raises:
            PluginError: no plugin offers it, or its plugin is blocked or broken (with the reason).
        """
        if (kind, name) not in self._offers:
            raise PluginError(self._missing(kind, name))
        offer, plugin = self._offers[kind, name]
        if not isinstance(offer, LazyComponent):
            return offer
        try:
            with redirect_stdout(sys.stderr):  # stdout belongs to the command, whatever a plugin prints
                component = import_target(offer.target)
                check_component(kind, component)
                if component.name != name:
                    raise TypeError(f"{offer.target} is called {component.name!r}, not {name!r}")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may even call sys.exit() when it is imported
            hint = "; `exfm doctor` says what to install" if isinstance(error, ImportError) else ""
            raise PluginError(
                f"{kind} {name!r} of {plugin.provider} cannot be loaded: {reason_of(error)}{hint}"
            ) from error
        assert isinstance(component, type)
        return component

    def default_plan(self) -> str:
        """Name of the parallel plan an experiment gets that names none.

        Raises:
            PluginError: no plan, or more than one, declares itself the default.
        """
        names = self.names("parallel_plan")
        defaults = [name for name in names if self.resolve("parallel_plan", name).is_default]
        if len(defaults) != 1:
            raise PluginError(f"name a parallel plan: {len(defaults)} are the default.{suggestion('', names)}")
        return defaults[0]

    def _missing(self, kind: str, name: str) -> str:
        unusable = [plugin for plugin in self.plugins.values() if plugin.status != "loaded"]
        culprits = [p for p in unusable if f"{kind}.{name}" in p.components or p.name == name] or unusable
        reasons = dict.fromkeys(f" {p.provider} is {p.status}: {p.reason.rstrip('.')}." for p in culprits)
        others = [f" {name!r} is a {of_kind}." for of_kind, of_name in self._offers if of_name == name]
        return f"no {kind} is called {name!r}.{suggestion(name, self.names(kind))}{''.join([*others, *reasons])}"


def check_component(kind: str, component: object) -> None:
    """Raises TypeError unless ``component`` is a named class that extends its kind's interface."""
    base = import_target(INTERFACES[kind])
    if not (isinstance(component, type) and issubclass(component, base)):
        raise TypeError(f"{component!r} is not a subclass of exfm.{base.__name__}")
    check_name(getattr(component, "name", None), component.__qualname__)


def check_name(name: object, owner: str) -> None:
    """Raises TypeError unless ``name`` is a lower-case identifier."""
    if not (isinstance(name, str) and name.isidentifier() and name == name.lower()):
        raise TypeError(f"{owner}.name must be a lower-case identifier, not {name!r}")
