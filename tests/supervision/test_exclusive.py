"""Exclusive creation of files: on disks with and without links, by concurrent writers, killed at any step."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exfm.interfaces.data_source import Window
from exfm.storage.commits import Commit
from exfm.storage.workspace import Workspace
from exfm.supervision.store import Store

NO_LINKS = """
import errno, os
def refused(*arguments, **named):
    raise OSError(errno.EPERM, "no links here")
if {no_links}:
    os.link = refused
"""

WRITER = """
import sys
from pathlib import Path
from exfm.storage.workspace import Workspace
folder = Path(sys.argv[1])
workspace = Workspace(str(folder))
while not (folder / "go").exists():
    pass
print(sum(workspace.create(f"{number:06d}.json", b"x" * 1000) for number in range(100)))
"""

KILLED = """
import os, sys
from pathlib import Path
from exfm.storage.workspace import Workspace
workspace = Workspace(sys.argv[1])
sys.stdout.flush()
steps = ["mkdir", "touch", "open", "rename", "rmdir", "unlink"]
for number, (step, after) in enumerate((step, after) for step in steps for after in (False, True)):
    if os.fork() == 0:
        whole = getattr(Path, step)
        def dying(self, *arguments, **named):
            if not after:
                os._exit(0)
            whole(self, *arguments, **named)
            os._exit(0)
        setattr(Path, step, dying)
        workspace.create(f"{number:06d}.json", b"whole")
        os._exit(0)
    os.wait()
"""


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS])
def test_a_disk_without_links_takes_a_manifest(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refused)
    store = Store(str(tmp_path / "run"))
    commit = Commit(Window(0, 0, 100), {"examples": 5, "learned": []}, {})
    assert store.log.add("train", "vm", commit)
    assert not store.log.add("train", "vm", commit)
    assert store.log.load("train", "vm", 0).window == commit.window
    assert [path.name for path in (tmp_path / "run" / "commits" / "train" / "vm").iterdir()] == ["000000.json"]


@pytest.mark.parametrize("no_links", [False, True])
def test_a_single_writer_creates_each_file(no_links: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-c", NO_LINKS.format(no_links=no_links) + WRITER, str(tmp_path)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    (tmp_path / "go").touch()
    counts = [int(writer.communicate()[0]) for writer in writers]
    assert sum(counts) == 100
    files = sorted(path for path in tmp_path.iterdir() if path.name != "go")
    assert [path.name for path in files] == [f"{number:06d}.json" for number in range(100)]
    assert {path.read_bytes() for path in files} == {b"x" * 1000}


def test_writers_killed_at_any_step_leave_a_whole_file_or_none(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NO_LINKS.format(no_links=True) + KILLED, str(tmp_path)]
    subprocess.run(command, check=True, timeout=60)
    workspace = Workspace(str(tmp_path))
    assert {(tmp_path / name).read_bytes() for name in workspace.names("")} <= {b"whole"}
    before = set(workspace.names(""))
    assert list(tmp_path.glob(".exfm.*"))
    workspace.sweep()
    assert before < set(workspace.names(""))  # files whose writers had won are completed
    assert not list(tmp_path.glob(".exfm.*"))
    again = [workspace.create(f"{number:06d}.json", b"other") for number in range(12)]
    for number, created in enumerate(again):
        assert (tmp_path / f"{number:06d}.json").read_bytes() == (b"other" if created else b"whole")
    assert len({*again}) == 2
