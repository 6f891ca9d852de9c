"""A run that each test gets a copy of, because a vacuum removes files."""

import shutil
from pathlib import Path

import pytest

from exfm.storage import snapshots
from exfm.supervision.store import Store
from exfm.supervision.vacuum import Vacuum, apply_vacuum, find_vacuum


def copy_run(whole: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies a run with its log; no reader is waited for."""
    monkeypatch.setattr(snapshots, "READING_S", 0.0)
    shutil.copytree(whole, folder)
    return folder


def vacuum(folder: Path) -> Vacuum:
    store = Store(str(folder / "run"))
    return apply_vacuum(store, find_vacuum(store), grace_s=0)
