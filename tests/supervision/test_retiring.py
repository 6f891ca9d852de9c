"""Unneeded snapshots are retired, but not under a reader; a reader whose snapshot is removed takes the newer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

import exfm
from exfm.interfaces.data_source import Window
from exfm.serving.predict import predict
from exfm.storage import snapshots
from exfm.storage.commits import Commit
from exfm.storage.hashing import FileRecord
from exfm.storage.snapshots import LEAVING, NEWEST, SnapshotRegistry
from exfm.supervision.store import Store
from tests.training.logs import experiment_dict, load, make_log


def publish(store: Store, count: int) -> None:
    """Commits windows in order, and retires snapshots after each, as a trainer does."""
    for index in range(count):
        window = Window(index, index * 100, index * 100 + 100)
        files = store.snapshots.write("vm", window, {"w": torch.full((3,), float(index))}, {"m": torch.zeros(2)})
        store.log.add("train", "vm", Commit(window, {"learned": []}, files, index - 1))
        store.snapshots.retire("vm", window.end_us)


def test_the_newest_and_some_recent_snapshots_stay(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    publish(store, 12)
    assert store.snapshots.versions("vm") == list(range(12 - NEWEST - LEAVING, 12))


def test_snapshots_are_retired_after_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "READING_S", 0.0)
    store = Store(str(tmp_path))
    publish(store, 12)
    assert store.snapshots.versions("vm") == [10, 11]


def test_two_trainers_may_retire_snapshots_concurrently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second trainer is behind: it writes snapshots again that the first has removed."""
    monkeypatch.setattr(snapshots, "READING_S", 0.0)
    first, second = Store(str(tmp_path)), Store(str(tmp_path))
    publish(first, 6)
    publish(second, 6)
    assert first.snapshots.versions("vm") == [4, 5]
    seen = first.snapshots.versions

    def list_before_the_other_removes(model: str) -> list[int]:
        versions = seen(model)
        second.snapshots.retire(model, 10_000)
        return versions

    publish(second, 6)
    for index in range(4):  # as in a stale listing of the first trainer
        window = Window(index, index * 100, index * 100 + 100)
        second.snapshots.write("vm", window, {"w": torch.zeros(3)}, {"m": torch.zeros(2)})
    monkeypatch.setattr(first.snapshots, "versions", list_before_the_other_removes)
    first.snapshots.retire("vm", 10_000)
    assert seen("vm") == [4, 5]


def test_a_reader_whose_snapshot_is_removed_takes_the_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(snapshots, "READING_S", 0.0)
    log = make_log(rows=300)
    (tmp_path / "log").mkdir()
    config = experiment_dict(str(tmp_path / "log"), str(tmp_path / "run"))
    del config["models"]["vm"]
    for number, (start, end) in enumerate(pairwise([0, 100, 300])):
        pq.write_table(log.slice(start, end - start), tmp_path / "log" / f"{number}.parquet")
        if not number:
            exfm.run(load(tmp_path, config))
    read: Callable[..., dict[str, Tensor]] = SnapshotRegistry.load
    unread = [True]

    def while_training_goes_on(
        self: SnapshotRegistry, record: FileRecord, into: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        if unread:
            unread.clear()
            exfm.run(load(tmp_path, config))
        return read(self, record, into)

    monkeypatch.setattr(SnapshotRegistry, "load", while_training_goes_on)
    with caplog.at_level(logging.WARNING):
        snapshot, rows = predict(load(tmp_path, config), "fm", str(tmp_path / "predictions.parquet"))
    assert (snapshot.version, rows) == (5, 300)
    assert "was removed before it was read" in caplog.text
    metadata: dict[bytes, Any] = pq.read_schema(tmp_path / "predictions.parquet").metadata
    assert metadata[b"exfm.snapshot"] == b"5"


def test_a_snapshot_that_is_lost_for_good_is_an_error(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    publish(store, 1)
    snapshot = store.snapshots.get("vm", 0)
    Path(store.workspace.path(snapshot.weights.path)).unlink()
    with pytest.raises(exfm.RunError, match=r"model-\w+\.safetensors: a committed file is missing; `exfm repair"):
        store.snapshots.load(snapshot.weights)
