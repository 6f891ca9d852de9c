"""Checks settings of the Kafka client, and reads those that a file keeps out of the experiment."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

OptionValue = str | int | float | bool

_SET_BY_EXFM = ("bootstrap.servers", "enable.auto.commit", "enable.partition.eof", "auto.offset.reset", "error_cb")
# An experiment file runs no code.
_RUNS_CODE = ("plugin.library.paths", "sasl.kerberos.kinit.cmd", "ssl.engine.location", "ssl.providers")
_SECRET = re.compile(r"(?:.*[._-])?(?:password|secret|key\.pem|token|oauthbearer\.config)", re.IGNORECASE)
_HIDDEN = "***"


@dataclass(frozen=True)
class ClientOptions:
    """Holds settings of the client by name, and the secrets among their values."""

    values: Mapping[str, OptionValue]
    secrets: Collection[str]


def check_options(options: Mapping[str, OptionValue], location: str = "options") -> None:
    """Raises ValueError if a setting is not the user's to choose."""
    for name in options:
        if name in _SET_BY_EXFM:
            raise ValueError(f"{location}: {name} is set by exfm, the servers by bootstrap_servers; leave it out")
        if name in _RUNS_CODE:
            raise ValueError(f"{location}: {name} makes the client run other programs, which exfm does not allow")


def client_options(options: Mapping[str, OptionValue], path: str | None) -> ClientOptions:
    """Joins the settings of an experiment with those of a file, which have precedence.

    Raises:
        ValueError: the file cannot be read, or a line of it is no ``name=value``.
    """
    joined = dict(options)
    if path is not None:
        joined |= _read_file(path)
    secrets = {str(value) for name, value in joined.items() if _SECRET.fullmatch(name) and value != ""}
    return ClientOptions(joined, secrets)


def hide_secrets(text: str, secrets: Collection[str]) -> str:
    """Replaces secrets in a message."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    return text


def _read_file(path: str) -> dict[str, str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"kafka: options_file: {path} cannot be read: {type(error).__name__}") from error
    options: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals:
            # Not the line itself, which may hold a secret.
            raise ValueError(f"kafka: options_file: {path}, line {number} is not of the form name=value")
        options[name.strip()] = value.strip()
    check_options(options, f"kafka: options_file: {path}")
    return options
