"""Tests that hold for every tracker."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from exfm.interfaces.component import Component
from exfm.interfaces.data_source import Window
from exfm.interfaces.events import (
    RunEnded,
    SnapshotHeld,
    SnapshotPublished,
    TrackedModel,
    TrackedRun,
    WindowCommitted,
)
from exfm.interfaces.tracker import Tracker
from exfm.testing.component import ComponentTests

_HOUR_US = 3_600_000_000
_START_US = 1_767_225_600_000_000  # 2026-01-01

History = list[tuple[int, Mapping[str, float]]]
"""The windows of a model that a system has, each with its figures."""


def tracked_model(name: str, life: int = 0) -> TrackedModel:
    """Describes a model; of another life, that of a run which has started over in the same folder."""
    return TrackedModel(name, f"file:///runs/ads#{name}#{life}", f"{name}.control", {"model.backbone.name": "dlrm"})


def window_of(model: TrackedModel, index: int) -> WindowCommitted:
    """Describes a window of a model, with figures that differ from those of every other."""
    window = Window(index, _START_US + index * _HOUR_US, _START_US + (index + 1) * _HOUR_US)
    share = len(model.name) / 100 + index / 1000
    tasks = {"click": {"ne": 0.9 - share, "calibration": 1 + share, "ne_gain_percent": share}, "like": {"ne": 1.0}}
    teachers = {"fm": {"hit_rate": 0.5, "age_s": 60.0 + index}}
    return WindowCommitted(
        model, window, "2026-01-02T00:00:00+00:00", 100 + index, 2000.0, tasks, teachers, 7200.0, 1 << 30
    )


class TrackerTests(ComponentTests):
    """Tests of a tracker; see ``exfm.testing`` for how to use them.

    ``{folder}`` in a text field of ``configs`` becomes a folder of the test.
    """

    interface: ClassVar[type[Component]] = Tracker

    @pytest.fixture(autouse=True)
    def here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Runs each test in its folder, because libraries write beside the process."""
        monkeypatch.chdir(tmp_path)

    def make(self, fields: Mapping[str, Any], folder: Path) -> Any:
        """Builds the tracker, as each start of a job does."""
        values: dict[str, Any] = {}
        for key, value in fields.items():
            values[key] = value.replace("{folder}", str(folder)) if isinstance(value, str) else value
        run = TrackedRun("ads", "runs/ads", "name: ads\n")
        return self.component(self.config(values), run)

    def history(self, fields: Mapping[str, Any], folder: Path, model: TrackedModel) -> History | None:
        """Reads what the system has of a model, for your subclass; None leaves the tests of it out."""
        return None

    def test_building_it_begins_nothing(self, fields: Mapping[str, Any], tmp_path: Path) -> None:
        """No file, and no error where it is closed without an event."""
        tracker = self.make(fields, tmp_path)
        assert list(tmp_path.iterdir()) == [], "its constructor has written files; a job may fail before it begins"
        tracker.close()

    def test_it_takes_every_event(
        self, fields: Mapping[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Windows without figures too; and stdout belongs to the command."""
        model = tracked_model("vm")
        tracker = self.make(fields, tmp_path)
        for event in every_event(model):
            tell(tracker, event)
        tracker.close()
        assert capsys.readouterr().out == "", "it prints on stdout"

    def test_figures_are_finite_numbers_of_json(self, fields: Mapping[str, Any], tmp_path: Path) -> None:
        """What it has kept can be read back, figure by figure."""
        model = tracked_model("vm")
        self._tell_windows(self.make(fields, tmp_path), model, range(3))
        history = self._history(fields, tmp_path, model)
        for index, values in history:
            expected = window_of(model, index).figures()
            assert {key: values.get(key) for key in expected} == pytest.approx(expected, rel=1e-5)
            assert all(math.isfinite(value) for value in json.loads(json.dumps(dict(values))).values())

    def test_a_start_goes_on_after_the_windows_it_has(self, fields: Mapping[str, Any], tmp_path: Path) -> None:
        """Each window is there once, however often the job was killed."""
        model = tracked_model("vm")
        newest = -1
        for end in (2, 3, 5):
            tracker = self.make(fields, tmp_path)
            last = tracker.last_window(model)
            assert last in (None, -1, newest), f"it has windows up to {newest}, and says {last}"
            first = newest if last is None else last
            if tracker.newest_only:
                first = end - 2
            self._tell_windows(tracker, model, range(first + 1, end))
            newest = end - 1
        indices = [index for index, _ in self._history(fields, tmp_path, model)]
        assert indices == [0, 1, 2, 3, 4], f"of windows 0 to 4 it has {indices}"

    def test_models_are_apart(self, fields: Mapping[str, Any], tmp_path: Path) -> None:
        """Windows come in another order from each model of a run."""
        fm, vm = tracked_model("fm"), tracked_model("vm.control")
        tracker = self.make(fields, tmp_path)
        for model, index in ((fm, 0), (fm, 1), (vm, 0), (fm, 2)):
            tracker.window_committed(window_of(model, index))
        tracker.close()
        again = self.make(fields, tmp_path)
        assert again.last_window(fm) in (None, -1, 2) and again.last_window(vm) in (None, -1, 0)
        again.close()
        for model, count in ((fm, 3), (vm, 1)):
            assert [index for index, _ in self._history(fields, tmp_path, model)] == list(range(count))

    def test_a_run_that_started_over_is_another(self, fields: Mapping[str, Any], tmp_path: Path) -> None:
        """Its windows are delivered from the first on."""
        self._tell_windows(self.make(fields, tmp_path), tracked_model("vm"), range(3))
        tracker = self.make(fields, tmp_path)
        assert tracker.last_window(tracked_model("vm", life=1)) in (None, -1), "it takes the run for the run before"
        tracker.close()

    def _tell_windows(self, tracker: Any, model: TrackedModel, indices: range) -> None:
        for index in indices:
            tracker.window_committed(window_of(model, index))
            tracker.snapshot_published(SnapshotPublished(model, window_of(model, index).window))
        tracker.run_ended(RunEnded((model,), "ended"))
        tracker.close()

    def _history(self, fields: Mapping[str, Any], folder: Path, model: TrackedModel) -> History:
        history = self.history(fields, folder, model)
        if history is None:
            pytest.skip(f"{type(self).__name__}.history does not read it back")
        return history


def every_event(model: TrackedModel) -> Iterator[WindowCommitted | SnapshotPublished | SnapshotHeld | RunEnded]:
    """Yields an event of each kind."""
    first, second = window_of(model, 0), window_of(model, 1)
    yield first
    yield SnapshotPublished(model, first.window)
    yield second
    yield SnapshotHeld(model, second.window, {"click": "NE 1.31, above 1.02 of the windows before"})
    third = window_of(model, 2).window
    yield WindowCommitted(model, third, "2026-01-02T00:00:00+00:00", 0)
    yield RunEnded((model, tracked_model("new")), "failed", "RunError: the disk is full")
    yield RunEnded((model,), "complete", figures={model.name: {"run/click/ne": 0.875}})


def tell(tracker: Any, event: WindowCommitted | SnapshotPublished | SnapshotHeld | RunEnded) -> None:
    """Calls the method of a tracker for an event."""
    methods = {
        WindowCommitted: tracker.window_committed,
        SnapshotPublished: tracker.snapshot_published,
        SnapshotHeld: tracker.snapshot_held,
        RunEnded: tracker.run_ended,
    }
    methods[type(event)](event)
