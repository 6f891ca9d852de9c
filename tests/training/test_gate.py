"""A window with bad figures holds its snapshot back: nobody reads it, and training goes on from it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import exfm
from exfm.config.training_sections import GateConfig
from exfm.evaluation.metrics import Moments
from exfm.interfaces.data_source import Window
from exfm.modeling.parts import grouped
from exfm.scheduling.identity import open_run
from exfm.storage import snapshots
from exfm.supervision.repair import Ties, find_repair
from exfm.supervision.store import Store
from exfm.training.gate import GateHistory, judge
from tests.processes import torchrun
from tests.training import parallel_worker
from tests.training.interruption import StopError
from tests.training.logs import (
    DAY_US,
    START_US,
    differences,
    experiment_dict,
    load,
    make_log,
    supervision,
    train,
    write_log,
)

FLIPPED = {6, 7}
"""Windows of half a day whose labels are the other way round."""


def flipped_log() -> pa.Table:
    """About 600 rows in each of 12 windows."""
    log = make_log(7_200)
    times = log["event_time"].cast(pa.int64()).to_numpy()
    flip = np.isin((times - START_US) // (DAY_US // 2), list(FLIPPED))
    click = log["click"].to_numpy()
    flipped = np.where(flip, 1 - click, click).astype(np.int8)
    return log.set_column(log.schema.names.index("click"), "click", pa.array(flipped))


def config(folder: Path, name: str, delay: str) -> dict[str, Any]:
    """A gated FM that labels after a delay, and a student without a gate that also copies a table of it."""
    log = folder / "log"
    settings = experiment_dict(str(log) if log.exists() else write_log(log, flipped_log()), str(folder / name))
    settings["stream"] |= {"window": "12h", "chunk_rows": 512}
    fm = {"backbone": {"name": "dlrm"}, "embedding_dim": 8, "batch_size": 128}
    settings["models"]["fm"] = fm | {"supervision": {"delay": delay}, "gate": {"predecessor_tolerance": None}}
    settings["models"]["vm"] |= {
        "gate": None,
        "control": False,
        "batch_size": 128,
        "transfer": [
            {"name": "auxiliary_head", "teacher": "fm"},
            {"name": "parameter_sharing", "teacher": "fm", "parts": {"table/item": "frozen"}},
        ],
    }
    return settings


@pytest.fixture(scope="module", autouse=True)
def nothing_is_retired() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "READING_S", math.inf)
        patch.setattr(snapshots, "LEAVING", 100)
        yield


@pytest.fixture(scope="module", params=["0s", "12h"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    """The delay, the results and the folder of a run."""
    folder = tmp_path_factory.mktemp("whole")
    return request.param, exfm.run(load(folder, config(folder, "run", request.param))), folder / "run"


def held(run_dir: Path, model: str) -> set[int]:
    return {snapshot.version for snapshot in Store(str(run_dir)).snapshots.committed(model) if snapshot.held}


def table(run_dir: Path, model: str, version: int) -> torch.Tensor:
    (path,) = (run_dir / "snapshots" / model / f"{version:06d}").glob("model-*.safetensors")
    return grouped(load_file(path))["table/item"]["weight"]


def test_the_snapshots_of_flipped_labels_are_held_and_named(whole: tuple[str, dict[str, Any], Path]) -> None:
    _, results, run_dir = whole
    assert held(run_dir, "fm") == FLIPPED and held(run_dir, "vm") == set()
    assert [(entry["model"], entry["window"]) for entry in results["held"]] == [("fm", 6), ("fm", 7)]
    for entry in results["held"]:
        notes = [note for note in results["notes"] if f"the snapshot after window {entry['start']} is held" in note]
        assert len(notes) == 1 and "its NE of click is 1." in notes[0]
        assert "its NE of click is 1." in entry["reasons"]["click"]
    page = (run_dir / "report.html").read_text()
    assert 'id="held"' in page and page.count("its NE of click is 1.") >= 2


def test_no_student_learns_from_a_held_snapshot(whole: tuple[str, dict[str, Any], Path]) -> None:
    delay, results, run_dir = whole
    coverage = {entry["window"]: entry for entry in results["supervision"]["fm"]["vm"]["windows"]}
    teaching: dict[int, set[int]] = {}
    for window, rows in supervision(str(run_dir), "fm").items():
        learned_from = rows.filter(pc.is_finite(pc.fill_null(rows["prediction_click"], math.nan)))
        teaching[window] = set(learned_from["snapshot"].to_pylist())
    assert not FLIPPED & set().union(*teaching.values())
    if delay == "0s":
        # The model's own forward pass teaches: after a held snapshot it teaches nobody, and that is counted.
        assert [window for window, versions in teaching.items() if not versions] == [7, 8]
        assert [window for window, entry in coverage.items() if entry["hit_rate"] == 0] == [7, 8]
        assert any("it taught nobody in windows" in note for note in results["notes"])
    else:
        # Windows 8 and 9 would have been labelled by the held 6 and 7.
        assert [teaching[window] for window in (6, 7, 8, 9, 10)] == [{4}, {5}, {5}, {5}, {8}]
        assert all(entry["hit_rate"] == 1 for window, entry in coverage.items() if window > 1)
        assert not any("it taught nobody" in note for note in results["notes"])


def test_no_student_copies_parts_of_a_held_snapshot(whole: tuple[str, dict[str, Any], Path]) -> None:
    delay, _, run_dir = whole
    newest = {8: 5, 9: 8} if delay == "0s" else {9: 5, 10: 8}
    for window, version in newest.items():
        assert torch.equal(table(run_dir, "vm", window), table(run_dir, "fm", version))


def test_a_run_that_goes_on_from_a_held_snapshot_is_the_undisturbed_run(
    whole: tuple[str, dict[str, Any], Path], tmp_path: Path
) -> None:
    delay, results, run_dir = whole
    shutil.copytree(run_dir.parent / "log", tmp_path / "log")
    experiment = load(tmp_path, config(tmp_path, "run", delay))

    def stop_in_window_7(progress: Any) -> None:
        if progress.window.index == 7:
            raise StopError

    with pytest.raises(StopError):
        exfm.run(experiment, stop_in_window_7)
    assert held(tmp_path / "run", "fm") == {6}
    again = exfm.run(experiment)
    assert differences(again, results) == []
    assert held(tmp_path / "run", "fm") == FLIPPED
    assert supervision(str(tmp_path / "run"), "fm")[7].equals(supervision(str(run_dir), "fm")[7])


def test_background_saving_holds_the_same_snapshots(tmp_path: Path) -> None:
    settings = config(tmp_path, "run", "0s") | {"save_in_background": True}
    del settings["models"]["vm"]["transfer"][1]  # without copies, which would be read from the store
    train(load(tmp_path, settings))
    assert held(tmp_path / "run", "fm") == FLIPPED
    rows = supervision(str(tmp_path / "run"), "fm")
    silent = [window for window, table in rows.items() if not pc.any(pc.is_finite(table["prediction_click"])).as_py()]
    assert silent == [7, 8]


@pytest.mark.soak
def test_two_processes_hold_the_same_snapshots(whole: tuple[str, dict[str, Any], Path], tmp_path: Path) -> None:
    """The second process sees listings of the store that lack the newest manifest."""
    delay, results, run_dir = whole
    settings = config(run_dir.parent, "run", delay) | {"run_dir": str(tmp_path / "run"), "parallel": {"name": "ddp"}}
    del settings["models"]["vm"]["transfer"][1]  # a model that copies no parts
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(settings))
    job = {"config": str(path), "overrides": [], "log": []}
    torchrun(parallel_worker.main, [job], tmp_path / "killed", processes=2)
    assert held(tmp_path / "run", "fm") == FLIPPED
    rates = []
    for figures in (json.loads((tmp_path / "run" / "results.json").read_text()), results):
        windows = figures["supervision"]["fm"]["vm"]["windows"]
        rates.append([(entry["window"], entry["hit_rate"]) for entry in windows])
    assert [window for window, rate in rates[0] if rate == 0] == [window for window, rate in rates[1] if rate == 0]


def test_another_gate_lets_a_run_go_on(whole: tuple[str, dict[str, Any], Path], tmp_path: Path) -> None:
    """The gate is no part of the experiment's identity: it may be loosened where the drift is real."""
    delay, _, run_dir = whole
    shutil.copytree(run_dir, tmp_path / "run")
    shutil.copytree(run_dir.parent / "log", tmp_path / "log")
    results = exfm.run(load(tmp_path, config(tmp_path, "run", delay), "models.fm.gate.ne_tolerance=0.5"))
    assert any("models.fm.gate.ne_tolerance is 0.5; it was 0.1" in note for note in results["notes"])
    assert held(tmp_path / "run", "fm") == FLIPPED  # what is committed stands


