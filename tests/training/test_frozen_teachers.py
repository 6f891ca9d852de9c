"""A teacher that is frozen at a snapshot of another run labels the student's stream, and nothing of it leaks."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import exfm
from exfm.experiment.run import build_plan, start_over
from exfm.scheduling.identity import open_run
from exfm.storage.aliases import Aliases
from exfm.supervision.repair import Ties, find_repair
from exfm.supervision.store import Store, open_store
from exfm.training.loop import StreamLoop
from tests.processes import torchrun
from tests.training import parallel_worker
from tests.training.interruption import StopError
from tests.training.logs import (
    DAY_US,
    START_US,
    experiment_dict,
    load,
    make_log,
    predictions,
    supervision,
    timeless,
    train,
    write_log,
)

VERSION = 2
Exfm = Callable[..., Any]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an FM's run over six days, of which every snapshot is kept; `production` is snapshot 2."""
    folder = tmp_path_factory.mktemp("teacher")
    config = experiment_dict(write_log(folder / "log", make_log(1_200)), str(folder / "fm"), labels=("click",))
    del config["models"]["vm"]
    config["models"]["fm"] |= {"keep": {"snapshots": "all"}, "supervision": {"states": {"user": ["user", "history"]}}}
    train(load(folder, config))
    Store(str(folder / "fm")).snapshots.aliases.promote("fm", "production", VERSION)
    return folder


@pytest.fixture
def lender_dir(teacher: Path, tmp_path: Path) -> Path:
    """A copy of the teacher's run, whose aliases and snapshots a test may change."""
    shutil.copytree(teacher / "fm", tmp_path / "fm", ignore=shutil.ignore_patterns("readers"))
    return tmp_path / "fm"


def student(teacher: Path, run_dir: Path, at: Any, fm: Path | None = None) -> dict[str, Any]:
    """A student with another batch and window than its teacher's."""
    config = experiment_dict(str(teacher / "log"), str(run_dir))
    config["name"] = run_dir.name
    config["stream"]["window"] = "12h"
    del config["models"]["fm"]
    config["teachers"] = {"fm": {"run": str(fm or teacher / "fm"), "model": "fm", "at": at}}
    return config


