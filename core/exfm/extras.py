"""Imports packages of exfm's extras."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from exfm.errors import ConfigError


def import_extra(module: str, title: str, extra: str) -> Any:
    """Imports a package that not everybody installs.

    Args:
        title: the package's name for people.
        extra: the extra of exfm that installs it.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(f"{title} cannot be imported ({error}): pip install 'exfm[{extra}]'") from error