def test_a_repair_does_not_ask_for_held_snapshots(whole: tuple[str, dict[str, Any], Path], tmp_path: Path) -> None:
    delay, _, run_dir = whole
    shutil.copytree(run_dir, tmp_path / "run")
    for version in FLIPPED:
        shutil.rmtree(tmp_path / "run" / "snapshots" / "fm" / f"{version:06d}")
    store = Store(str(tmp_path / "run"))
    # The student, and the labeller of a teacher with a delay, do the windows from the held ones on again.
    for window in range(11, 6, -1):
        store.log.remove_head("train", "vm")
        if delay != "0s":
            assert store.log.head("supervise", "fm") == window
            store.log.remove_head("supervise", "fm")
    delays = load(tmp_path, config(run_dir.parent, "run", delay)).config.models["fm"].supervision.delay
    repair = find_repair(store, {"fm": Ties(delays, True), "vm": Ties(parameter_teachers=["fm"])})
    assert repair.problems == [] and repair.rewound == []


WINDOW = Window(9, 9 * DAY_US, 10 * DAY_US)
GATE = GateConfig(windows=2, ne_tolerance=0.1, calibration=(0.5, 2.0), min_labels=100)


def moments(ne: float, rate: float = 0.25, calibration: float = 1.0, examples: int = 1_000) -> Moments:
    positives = round(rate * examples)
    loss = (
        0.0
        if positives in (0, examples)
        else ne * examples * -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
    )
    return Moments(examples, positives, loss, calibration * positives)


