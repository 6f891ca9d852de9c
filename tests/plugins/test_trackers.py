"""The built-in trackers: the kit, and what each system has after events."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import exfm_plugins.trackers
from exfm.events import SnapshotHeld, TrackedModel, TrackedRun
from exfm.testing import TrackerTests
from exfm.testing.tracker import History, every_event, tell, tracked_model, window_of
from exfm_plugins.trackers.mlflow.tracker import MLflowTracker
from exfm_plugins.trackers.opentelemetry.tracker import OpenTelemetryTracker
from exfm_plugins.trackers.prometheus.tracker import PrometheusTracker
from exfm_plugins.trackers.tensorboard.tracker import TensorBoardTracker
from exfm_plugins.trackers.wandb.tracker import WandbTracker

RUN = TrackedRun("ads", "runs/ads", "name: ads\n")


class TestTensorBoard(TrackerTests):
    component = TensorBoardTracker
    plugin = exfm_plugins.trackers
    configs = ({"logdir": "{folder}/logs"},)

    def history(self, fields: Mapping[str, Any], folder: Path, model: TrackedModel) -> History:
        loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        events = loader.EventAccumulator(str(folder / "logs/ads" / model.name), size_guidance={"scalars": 0})
        events.Reload()
        windows: dict[int, dict[str, float]] = {}
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                windows.setdefault(event.step, {})[tag] = event.value
        steps = [event.step for event in events.Scalars("examples")]
        return [(step, windows[step]) for step in steps]


class TestMLflow(TrackerTests):
    component = MLflowTracker
    plugin = exfm_plugins.trackers
    configs = ({"uri": "{folder}/mlruns"},)

    def history(self, fields: Mapping[str, Any], folder: Path, model: TrackedModel) -> History:
        client = self.make(fields, folder)._client
        home = client.get_experiment_by_name("ads").experiment_id
        (run,) = client.search_runs([home], f"tags.`exfm.run` = '{model.identity}'")
        windows: dict[int, dict[str, float]] = {}
        for key in run.data.metrics:
            for metric in client.get_metric_history(run.info.run_id, key):
                windows.setdefault(metric.step, {})[key] = metric.value
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "examples")]
        return [(step, windows[step]) for step in steps]


class TestPrometheus(TrackerTests):
    component = PrometheusTracker
    plugin = exfm_plugins.trackers
    configs = ({"port": 0},)


class TestOpenTelemetry(TrackerTests):
    component = OpenTelemetryTracker
    plugin = exfm_plugins.trackers

    @pytest.fixture(autouse=True)
    def exporter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", "console")


class TestWandb(TrackerTests):
    component = WandbTracker
    plugin = exfm_plugins.trackers
    configs = ({"mode": "offline", "folder": "{folder}"},)

    @pytest.fixture(autouse=True)
    def library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("wandb", reason="wandb is not installed: pip install 'exfm[wandb]'")


def page(tracker: PrometheusTracker) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{tracker.port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_prometheus_reads_the_newest_window() -> None:
    tracker, model = PrometheusTracker(PrometheusTracker.Config(port=0), RUN), tracked_model("vm")
    for index in range(2):
        tracker.window_committed(window_of(model, index))
    tracker.snapshot_held(SnapshotHeld(model, window_of(model, 1).window, {"click": "bad"}))
    figures, newest = page(tracker), window_of(model, 1)
    labels = 'model="vm",run="ads"'
    assert figures[f'exfm_ne{{{labels},task="click"}}'] == pytest.approx(newest.tasks["click"]["ne"])
    assert figures[f'exfm_supervision_age_seconds{{{labels},teacher="fm"}}'] == 61
    assert (figures[f"exfm_lag_seconds{{{labels}}}"], figures[f"exfm_memory_bytes{{{labels}}}"]) == (7200, 1 << 30)
    assert (figures[f"exfm_examples_total{{{labels}}}"], figures[f"exfm_snapshot_held{{{labels}}}"]) == (201, 1)
    tracker.close()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{tracker.port}/metrics")


def test_opentelemetry_exports_what_prometheus_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "console")
    tracker = OpenTelemetryTracker(OpenTelemetryTracker.Config(), RUN)
    for event in every_event(tracked_model("vm")):
        tell(tracker, event)
    tracker.close()
    exported = json.loads(capsys.readouterr().err)
    metrics = exported["resource_metrics"][0]["scope_metrics"][0]["metrics"]
    values = {metric["name"]: metric["data"]["data_points"] for metric in metrics}
    assert values["exfm_windows"][0]["value"] == 3 and values["exfm_snapshots_held"][0]["value"] == 1
    (click,) = [point for point in values["exfm_ne"] if point["attributes"]["task"] == "click"]
    assert click["value"] == pytest.approx(window_of(tracked_model("vm"), 1).tasks["click"]["ne"])
    assert click["attributes"] == {"run": "ads", "model": "vm", "task": "click"}
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "zipkin")
    with pytest.raises(ValueError, match=r"no exporter 'zipkin' is installed .installed: .*console"):
        OpenTelemetryTracker(OpenTelemetryTracker.Config(), RUN)


@pytest.mark.parametrize(
    ("tracker", "module", "extra"),
    [
        (PrometheusTracker, "prometheus_client", "prometheus"),
        (OpenTelemetryTracker, "opentelemetry.sdk.metrics", "opentelemetry"),
        (WandbTracker, "wandb", "wandb"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    tracker: Any, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"pip install 'exfm\[{extra}\]'"):
        tracker(tracker.Config(), RUN)
