"""Unneeded snapshots are retired, but not under a reader; a reader whose snapshot is removed takes the newer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import exfm
from exfm.config.keep_section import NEWEST
from exfm.interfaces.data_source import Window
from exfm.interfaces.local_shards import StateTensor
from exfm.serving.predict import predict
from exfm.storage import snapshots
from exfm.storage.commits import Commit
from exfm.storage.snapshots import LEAVING, SnapshotRegistry, TensorFiles
from exfm.supervision.store import Store
from tests.supervision.snapshots import write_snapshot
from tests.training.logs import experiment_dict, load, make_log, train


def publish(store: Store, count: int, held: Collection[int] = (), first: int = 0, needed_us: int | None = None) -> None:
    """Commits windows in order, and retires snapshots after each, as a trainer does."""
    for index in range(first, count):
        window = Window(index, index * 100, index * 100 + 100)
        files = write_snapshot(store.snapshots, window, {"w": torch.full((3,), float(index))}, {"m": torch.zeros(2)})
        counters = {"learned": [], "held": {"click": "bad figures"} if index in held else {}}
        store.log.add("train", "vm", Commit(window, counters, files, index - 1))
        store.snapshots.retire("vm", window.end_us if needed_us is None else needed_us)


def test_the_newest_and_some_recent_snapshots_stay(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    publish(store, 12)
    assert store.snapshots.versions("vm") == list(range(12 - NEWEST - LEAVING, 12))


def test_snapshots_are_retired_after_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "READING_S", 0.0)
    store = Store(str(tmp_path))
    publish(store, 12)
    assert store.snapshots.versions("vm") == [10, 11]


def test_held_snapshots_go_and_the_published_one_that_is_read_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "READING_S", 0.0)
    store = Store(str(tmp_path))
    publish(store, 12, held=range(4, 12))
    # 3 is read by all, and training goes on from 10 and 11: a long failure fills no disk.
    assert store.snapshots.versions("vm") == [3, 10, 11]
    assert next(store.snapshots.published("vm", 10_000)).version == 3
    assert next(store.snapshots.newest_first("vm", 10_000)).version == 11
    publish(store, 15, first=12)
    assert store.snapshots.versions("vm") == [13, 14]


def test_a_reader_that_lags_finds_the_published_snapshot_before_the_held_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "READING_S", 0.0)
    store = Store(str(tmp_path))
    publish(store, 12, held=(4, 5, 8), needed_us=600)
    assert store.snapshots.versions("vm") == [3, 6, 7, 9, 10, 11]
    assert next(store.snapshots.published("vm", 600)).version == 3


def test_promoted_snapshots_are_not_retired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "READING_S", 0.0)
    store, operator = Store(str(tmp_path)), Store(str(tmp_path))
    publish(store, 4)
    operator.snapshots.aliases.promote("vm", "production", 3)
    publish(store, 8, first=4)
    operator.snapshots.aliases.promote("vm", "production", 7)
    operator.snapshots.aliases.promote("vm", "canary", 6)
    publish(store, 12, first=8)
    assert store.snapshots.versions("vm") == [3, 6, 7, 10, 11]
    assert operator.snapshots.rollback("vm", "production") == (7, 3)
    publish(store, 13, first=12)
    assert store.snapshots.versions("vm") == [3, 6, 11, 12]  # an alias left 7


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
        write_snapshot(second.snapshots, window, {"w": torch.zeros(3)}, {"m": torch.zeros(2)})
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
            train(load(tmp_path, config))
    read: Callable[..., dict[str, StateTensor]] = SnapshotRegistry.load
    unread = [True]

    def while_training_goes_on(self: SnapshotRegistry, files: TensorFiles, **options: Any) -> dict[str, StateTensor]:
        if unread:
            unread.clear()
            train(load(tmp_path, config))
        return read(self, files, **options)

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
    Path(store.workspace.path(snapshot.weights.files[0].path)).unlink()
    with pytest.raises(exfm.RunError, match=r"model-\w+\.safetensors: a committed file is missing; `exfm repair"):
        store.snapshots.load(snapshot.weights)
