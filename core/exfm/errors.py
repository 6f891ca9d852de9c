"""Errors for the user: one short paragraph that says what, where, what was given and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from exfm.redaction import redact


class ConfigError(ValueError):
    """The user's input is wrong: an experiment file, an override, a path, a row of data. Exit status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class NotYetError(ConfigError):
    """What a data source reads is not there yet, or not complete: asked again later, it may be. Exit status 2.

    A job that follows the stream waits; any other takes it for the user's error.
    """


class PluginError(ConfigError):
    """A component that an experiment names cannot be had from its plugin."""


class RunError(RuntimeError):
    """The run failed for a reason that lies outside the input, such as a corrupt file. Exit status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


def suggestion(given: str, allowed: Iterable[str]) -> str:
    """Returns ``Did you mean 'x'?`` with a leading space where a name is near, else the list of allowed names."""
    names = sorted(set(allowed))
    near = get_close_matches(given, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]!r}? (one of: {', '.join(names)})"
    return f" Allowed: {', '.join(names)}." if names else ""
