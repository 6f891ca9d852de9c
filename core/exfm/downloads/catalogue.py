"""Collects the public logs that the installed data sources read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from exfm.errors import ConfigError, PluginError, suggestion
from exfm.interfaces.download import Download
from exfm.registry.registry import Registry


@dataclass(frozen=True)
class Entry:
    """A public log, and the name of the data source that reads it."""

    source: str
    download: Download


@dataclass(frozen=True)
class Catalogue:
    """The public logs by name, and the reasons why some data sources could not be asked, by their name."""

    entries: dict[str, Entry]
    problems: dict[str, str]

    def find(self, name: str) -> Entry:
        """Returns the entry of a name.

        Raises:
            ConfigError: there is none.
        """
        if name not in self.entries:
            reasons = "".join(f" {source} could not be asked: {reason}." for source, reason in self.problems.items())
            raise ConfigError(
                f"no public log is called {name!r}.{suggestion(name, self.entries)}{reasons} `exfm data list` shows all"
            )
        return self.entries[name]


def collect(registry: Registry) -> Catalogue:
    """Asks every data source for its downloads.

    Raises:
        ConfigError: two data sources offer the same name.
    """
    catalogue = Catalogue({}, {})
    for entry in _entries(registry, catalogue.problems):
        name = entry.download.name
        other = catalogue.entries.setdefault(name, entry)
        if other is not entry:
            raise ConfigError(
                f"two data sources offer the log {name!r}: {other.source} and {entry.source}; block the plugin of one "
                "with --block-plugin"
            )
    return catalogue


def _entries(registry: Registry, problems: dict[str, str]) -> Iterator[Entry]:
    for source in registry.names("data_source"):
        try:
            component = registry.resolve("data_source", source)
        except PluginError as error:
            problems[source] = str(error)
            continue
        for download in component.downloads:
            yield Entry(source, download)
