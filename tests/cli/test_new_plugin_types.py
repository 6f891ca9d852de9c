"""`exfm new-plugin`: the distribution of each kind is typed. Checked late, when mypy has a cache of torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from exfm.cli.new_plugin import checked_project, write_project
from exfm.registry.discovery import default_registry
from tests.cli.test_new_plugin import NAMES, ROOT


def test_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / kind for kind in NAMES]
    for folder, (kind, name) in zip(folders, NAMES.items(), strict=True):
        write_project(checked_project(name, kind, default_registry()), folder)
    monkeypatch.setenv("MYPYPATH", ":".join(map(str, [*folders, ROOT / "core", ROOT / "plugins"])))
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    files = [str(file) for folder in folders for file in folder.rglob("*.py")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *files], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
