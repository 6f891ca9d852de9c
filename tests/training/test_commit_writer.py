"""CommitWriter in the background: the same files, in the same order, and a failure is not lost."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from exfm.bookkeeping.commit_writer import CommitWriter, ReusableBuffers
from exfm.interfaces.data_source import Window
from exfm.storage.commits import Commit, NewCommit
from exfm.supervision.store import Store
from tests.training.logs import experiment_dict, load, make_log, train, write_log


@dataclass
class SlowCommit:
    """Takes its time to complete its files, and may fail."""

    name: str
    window: int
    store: Store
    cleaned: list[str]
    fails: bool = False
    discarded: list[str] = field(default_factory=list)

    def complete(self) -> list[NewCommit]:
        time.sleep(0.01)
        if self.fails:
            raise OSError(self.name)
        window = Window(self.window, self.window, self.window + 1)
        return [NewCommit("train", self.name, Commit(window, {}, {}, self.window - 1))]

    def cleanup(self) -> SlowCommit:
        return self

    def run(self) -> None:
        self.cleaned.append(f"{self.name} {self.window}")

    def discard(self) -> None:
        self.discarded.append(self.name)


def test_copies_take_the_memory_of_the_copies_before_where_they_fit() -> None:
    copies, grown = ReusableBuffers(), torch.zeros(2)
    weight = torch.ones(3, 2)
    first = copies.copy({"weight": weight, "grown": grown})
    weight.add_(1)
    assert first["weight"].tolist() == [[1, 1]] * 3
    second = copies.copy({"weight": weight, "grown": torch.full((4,), 7.0)})
    assert second["weight"].tolist() == [[2, 2]] * 3 and second["grown"].tolist() == [7] * 4
    assert second["weight"].data_ptr() == first["weight"].data_ptr()


@pytest.mark.parametrize("background", [False, True])
def test_a_window_is_written_for_all_models_or_for_none(background: bool, tmp_path: Path) -> None:
    writer, cleaned, store = CommitWriter(background), list[str](), Store(str(tmp_path))
    windows: list[list[Any]] = [
        [SlowCommit("fm", 0, store, cleaned), SlowCommit("vm", 0, store, cleaned)],
        [SlowCommit("fm", 1, store, cleaned), SlowCommit("vm", 1, store, cleaned, fails=True)],
    ]
    writer.write(windows[0])
    with pytest.raises(OSError, match="vm"):
        writer.write(windows[1])
        writer.wait()
    writer.wait()
    log = Store(str(tmp_path)).log
    assert [log.windows("train", "fm"), log.windows("train", "vm")] == [[0], [0]]
    assert cleaned == ["fm 0", "vm 0"]
    assert all(commit.discarded == [commit.name] for window in windows for commit in window)


def test_a_run_saved_in_the_background_is_the_same_run(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_log(rows=300))
    files = []
    for name in ("waiting", "background"):
        config = experiment_dict(log, str(tmp_path / name))
        train(load(tmp_path, config, f"save_in_background={'true' if name == 'background' else 'false'}"))
        manifests = sorted((tmp_path / name / "commits").rglob("*.json"))
        files.append(
            {str(path.relative_to(tmp_path / name)): json.loads(path.read_text())["files"] for path in manifests}
        )
    assert len(files[0]) == 4 * 6  # three models and the supervision of the FM
    assert files[0] == files[1]