@pytest.fixture(scope="module")
def taught(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The results and the folder of a student's run."""
    folder = tmp_path_factory.mktemp("taught")
    return exfm.run(load(folder, student(teacher, folder / "vm", VERSION))), folder / "vm"


def test_the_supervision_is_the_snapshots_prediction_of_the_rows(
    teacher: Path, taught: tuple[dict[str, Any], Path], tmp_path: Path, exfm_cli: Exfm
) -> None:
    out = str(tmp_path / "fm.parquet")
    done = exfm_cli("predict", str(teacher / "test.yaml"), "--model", "fm", "--out", out, "--at", str(VERSION))
    assert done.status == 0, done.err
    expected = pq.read_table(out).to_pandas().set_index("example_id")["prediction_click"]
    trained_until_us = START_US + (VERSION + 1) * DAY_US
    labelled = 0
    for window, rows in supervision(str(taught[1]), f"fm@{VERSION}").items():
        # Windows of half a day; a snapshot that has trained on a window's rows labels none of them.
        assert bool(rows.num_rows) == (START_US + window * DAY_US // 2 >= trained_until_us)
        if rows.num_rows:
            ids = rows["example_id"].to_numpy()
            assert sorted(ids) == sorted(predictions(str(taught[1]), "vm")[window]["example_id"].to_numpy())
            actual = rows["prediction_click"].to_numpy()
            assert np.abs(actual - expected.loc[ids].to_numpy()).max() < 1e-6
            assert set(rows["snapshot"].to_pylist()) == {VERSION}
            assert set(rows["watermark"].cast("int64").to_pylist()) == {trained_until_us}
            labelled += 1
    assert labelled == 6


def test_the_student_learns_from_it_and_the_report_says_so(
    teacher: Path, taught: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    results, run_dir = taught
    coverage = {entry["window"]: entry["hit_rate"] for entry in results["supervision"]["fm"]["vm"]["windows"]}
    assert [coverage[window] for window in range(12)] == [0] * 6 + [1] * 6
    assert set(results["models"]) == {"vm", "vm.control"}
    (gain,) = results["gains"]
    assert gain["teacher"] == "fm" and gain["transfer_ratio"] is not None
    (note,) = [note for note in results["notes"] if note.startswith("fm: frozen at snapshot 2 of fm in ")]
    assert "windows 2023-11-15T00:00:00Z to 2023-11-17T12:00:00Z begin before it may label them" in note
    # Without supervision the student is its control; with it, it is not.
    for window, rows in predictions(str(run_dir), "vm").items():
        same = rows["prediction_click"].equals(predictions(str(run_dir), "vm.control")[window]["prediction_click"])
        assert same == (window < 6)
    again = exfm.run(load(tmp_path, student(teacher, run_dir, VERSION)))
    assert timeless(again) == timeless(results)


@pytest.fixture
def stopped(teacher: Path, lender_dir: Path, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A student that froze `production`, and was stopped after eight windows."""
    config = student(teacher, tmp_path / "vm", "production", lender_dir)

    def stop(progress: Any) -> None:
        if progress.window.index == 8:
            raise StopError

    with pytest.raises(StopError):
        exfm.run(load(tmp_path, config), stop)
    yield config


def test_a_promotion_does_not_change_a_run_half_way(
    stopped: dict[str, Any], lender_dir: Path, taught: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    Aliases(Store(str(lender_dir)).workspace).promote("fm", "production", 4)
    results = exfm.run(load(tmp_path, stopped))
    assert any("snapshot 2 of fm" in note and "production when the run began" in note for note in results["notes"])
    assert predictions(str(tmp_path / "vm"), "vm") == predictions(str(taught[1]), "vm")
    assert results["gains"][0]["ne_gain_percent"] == taught[0]["gains"][0]["ne_gain_percent"]
    # The version that the alias had is no change; the one that it has now is another model.
    exfm.run(load(tmp_path, stopped, f"teachers.fm.at={VERSION}"))
    with pytest.raises(exfm.ConfigError, match=r"another model 'vm': its teacher 'fm' was snapshot 2 and is now 4"):
        exfm.run(load(tmp_path, stopped, "teachers.fm.at=4"))
    store = open_store(load(tmp_path, stopped))
    start_over(store)
    assert open_store(load(tmp_path, stopped)).frozen_versions == {"fm": 4}


def test_the_teachers_run_keeps_the_snapshot_for_its_readers(stopped: dict[str, Any], lender_dir: Path) -> None:
    lender = Store(str(lender_dir))
    unneeded = set(lender.snapshots.unneeded("fm", 2**62, 2))
    (lender_dir / "aliases" / "fm" / "000000.json").unlink()
    assert set(Store(str(lender_dir)).snapshots.unneeded("fm", 2**62, 2)) == unneeded == {0, 1, 3}
    assert lender.readers.progress("fm") == []  # its supervision is kept for nobody
    shutil.rmtree(stopped["run_dir"])
    assert set(Store(str(lender_dir)).snapshots.unneeded("fm", 2**62, 2)) == {0, 1, 2, 3}


@pytest.mark.soak  # processes take long to start
def test_separate_jobs_and_two_processes_end_like_a_single_run(
    teacher: Path, taught: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    config = student(teacher, tmp_path / "vm", VERSION)
    experiment = load(tmp_path, config)
    store = open_store(experiment)
    open_run(experiment, store)
    loops = []
    for train_names, label in ((["vm", "vm.control"], []), ([], ["fm"])):
        loops.append(StreamLoop(experiment, store, build_plan(experiment), lambda _: None, train_names, label))
    assert loops[0].advance() == 0 and "supervision of 'fm'" in loops[0].waiting_for
    assert loops[1].advance() == 12 and loops[0].advance() == 12
    for model in ("vm", "vm.control"):
        assert predictions(str(tmp_path / "vm"), model) == predictions(str(taught[1]), model)
    two = student(teacher, tmp_path / "two", VERSION) | {"parallel": {"name": "ddp"}}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(two))
    torchrun(
        parallel_worker.main, [{"config": str(path), "overrides": [], "log": []}], tmp_path / "killed", processes=2
    )
    for window, rows in supervision(str(taught[1]), f"fm@{VERSION}").items():
        actual = supervision(str(tmp_path / "two"), f"fm@{VERSION}")[window]
        assert actual["example_id"].equals(rows["example_id"])
        assert np.allclose(actual["prediction_click"].to_numpy(), rows["prediction_click"].to_numpy(), atol=1e-6)


def test_a_student_may_read_states_and_start_later(teacher: Path, tmp_path: Path) -> None:
    config = student(teacher, tmp_path / "vm", "2023-11-18")
    config["models"]["vm"]["start"] = "2023-11-18"
    config["models"]["vm"]["transfer"].append({"name": "compact_features", "teacher": "fm"})
    results = exfm.run(load(tmp_path, config))
    assert results["supervision"]["fm"]["vm"]["hit_rate"] == 1
    assert sorted(supervision(str(tmp_path / "vm"), f"fm@{VERSION}")) == list(range(6, 12))
    assert "windows" not in next(note for note in results["notes"] if note.startswith("fm: frozen"))


def test_a_damaged_label_file_is_labelled_again(
    taught: tuple[dict[str, Any], Path], teacher: Path, tmp_path: Path, exfm_cli: Exfm
) -> None:
    shutil.copytree(taught[1], tmp_path / "vm")
    before = supervision(str(tmp_path / "vm"), f"fm@{VERSION}")
    (path,) = (tmp_path / "vm" / "supervision" / f"fm@{VERSION}").glob("window-000009-*")
    path.unlink()
    outcome = exfm_cli("repair", str(tmp_path / "vm"))
    assert f"the labels of fm@{VERSION} to after window 2023-11-19T00:00:00Z" in outcome.out
    train(load(tmp_path, student(teacher, tmp_path / "vm", VERSION)))
    assert supervision(str(tmp_path / "vm"), f"fm@{VERSION}") == before
    assert find_repair(Store(str(tmp_path / "vm")), {f"fm@{VERSION}": Ties()}).problems == []
    assert exfm_cli("diagnose", str(tmp_path / "vm")).status == 0


def edit_missing(config: dict[str, Any]) -> None:
    config["teachers"]["fm"]["at"] = 9


def edit_alias(config: dict[str, Any]) -> None:
    config["teachers"]["fm"]["at"] = "produktion"


def edit_early(config: dict[str, Any]) -> None:
    config["teachers"]["fm"]["at"] = "2023-11-15T12:00"


def edit_late(config: dict[str, Any]) -> None:
    config["teachers"]["fm"]["at"] = 5


def edit_feature(config: dict[str, Any]) -> None:
    del config["stream"]["source"]["features"][2]


def edit_table(config: dict[str, Any]) -> None:
    config["stream"]["source"]["features"][0]["rows"] = 128


def edit_parts(config: dict[str, Any]) -> None:
    config["models"]["vm"]["transfer"] = [
        {"name": "parameter_sharing", "teacher": "fm", "parts": {"table/item": "frozen"}}
    ]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_missing, r"there is no snapshot 9 of 'fm', or no longer; there are: 0, 1, 2, 3, 4, 5"),
        (edit_alias, r"no snapshot of 'fm' is called 'produktion'.*'production'"),
        (edit_early, r"no snapshot of 'fm' was published by 2023-11-15T12:00; there are: 0, 1"),
        (edit_late, r"teachers\.fm\.at: snapshot 5 of 'fm' has trained until 2023-11-21.*labels .* would leak"),
        (edit_feature, r"teachers\.fm\.at: .*'fm' reads the feature 'price', which stream\.source does not have"),
        (edit_table, r"teachers\.fm\.at: the feature 'user' is another here than in the run of 'fm'"),
        (edit_parts, r"teachers\.fm\.at: models\.vm copies parts of 'fm'"),
    ],
)
def test_what_cannot_be_frozen(
    teacher: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], None], message: str, exfm_cli: Exfm
) -> None:
    config = copy.deepcopy(student(teacher, tmp_path / "vm", VERSION))
    edit(config)
    with pytest.raises(exfm.ConfigError, match=message):
        train(load(tmp_path, config))
    if edit is not edit_late:  # which takes the windows of the stream
        assert exfm_cli("validate", str(tmp_path / "vm.yaml")).status == 2
    assert not list(tmp_path.glob("vm/predictions/*/*"))


def test_a_held_snapshot_is_a_warning(
    teacher: Path, lender_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(str(lender_dir))
    for _ in (5, 4, 3):
        store.log.remove_head("train", "fm")
    commit = store.log.load("train", "fm", VERSION)
    store.log.remove_head("train", "fm")
    held = {**commit.counters, "held": {"click": "its NE is bad"}}
    store.log.add("train", "fm", replace(commit, counters=held))
    open_store(load(tmp_path, student(teacher, tmp_path / "vm", VERSION, lender_dir)))
    assert "snapshot 2 of 'fm' is held: its NE is bad" in caplog.text
