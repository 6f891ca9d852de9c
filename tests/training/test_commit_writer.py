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
from tests.training.logs import experiment_dict, load, make_log, train, write_log


@dataclass
class SlowCommit:
    """Takes its time to write, and may fail."""

    name: str
    done: list[str]
    fails: bool = False
    discarded: list[str] = field(default_factory=list)

    def write(self) -> None:
        time.sleep(0.01)
        if self.fails:
            raise OSError(self.name)
        self.done.append(self.name)

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
def test_windows_are_written_in_order_and_up_to_the_first_that_fails(background: bool) -> None:
    writer, done = CommitWriter(background), list[Any]()
    windows: list[list[Any]] = [
        [SlowCommit("fm 0", done), SlowCommit("vm 0", done)],
        [SlowCommit("fm 1", done), SlowCommit("vm 1", done, fails=True), SlowCommit("control 1", done)],
    ]
    writer.write(windows[0])
    with pytest.raises(OSError, match="vm 1"):
        writer.write(windows[1])
        writer.wait()
    writer.wait()
    assert done == ["fm 0", "vm 0", "fm 1"]
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
