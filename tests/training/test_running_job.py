"""The record of a job: how it ended, whether it is alive, and that no job fails for it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from exfm.bookkeeping import running_job
from exfm.bookkeeping.progress import Progress
from exfm.bookkeeping.running_job import RunningJob
from exfm.interfaces.data_source import Window
from exfm.stopping import StoppedError
from exfm.storage.job_records import JobRecord, new_record, read_records, record_path, write_record
from exfm.storage.workspace import Workspace
from tests.processes import start

DAY_US = 86_400_000_000
WINDOW = Window(3, 3 * DAY_US, 4 * DAY_US)
NEXT = Window(4, 4 * DAY_US, 5 * DAY_US)


def the_record(url: str) -> JobRecord:
    (record,) = read_records(Workspace(url))
    return record


def test_a_record_follows_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running_job, "LOCAL_BEAT_S", 0.01)
    workspace = Workspace(str(tmp_path))
    with RunningJob(workspace, "train vm", "train", ["vm", "vm.control"]) as job:
        assert the_record(workspace.url).state == "running" and not the_record(workspace.url).window
        job.update(Progress(WINDOW, 6, 100, {"vm": 0.9, "vm.control": None}), 6 * DAY_US)
        job.update(Progress(NEXT, 6, 50, {"vm": 0.8}), 6 * DAY_US)
        until = time.monotonic() + 20
        while the_record(workspace.url).rows != 150 and time.monotonic() < until:  # the thread writes it
            time.sleep(0.01)
        beating = the_record(workspace.url)
        assert (beating.window, beating.windows) == ({"index": 4, "start_us": 4 * DAY_US, "end_us": 5 * DAY_US}, 6)
        assert (beating.models, beating.ne, beating.moved > beating.started) == (
            ("vm", "vm.control"),
            {"vm": 0.8},
            True,
        )
        job.wait_for("the supervision of 'fm' for window 5", 7 * DAY_US)
        waiting = the_record(workspace.url)
        assert (waiting.state, waiting.waiting_for) == ("waiting", "the supervision of 'fm' for window 5")
        assert waiting.stream_until_us == 7 * DAY_US
        assert not waiting.is_dead(datetime.now(UTC) + timedelta(days=1))  # its process is there
        job.update(Progress(NEXT, 6, 50, {}), 7 * DAY_US)
        assert (the_record(workspace.url).state, the_record(workspace.url).waiting_for) == ("running", "")
    ended = the_record(workspace.url)
    assert (ended.state, ended.rows, ended.error) == ("done", 200, "")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["train%20vm.json"]


@pytest.mark.parametrize("url", ["memory://of_a_job", "file"])
def test_an_error_and_a_signal_are_written(url: str, tmp_path: Path) -> None:
    workspace = Workspace(f"{url}/run" if "://" in url else str(tmp_path))
    with pytest.raises(OSError), RunningJob(workspace, "run", "run", ["fm"]):
        raise OSError("no answer\nfrom s3://user:secret@host/log?token=secret")
    failed = the_record(workspace.url)
    assert (failed.state, failed.error) == ("failed", "OSError: no answer from s3://***@host/log?token=***")
    with pytest.raises(StoppedError), RunningJob(workspace, "run", "run", ["fm"]):
        raise StoppedError
    assert (the_record(workspace.url).state, the_record(workspace.url).error) == ("stopped", "")


def hold(url: str) -> None:
    """Runs a job until it is killed."""
    with RunningJob(Workspace(url), "run", "run", ["fm"]):
        time.sleep(60)


def test_a_killed_job_is_dead_at_once_here_and_after_a_while_elsewhere(tmp_path: Path) -> None:
    url = str(tmp_path)
    process = start(hold, url)
    until = time.monotonic() + 20
    while not read_records(Workspace(url)) and time.monotonic() < until:
        time.sleep(0.01)
    now = datetime.now(UTC)
    assert not the_record(url).is_dead(now)
    process.kill()
    process.join()
    left = the_record(url)
    assert (left.state, left.is_dead(now)) == ("running", True)
    elsewhere = replace(left, machine="another", beat=now.isoformat())
    assert not elsewhere.is_dead(now + timedelta(seconds=10)) and elsewhere.is_dead(now + timedelta(seconds=31))
    assert not replace(elsewhere, every_s=60.0).is_dead(now + timedelta(seconds=100))
    assert not replace(elsewhere, state="done").is_dead(now + timedelta(days=1))


def test_no_job_fails_for_its_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "jobs").write_text("no folder")
    workspace = Workspace(str(tmp_path))
    with RunningJob(workspace, "run", "run", ["fm"]) as job:
        job.wait_for("rows", 0)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and said[0].startswith("the record of this job for `exfm status` cannot be written")


def test_damaged_records_and_those_of_another_format_are_left_out(tmp_path: Path) -> None:
    workspace = Workspace(str(tmp_path))
    long = "train " + ", ".join(f"model_{number}" for number in range(100))
    write_record(workspace, new_record(long, "train", ["vm"], 2.0))
    assert len(record_path(long)) < 140 and record_path(long) != record_path(long + "1")
    good = (tmp_path / record_path(long)).read_text()
    for name, content in (("half", good[:50]), ("list", "[]"), ("time", good.replace('"beat": "2', '"beat": "x'))):
        (tmp_path / "jobs" / f"{name}.json").write_text(content)
    (tmp_path / "jobs" / "later.json").write_text(json.dumps({"format": 2}))
    assert [record.job for record in read_records(workspace)] == [long]