def history(*nes: float, held: dict[str, str] | None = None) -> GateHistory:
    return GateHistory([{"click": moments(ne)} for ne in nes], held or {})


@given(st.floats(0.3, 1.5), st.floats(0.3, 1.5), st.floats(0.5, 2.0))
def test_a_window_is_held_exactly_where_its_ne_is_above_the_limit(first: float, second: float, ne: float) -> None:
    highest, lowest = max(first, second), min(first, second)
    limit = highest + max(0.1 * highest, highest - lowest)
    if abs(ne - limit) > 1e-9:
        assert bool(judge(GATE, WINDOW, {"click": moments(ne)}, history(first, second))) == (ne > limit)


@pytest.mark.parametrize(("calibration", "holds"), [(0.49, True), (0.51, False), (1.99, False), (2.01, True)])
def test_calibration_beyond_its_range_holds(calibration: float, holds: bool) -> None:
    reasons = judge(GATE, WINDOW, {"click": moments(0.8, calibration=calibration)}, history(0.8, 0.8))
    assert bool(reasons) == holds
    if holds:
        assert "calibration may lie between 0.5 and 2" in reasons["click"] and "NE" not in reasons["click"]


def test_the_first_windows_are_published_whatever_they_are() -> None:
    bad = {"click": moments(3.0, calibration=9.0)}
    assert judge(GATE, WINDOW, bad, history()) == judge(GATE, WINDOW, bad, history(0.8)) == {}
    assert judge(GATE, WINDOW, bad, history(0.8, 0.8)) != {}


