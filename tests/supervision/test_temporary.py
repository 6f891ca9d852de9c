"""Unfinished files stay while their writer lives, and a later start removes those of a killed writer."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from exfm.storage.snapshots import SnapshotRegistry
from exfm.storage.temporary import make_folder, temporary_folder
from exfm.storage.workspace import Workspace
from exfm.supervision.store import Store

WRITER = """
import sys
from exfm.storage.temporary import temporary_folder
from exfm.storage.workspace import Workspace
with Workspace(sys.argv[1]).writing("rows.parquet") as file, temporary_folder(sys.argv[1]):
    print("writing", flush=True)
    sys.stdin.read()
"""


def unfinished(folder: Path) -> list[Path]:
    return sorted(folder.glob(".exfm.*.tmp"))


def test_files_of_a_killed_writer_are_removed_and_files_of_a_living_writer_are_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        workspace = Workspace(str(tmp_path))
        with workspace.writing("mine.parquet"):
            workspace.sweep()
            assert len(unfinished(tmp_path)) == 3
        assert len(unfinished(tmp_path)) == 2
        writer.kill()
    workspace.sweep()
    assert unfinished(tmp_path) == []
    assert workspace.names("") == ["mine.parquet"]


def test_files_of_another_machine_are_removed_by_age(tmp_path: Path) -> None:
    old, new = (tmp_path / f".exfm.elsewhere-1.{'0' * 12}.{name}.tmp" for name in ("old", "new"))
    old_format, foreign = tmp_path / ".exfm.abcd1234.tmp", tmp_path / ".somebody.tmp"
    for path in (old, new, old_format, foreign):
        path.touch()
    long_ago = time.time() - 2 * 24 * 3600
    for path in (old, old_format, foreign):
        os.utime(path, (long_ago, long_ago))
    Workspace(str(tmp_path)).sweep()
    assert sorted(tmp_path.iterdir()) == sorted([new, foreign])


def test_spooled_files_of_killed_processes_go_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    command = [sys.executable, "-c", WRITER, f"memory://{tmp_path.name}"]
    command[2] = WRITER.replace("temporary_folder(sys.argv[1])", "temporary_folder(sys.argv[2])")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [*command, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        assert len(unfinished(tmp_path)) == 2
        writer.kill()
    Workspace("memory://elsewhere").sweep()
    assert unfinished(tmp_path) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_decides_who_may_read(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        workspace = Workspace(str(tmp_path))
        workspace.write("rows", b"1")
        workspace.create("manifest", b"1")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {mode}


def test_a_folder_that_another_job_removes_is_created_again(tmp_path: Path) -> None:
    """A job may retire a snapshot while another job writes it again."""
    first, second = Workspace(str(tmp_path)), Workspace(str(tmp_path))
    second.write("snapshots/vm/000000/model", b"1")
    with first.writing("snapshots/vm/000000/model") as file:
        file.write(b"1")
        second.remove("snapshots/vm/000000")
        assert second.names("snapshots/vm/000000") == []
    assert first.read("snapshots/vm/000000/model") == b"1"
    second.remove("snapshots/vm/000000")
    first.remove("snapshots/vm/000000")
    assert first.names("snapshots/vm") == []


def test_a_folder_that_is_removed_again_and_again_is_created(tmp_path: Path) -> None:
    """Between the two looks of `mkdir` at a folder, another job may remove it."""
    folder, ended = tmp_path / "000000", threading.Event()

    def remove() -> None:
        while not ended.is_set():
            with suppress(OSError):
                folder.rmdir()

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        for _ in range(5_000):
            make_folder(str(folder))
    finally:
        ended.set()
        remover.join()
    with suppress(FileNotFoundError):
        folder.rmdir()
    folder.touch()
    with pytest.raises(FileExistsError):
        make_folder(str(folder))


def test_stray_names_are_no_snapshots_and_no_commits(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert isinstance(store.snapshots, SnapshotRegistry)
    for name in ("desktop.ini", "lost+found/x", "12/x", "²²²²²²/x", "000003/x"):
        store.workspace.write(f"snapshots/vm/{name}", b"")
    for name in ("desktop.ini", "lost+found/x", "notes.json", "1.json", "0000-1.json"):
        store.workspace.write(f"commits/train/vm/{name}", b"")
    assert store.snapshots.versions("vm") == [3]
    assert store.log.windows("train", "vm") == []
    assert list(store.snapshots.newest_first("vm", 2**62)) == []


def test_a_temporary_folder_is_gone_when_it_is_left(tmp_path: Path) -> None:
    with temporary_folder(str(tmp_path)) as folder:
        (folder / "file").touch()
    assert list(tmp_path.iterdir()) == []
