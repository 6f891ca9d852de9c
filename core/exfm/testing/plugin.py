"""Fixtures that pytest loads where exfm is installed (entry point group ``pytest11``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from exfm.testing.isolation import IsolatedRegistry


@pytest.fixture
def exfm_registry() -> Iterator[IsolatedRegistry]:
    """Provides an empty registry instead of the installed plugins; experiments can name the components that are put in.

    Example::

        def test_an_experiment_with_mine(exfm_registry):
            registry = exfm_registry.put(Mine, exfm_plugins.parallel)
            assert registry.names("backbone") == ["mine"]
    """
    # Imported on use, because pytest loads this module in every project.
    from exfm.registry.discovery import default_registry
    from exfm.testing.isolation import IsolatedRegistry

    with pytest.MonkeyPatch.context() as monkeypatch:
        yield IsolatedRegistry(monkeypatch)
    default_registry.cache_clear()
