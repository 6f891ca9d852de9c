"""The fixtures that pytest has where exfm is installed (entry point group ``pytest11``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from exfm.testing.isolation import IsolatedRegistry


@pytest.fixture
def exfm_registry() -> Iterator[IsolatedRegistry]:
    """An empty registry, whatever is installed; what a test puts in is what experiments can name.

    Example::

        def test_an_experiment_with_mine(exfm_registry):
            registry = exfm_registry.put(Mine, exfm_plugins.parallel)
            assert registry.names("backbone") == ["mine"]
    """
    from exfm.registry.discovery import default_registry
    from exfm.testing.isolation import IsolatedRegistry

    with pytest.MonkeyPatch.context() as monkeypatch:
        yield IsolatedRegistry(monkeypatch)
    default_registry.cache_clear()
