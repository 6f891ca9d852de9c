"""A vacuum after every step of a trainer, a labeller and two lagging students changes no result, and files stay few."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import exfm
from exfm.scheduling.identity import open_run
from exfm.storage import snapshots
from exfm.storage.disk_usage import disk_usage
from exfm.supervision import row_merging
from exfm.supervision.store import Store, open_store
from exfm.supervision.vacuum import apply_vacuum, find_vacuum
from exfm.training.loop import StreamLoop
from tests.training.logs import DAY_US, START_US, experiment_dict, load, make_log, predictions

ROWS = 24  # of a window
SHARED = {"name": "parameter_sharing", "teacher": "fm", "parts": {"table/user": "added"}}


def days(count: int) -> list[pa.Table]:
    """A log with a table for each day."""
    log = make_log(rows=count * ROWS)
    time = START_US + np.arange(log.num_rows) * (DAY_US // ROWS)
    column = log.schema.get_field_index("event_time")
    log = log.set_column(column, "event_time", pa.array(time, pa.timestamp("us", "UTC")))
    return [log.slice(day * ROWS, ROWS) for day in range(count)]


def teacher_and_student(log: Path, run_dir: Path) -> dict[str, Any]:
    """An FM whose labeller follows it two days behind, and a student in the same run."""
    config = experiment_dict(str(log), str(run_dir))
    config["models"]["fm"] = {
        "backbone": {"name": "mlp"},
        "embedding_dim": 8,
        "batch_size": 64,
        "supervision": {"delay": "1d", "store": True},
        "keep": {"supervision": 2, "predictions": "3d"},
    }
    config["models"]["vm"] |= {"control": False, "transfer": [config["models"]["vm"]["transfer"][0], SHARED]}
    return config


def student_elsewhere(config: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """The student, in a run that reads the first run's teacher."""
    config = copy.deepcopy(config)
    config["teachers"] = {"fm": {"run": config["run_dir"], "model": "fm"}}
    config["name"], config["run_dir"] = "elsewhere", str(run_dir)
    config["models"]["far"] = config["models"].pop("vm")
    del config["models"]["fm"]
    return config


def job(experiment: exfm.Experiment, train: list[str], label: list[str]) -> StreamLoop:
    store = open_store(experiment)
    open_run(experiment, store, [*train, *label])
    return StreamLoop(experiment, store, experiment.config.parallel.build(), lambda _: None, train, label)


def stored(run_dir: Path, model: str = "fm") -> dict[str, int]:
    """The number of stored files of a model, by kind."""
    return {usage.kind: usage.files for usage in disk_usage(Store(str(run_dir)).workspace) if usage.model == model}


def check_equal(left: Path, right: Path, model: str, count: int) -> None:
    """Compares predictions, which depend on all that a model has read before, in each of so many windows."""
    store, expected = Store(str(left)), predictions(str(right), model)
    windows = store.windows(model)
    assert len(expected) == len(windows) == count
    for window in windows:
        assert store.predictions(model, window).equals(expected[window.index]), f"{model}, window {window}"


@pytest.mark.parametrize("rounds", [12, pytest.param(100, marks=pytest.mark.soak)])
def test_a_vacuum_beside_jobs(rounds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "READING_S", 0.0)
    monkeypatch.setattr(row_merging, "MANY", 4)
    monkeypatch.setattr(row_merging, "NEWEST", 3)
    log, run_dir, far_dir = tmp_path / "log", tmp_path / "run", tmp_path / "far"
    log.mkdir()
    tables = days(rounds)
    pq.write_table(tables[0], log / "000.parquet")
    config = teacher_and_student(log, run_dir)
    experiment = load(tmp_path, config)
    trainer, labeller = job(experiment, ["fm"], []), job(experiment, [], ["fm"])
    student = job(experiment, ["vm"], [])
    elsewhere = job(load(tmp_path, student_elsewhere(config, far_dir)), ["far"], [])
    counts: list[dict[str, int]] = []
    student_counts: list[int] = []
    for number, table in enumerate(tables):
        pq.write_table(table, log / f"{number:03d}.parquet")
        trainer.advance(complete_windows_only=True)
        labeller.advance(complete_windows_only=True)
        if number % 3 == 2:
            student.advance(complete_windows_only=True)
        if number % 5 == 4:
            elsewhere.advance(complete_windows_only=True)
        store = Store(str(run_dir))
        apply_vacuum(store, find_vacuum(store), grace_s=0)
        assert find_vacuum(Store(str(run_dir))).is_empty
        counts.append(stored(run_dir))
        student_counts.append(stored(run_dir, "vm").get("predictions", 0))
    for loop in (trainer, labeller, student, elsewhere):
        loop.advance()
        assert not loop.waiting_for
    store = Store(str(run_dir))
    apply_vacuum(store, find_vacuum(store), grace_s=0)

    undisturbed = tmp_path / "undisturbed"
    config = teacher_and_student(log, undisturbed)
    config["models"]["far"] = config["models"]["vm"]
    del config["models"]["fm"]["keep"]
    exfm.run(load(tmp_path, config))
    check_equal(run_dir, undisturbed, "vm", rounds)
    check_equal(far_dir, undisturbed, "far", rounds)
    assert sorted(predictions(str(run_dir), "fm")) == list(range(rounds - 3, rounds))

    # Both students lag by a few windows, and files of no more windows than that are stored at any time.
    for kind, most in (("supervision", 8), ("predictions", 4), ("snapshots", 3 * 8)):
        assert max(count.get(kind, 0) for count in counts) <= most, kind
    assert stored(run_dir)["supervision"] <= 3
    # The student keeps all of its predictions, in files that do not become more.
    assert max(student_counts) <= 4 + 3
