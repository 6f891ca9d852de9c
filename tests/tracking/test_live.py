"""Trackers of a run that goes on: each window once, whatever fails or is killed, and never another result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

import exfm
from exfm.events import Event, RunEnded, SnapshotHeld, SnapshotPublished, WindowCommitted
from exfm.mappings import without
from tests.tracking.test_log import EXPERIMENT, curves_of, tracked_by

MODELS = ("fm", "vm", "vm.control")


class Lines(exfm.Tracker):
    """Appends lines to a file, and fails at first, in the middle of a window."""

    name: ClassVar[str] = "lines"
    config: Config
    failures: ClassVar[int] = 0

    class Config(exfm.ComponentConfig):
        """Fields of `lines`."""

        path: str = Field(description="The file.")

    def window_committed(self, event: WindowCommitted) -> None:
        self._append(f"{event.model.name} {event.window.index}")

    def snapshot_published(self, event: SnapshotPublished) -> None:
        if Lines.failures:
            Lines.failures -= 1
            raise RuntimeError("the server is away")
        self._append(f"{event.model.name} {event.window.index} published")

    def _append(self, line: str) -> None:
        with Path(self.config.path).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def committed(run_dir: Path) -> dict[str, Any]:
    """Reads all that a run has committed, but for times."""
    commits: dict[str, Any] = {}
    for file in sorted(run_dir.glob("commits/*/*/*.json")):
        manifest = json.loads(file.read_text())
        counters = without(manifest["counters"], "seconds")
        commits[str(file.relative_to(run_dir))] = (manifest["window"], manifest["files"], counters)
    return commits


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run without trackers, and a run with three, which ends once in between."""
    pytest.importorskip("mlflow"), pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("live")
    (folder / "logged.yaml").write_text(EXPERIMENT.format(folder=folder), encoding="utf-8")
    exfm.run(exfm.load_experiment(str(folder / "logged.yaml"), [f"run_dir={folder / 'plain'}"]))
    text = (folder / "logged.yaml").read_text() + (
        f"trackers:\n- {{name: tensorboard, logdir: {folder / 'board'}}}\n"
        f"- {{name: mlflow, uri: {folder / 'mlruns'}}}\n"
        f"- {{name: lines, path: {folder / 'lines'}}}\n"
    )
    (folder / "tracked.yaml").write_text(text, encoding="utf-8")
    events: list[Event] = []

    def broken(event: Event) -> None:
        events.append(event)
        if isinstance(event, RunEnded):
            raise ValueError("not this one")

    for windows in (2, None):
        Lines.failures = 2
        experiment = exfm.load_experiment(str(folder / "tracked.yaml"), components=[Lines])
        results = exfm.run(experiment, windows=windows, on_event=broken)
    return {"folder": folder, "events": events, "results": results}


def test_trackers_change_no_result_by_a_bit(runs: dict[str, Any]) -> None:
    plain, tracked = committed(runs["folder"] / "plain"), committed(runs["folder"] / "run")
    assert len(plain) == 16 and plain == tracked
    notes = [note for note in runs["results"]["notes"] if "its code" in note]
    assert notes == []


def test_each_system_has_each_window_once(runs: dict[str, Any]) -> None:
    folder = runs["folder"]
    client = tracked_by(str(folder / "mlruns"))
    mlflow_runs = client.search_runs([client.get_experiment_by_name("logged").experiment_id])
    assert sorted(run.info.run_name for run in mlflow_runs) == sorted(MODELS)
    for run in mlflow_runs:
        for key in ("examples", "click/ne"):
            steps = [metric.step for metric in client.get_metric_history(run.info.run_id, key)]
            assert steps == [0, 1, 2, 3], (run.info.run_name, key)
        assert run.info.status == "FINISHED" and run.data.tags["exfm.published"] == "3"
    for model in MODELS:
        curves = curves_of(folder / "board", model)
        assert [step for step, _ in curves["click/ne"]] == [0, 1, 2, 3]
        ne = [entry["ne"] for entry in runs["results"]["models"][model]["tasks"]["click"]["windows"]]
        assert [value for _, value in curves["click/ne"]] == pytest.approx(ne, rel=1e-4)
        assert curves["run/click/ne"][0][1] == pytest.approx(runs["results"]["models"][model]["tasks"]["click"]["ne"])
    gains = [value for _, value in curves_of(folder / "board", "vm")["click/ne_gain_percent"]]
    tasks = {model: runs["results"]["models"][model]["tasks"]["click"]["windows"] for model in MODELS}
    expected = [100 * (1 - vm["ne"] / c["ne"]) for vm, c in zip(tasks["vm"], tasks["vm.control"], strict=True)]
    assert gains == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_tracker_that_fails_is_told_again_and_cannot_stop_the_run(runs: dict[str, Any]) -> None:
    lines = (runs["folder"] / "lines").read_text().splitlines()
    for model in MODELS:
        of_model = [line.partition(" ")[2] for line in lines if line.split()[0] == model]
        assert of_model == [f"{index}{word}" for index in range(4) for word in ("", " published")]


def test_a_function_is_called_with_the_events_of_its_run(runs: dict[str, Any]) -> None:
    windows = [event for event in runs["events"] if isinstance(event, WindowCommitted)]
    for model in MODELS:
        assert [event.window.index for event in windows if event.model.name == model] == [0, 1, 2, 3]
    last = windows[-1]
    assert last.lag_s == 0 and windows[0].lag_s == 129_600 and (last.memory_bytes or 0) > 1e8
    assert last.committed_at.endswith("+00:00") and last.model.params["seed"] == "3"
    published = [event for event in runs["events"] if isinstance(event, SnapshotPublished | SnapshotHeld)]
    assert len(published) == 12
    ends = [event for event in runs["events"] if isinstance(event, RunEnded)]
    assert [end.outcome for end in ends] == ["ended", "complete"]
    assert ends[-1].figures["vm"]["run/click/ne"] == runs["results"]["models"]["vm"]["tasks"]["click"]["ne"]


def test_a_tracker_that_cannot_be_built_is_said_before_the_run(runs: dict[str, Any], tmp_path: Path) -> None:
    changes = [f"run_dir={tmp_path}", "trackers.1.uri="]
    experiment = exfm.load_experiment(str(runs["folder"] / "tracked.yaml"), changes, components=[Lines])
    with pytest.raises(exfm.ConfigError, match=r"trackers\.1 \(mlflow\): mlflow: say where MLflow is"):
        exfm.run(experiment)
    assert not (tmp_path / "commits").exists()


def test_a_job_that_fails_says_so(runs: dict[str, Any], tmp_path: Path) -> None:
    events: list[Event] = []

    def stop(_: object) -> None:
        raise RuntimeError("the disk is full")

    experiment = exfm.load_experiment(str(runs["folder"] / "logged.yaml"), [f"run_dir={tmp_path}"])
    with pytest.raises(RuntimeError, match="the disk is full"):
        exfm.run(experiment, on_window=stop, on_event=events.append)
    assert isinstance(events[-1], RunEnded)
    assert (events[-1].outcome, events[-1].error) == ("failed", "RuntimeError: the disk is full")
    assert [event.window.index for event in events if isinstance(event, WindowCommitted)] == [0, 0, 0]
