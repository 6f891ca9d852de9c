"""The run that the tests of this folder look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.watching.planted import whole_run


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run, which no test changes."""
    return whole_run(tmp_path_factory.mktemp("whole"))