def test_too_few_labels_leave_the_judgement_as_it_was() -> None:
    few = {"click": moments(3.0, examples=300)}
    assert judge(GATE, WINDOW, few, history(0.8, 0.8)) == {}
    assert judge(GATE, WINDOW, few, history(0.8, 0.8, held={"click": "as before"})) == {"click": "as before"}
    assert judge(GATE, WINDOW, {"click": Moments()}, history(0.8, 0.8, held={"click": "as before"})) != {}
    good = {"click": moments(0.8)}
    assert judge(GATE, WINDOW, good, history(0.8, 0.8, held={"click": "as before"})) == {}


@pytest.mark.parametrize(("examples", "holds"), [(1_200, False), (4_400, True)])
def test_the_default_gate_judges_large_windows_alone(examples: int, holds: bool) -> None:
    """A quarter of the examples are positive."""
    past = GateHistory([{"click": moments(0.8, examples=examples)}] * 4, {})
    for bad in (moments(1.2, examples=examples), moments(0.8, calibration=2.5, examples=examples)):
        assert bool(judge(GateConfig.of_own_windows(), WINDOW, {"click": bad}, past)) == holds


def test_labels_that_stay_away_hold_the_window() -> None:
    none = replace(moments(0.8, rate=0.0), prediction_sum=250.0)
    assert (
        "predicted 250 positives of click where there were 0"
        in judge(GATE, WINDOW, {"click": none}, history(0.8, 0.8))["click"]
    )


def test_a_task_is_judged_beside_others() -> None:
    scores = {"click": moments(0.8), "like": moments(2.0)}
    past = GateHistory([scores | {"like": moments(0.8)}] * 2, {})
    assert judge(GATE, WINDOW, scores, past).keys() == {"like"}


def test_a_run_of_before_the_default_goes_on_with_it(
    whole: tuple[str, dict[str, Any], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A record without a gate is that of the same model, and the run says that it has a gate from now on."""
    delay, _, run_dir = whole
    for folder in ("run", "log"):
        shutil.copytree(run_dir.parent / folder, tmp_path / folder)
    record = tmp_path / "run" / "models" / "vm.json"
    kept = json.loads(record.read_text())
    assert kept["identity"]["model"]["gate"] is None
    settings = config(tmp_path, "run", delay)
    del settings["models"]["vm"]["gate"]
    experiment = load(tmp_path, settings)
    open_run(experiment, Store(experiment.run_dir))
    assert "models.vm.gate was None and is now {" in caplog.text
    now = json.loads(record.read_text())
    assert now["digest"] == kept["digest"] and now["identity"]["model"]["gate"]["min_labels"] == 1_000


def test_a_gate_compares_with_the_predecessor_where_the_file_asks_for_it(tmp_path: Path) -> None:
    settings = experiment_dict(write_log(tmp_path / "log", make_log(300)), str(tmp_path / "run"), labels=["buy"])
    # All labels come late, so that the default gate judges nothing, and is no error.
    by_default = load(tmp_path, settings).config.models["fm"].gate
    assert by_default == GateConfig(predecessor_tolerance=None, min_labels=1_000)
    assert load(tmp_path, settings, "models.fm.gate=null").config.models["fm"].gate is None
    settings["stream"]["source"]["labels"] = [{"name": "click"}]
    asked = load(tmp_path, settings, "models.fm.gate.windows=4").config.models["fm"].gate
    assert asked == GateConfig(windows=4, predecessor_tolerance=0.03)


def test_what_a_gate_cannot_be(tmp_path: Path) -> None:
    settings = experiment_dict(write_log(tmp_path / "log", make_log(300)), str(tmp_path / "run"), labels=["buy"])
    settings["models"]["fm"]["gate"] = {}
    with pytest.raises(exfm.ConfigError, match=r"models\.fm\.gate: .* the labels buy are known later"):
        load(tmp_path, settings)
    settings["models"]["fm"]["gate"] = {"calibration": [1.5, 2.0]}
    with pytest.raises(exfm.ConfigError, match=r"models\.fm\.gate.* 1, which is right on average, must lie between"):
        load(tmp_path, settings)
    settings["models"]["fm"]["gate"] = {"tolerance": 0.2}
    with pytest.raises(exfm.ConfigError, match=r"models\.fm\.gate\.tolerance: unknown key.*ne_tolerance"):
        load(tmp_path, settings)
