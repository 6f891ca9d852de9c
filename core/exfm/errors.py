"""Defines the errors shown to the user: a short paragraph with the problem, its location and the allowed values."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from exfm.redaction import redact


class ConfigError(ValueError):
    """The user's input is wrong: an experiment file, an override, a path, a row of data. Exit status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


class NotYetError(ConfigError):
    """The input of a data source is missing or incomplete now, and may be complete later. Exit status 2.

    A job that follows the stream waits; any other job reports it as the user's error.
    """


class RowsRemovedError(ConfigError):
    """The store has removed rows of a window, which cannot be read whole any more. Exit status 2."""


class PluginError(ConfigError):
    """A component that an experiment names cannot be loaded from its plugin."""


class RunError(RuntimeError):
    """The run failed for a reason that lies outside the input, such as a corrupt file. Exit status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


def suggestion(name: str, allowed: Iterable[str]) -> str:
    """Returns ``Did you mean 'x'?`` with a leading space where a name is near, else the list of allowed names."""
    names = sorted(set(allowed))
    # 0.6 is difflib's default: about three of five letters agree, in order.
    near = get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]!r}? (one of: {', '.join(names)})"
    if names:
        return f" Allowed: {', '.join(names)}."
    return ""
