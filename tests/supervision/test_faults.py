"""A store on a file system that fails, delays, truncates and duplicates writes: no commit is lost or half read."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from exfm.interfaces.data_source import Window
from exfm.storage.commits import Commit
from exfm.supervision.row_files import RowWriter, predictions_schema, row_file
from exfm.supervision.store import Store
from exfm.supervision.stored_rows import read_rows
from tests.supervision.snapshots import write_snapshot

WINDOWS = 3


class FaultyFileSystem(MemoryFileSystem):
    """Simulates writes that fail by a seeded schedule, with an error or silently."""

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    chance = random.Random(0)
    late: ClassVar[list[Callable[[], None]]] = []
    rate = 0.0

    @classmethod
    def reset(cls, seed: int) -> None:
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.late.clear()
        cls.chance = random.Random(seed)
        cls.rate = cls.chance.choice([0.1, 0.3, 0.5])

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        data = Path(lpath).read_bytes()
        self._write(rpath, data, lambda prefix: MemoryFileSystem.pipe_file(self, rpath, prefix))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        self._write(path, value, lambda data: MemoryFileSystem.pipe_file(self, path, data, mode=mode))

    def _write(self, path: str, data: bytes, write: Callable[[bytes], None]) -> None:
        if self.late and self.chance.random() < 0.3:
            self.late.pop(0)()
        if self.chance.random() >= self.rate:
            write(data)
            return
        fault = self.chance.choice(["fails", "fails after", "truncates", "truncates silently", "duplicates", "delays"])
        if fault == "fails after":
            write(data)
        elif fault.startswith("truncates"):
            write(data[: self.chance.randrange(len(data))])
            if fault.endswith("silently"):
                return
        elif fault == "duplicates":
            write(data)
            MemoryFileSystem.pipe_file(self, path, data)
            return
        elif fault == "delays":
            self.late.append(lambda: self._land(write, data))
        raise OSError(f"{fault}: {path}")

    def _land(self, write: Callable[[bytes], None], data: bytes) -> None:
        """Completes a delayed write after its writer has received an error."""
        with contextlib.suppress(FileExistsError):
            write(data)


@pytest.fixture(autouse=True)
def faulty() -> None:
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)


def content(window: int) -> np.ndarray:
    return np.arange(5, dtype=np.int64) + 10 * window


def do_window(store: Store, index: int) -> None:
    """Writes and commits a window as a stage does."""
    window = Window(index, index * 100, index * 100 + 100)
    rows = RowWriter(store.workspace, row_file("predictions", "vm", index), predictions_schema(("click",), ()))
    try:
        half = np.full(5, 0.5, np.float32)
        columns = {"example_id": content(index), "window": np.full(5, index, np.int32), "group": content(index)}
        rows.append({**columns, "prediction_click": half, "label_click": half})
        files = {"rows": rows.close()}
        weights = {"w": torch.full((3,), float(index))}
        files |= write_snapshot(store.snapshots, window, weights, {"m": torch.zeros(2)})
        store.log.add("train", "vm", Commit(window, {"examples": 5, "learned": ["click"]}, files, index - 1))
    finally:
        rows.discard()


def check_visible_commits(store: Store) -> list[int]:
    """Checks that every commit which a reader can see is complete, and returns the windows."""
    windows = store.log.windows("train", "vm")
    assert windows == list(range(len(windows)))
    for index in windows:
        commit = store.log.load("train", "vm", index)
        assert read_rows(store.workspace, commit.files["rows"]).column("example_id").to_pylist() == list(content(index))
        snapshot = store.snapshots.get("vm", index)
        assert store.snapshots.load_whole(snapshot.weights)["w"].tolist() == [float(index)] * 3
    return windows


@pytest.mark.parametrize(
    "seeds", [range(12), pytest.param(range(12, 1_200), marks=pytest.mark.soak)], ids=["some", "many"]
)
def test_no_commit_is_lost_or_half_read(seeds: range) -> None:
    hits = 0
    for seed in seeds:
        FaultyFileSystem.reset(seed)
        writers = [Store("faulty://run"), Store("faulty://run")]
        done: list[int] = []
        for attempt in range(400):
            todo = len(check_visible_commits(Store("faulty://run")))
            assert todo >= len(done)  # a visible commit stays visible
            done = list(range(todo))
            if todo == WINDOWS:
                break
            try:
                do_window(writers[attempt % 2], todo)
            except OSError:
                hits += 1
        assert done == list(range(WINDOWS))
    assert hits > len(seeds) / 5
