"""The log of a job without a terminal: lines that say where it is, and in which phase its time went."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import exfm
from exfm.bookkeeping.progress import Clock, Progress
from exfm.reporting import job_log
from exfm.reporting.job_log import JobLog
from exfm.reporting.log_lines import LogFormat

DAY_US = 86_400_000_000
EXPERIMENT = """
name: logged
run_dir: {folder}/run
stream: {{source: {{name: synthetic_ads, days: 2, rows_per_day: 200, users: 20, ads: 30}}, window: 12h}}
evaluation: {{replicates: 100}}
models:
  fm: {{backbone: {{name: dlrm}}, tasks: [click], supervision: {{delay: 12h}}}}
  vm: {{backbone: {{name: dlrm}}, tasks: [click], transfer: [{{name: direct, teacher: fm}}]}}
"""


class Time:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(job_log, "time", time)
    return time


@pytest.fixture
def plain_logging() -> Iterator[None]:
    """Takes back what the command sets for the whole process."""
    root = logging.getLogger()
    handlers, factory, line = list(root.handlers), logging.getLogRecordFactory(), warnings.formatwarning
    formats = [handler.formatter for handler in handlers]
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    for handler, formatter in zip(handlers, formats, strict=True):
        handler.setFormatter(formatter)
    logging.setLogRecordFactory(factory)
    warnings.formatwarning = line


def update(index: int, rows: int, clock: Clock) -> Progress:
    window = exfm.sources.Window(index, index * DAY_US, (index + 1) * DAY_US)
    return Progress(window, 9, rows, {"vm": 0.5}, ("fm",), 86_400.0, clock)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_every_second_of_a_job_is_in_a_phase_of_a_line(time: Time, capsys: pytest.CaptureFixture[str]) -> None:
    log, clock, rows = JobLog("vm", LogFormat.JSON), Clock(), 0
    time.now += 7  # the models are built
    for index in range(6):
        for _ in range(3):
            clock.data, clock.train, time.now = clock.data + 1, clock.train + 4, time.now + 5.5
            rows += 10
            log.update(update(index, 10, clock), rows, 0.0)
        clock.commit, time.now = clock.commit + 2, time.now + 2
        log.window(update(index, 0, clock))
    clock.wait, time.now = clock.wait + 20, time.now + 20
    clock.evaluate, time.now = clock.evaluate + 3, time.now + 3
    log.stop()
    *windows, end = lines(capsys)
    assert [line["windows_done"] for line in windows] == [0, 1, 2, 3, 4, 5, 6], "the first chunk, then the windows"
    summed = {phase: sum(line["seconds"][phase] for line in windows) for phase in windows[0]["seconds"]}
    expected = {"starting": 7.5, "training": 72, "reading": 18, "supervision": 0, "committing": 12, "evaluation": 0}
    assert summed == pytest.approx({**expected, "waiting": 0, "other": 8.5})
    assert end["seconds"] == pytest.approx({**expected, "waiting": 20, "evaluation": 3, "other": 8.5, "total": 141})
    assert [line["rows_per_second"] for line in windows[:3]] == pytest.approx([10 / 5, 20 / 13, 30 / 18.5], abs=0.1)
    assert (end["rows"], end["windows_done"], end["outcome"]) == (180, 6, "done")


def test_lines_are_a_few_seconds_apart(time: Time, capsys: pytest.CaptureFixture[str]) -> None:
    log, clock = JobLog("vm", LogFormat.JSON), Clock()
    for index in range(40):  # windows of a quarter of a second
        time.now += 0.25
        log.update(update(index, 1, clock), index + 1, 0.0)
        log.window(update(index, 0, clock))
    for chunk in range(10):  # a window of two minutes
        time.now += 12
        log.update(update(40, 1, clock), 41 + chunk, 0.0)
    log.stop(RuntimeError("broken"))
    printed = lines(capsys)
    elapsed = [line["elapsed_s"] for line in printed[:-1]]
    assert elapsed == pytest.approx([0.25, 2.25, 4.25, 6.25, 8.25, 46, 82, 118, 130])
    assert (printed[-1]["outcome"], printed[-1]["rows"]) == ("RuntimeError", 50)


def test_a_job_that_waits_says_for_what(time: Time, capsys: pytest.CaptureFixture[str]) -> None:
    log = JobLog("vm", LogFormat.TEXT)
    for second in range(1300):
        time.now += 1
        log.waiting("supervision by fm" if second > 3 else "more rows")
    log.stop()
    printed = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    assert printed[:-1] == ["vm: waiting for more rows"] + 3 * ["vm: waiting for supervision by fm"]
    assert printed[-1].startswith("vm: done after 0:21:40: other 100%")


def test_a_job_that_has_done_nothing_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    JobLog("vm", LogFormat.TEXT).stop(ValueError())
    assert capsys.readouterr().err == ""


def test_all_that_a_command_says_is_json(
    plain_logging: None, tmp_path: Path, exfm_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines, warnings and errors, of the command line too."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = tmp_path / "printed.yaml"
    file.write_text(EXPERIMENT.format(folder=tmp_path), encoding="utf-8")
    outcome = exfm_cli("train", str(file), "--model", "fm", "--log-format", "json")
    assert outcome.status == 0, outcome.err
    events = [json.loads(line) for line in outcome.err.splitlines()]
    assert [event["event"] for event in events] == ["window", "window", "end"]
    assert events[1]["models"] == ["fm"] and events[1]["lag_s"] == 0 and events[1]["windows_done"] == 4
    phases = events[-1]["seconds"]
    assert sum(phases.values()) == pytest.approx(2 * phases["total"], abs=0.01) and phases["training"] > 0
    labelled = exfm_cli("supervise", str(file), "--model", "fm", "--log-format=json")
    assert json.loads(labelled.err.splitlines()[0])["labelling"] == ["fm"]
    logging.getLogger("exfm").warning("held: %s", "vm")
    for wrong in (["--modle", "fm"], ["--model", "mf"]):
        outcome = exfm_cli("train", str(file), *wrong, "--log-format=json")
        (error,) = [json.loads(line) for line in outcome.err.splitlines()]
        assert (outcome.status, error["level"], error["event"]) == (2, "error", "message")
        assert wrong[wrong[0] == "--model"] in error["message"]
