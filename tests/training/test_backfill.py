"""Past windows are labelled later, with the snapshots that were allowed at their time, or masked and named."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import exfm
from exfm.experiment.backfill import BackfilledWindow, Backfiller
from exfm.experiment.run import build_plan
from exfm.interfaces.data_source import TimeRange
from exfm.scheduling.identity import open_run
from exfm.supervision.store import open_store
from tests.training.logs import DAY_US, START_US, experiment_dict, load, make_log, predictions, train, write_log

ROWS = 600
ALWAYS = TimeRange(0, 2**62)
Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_log(tmp_path_factory.mktemp("log"), make_log(ROWS))


def backfill(experiment: exfm.Experiment, between: TimeRange = ALWAYS) -> dict[int, BackfilledWindow]:
    """Labels past windows of the FM; returns the reports by window."""
    store, plan = open_store(experiment), build_plan(experiment)
    open_run(experiment, store)
    done: dict[int, BackfilledWindow] = {}
    Backfiller(experiment, store, plan, "fm").run(between, lambda report: done.update({report.window.index: report}))
    return done


def backfilled(run_dir: str) -> dict[int, pa.Table]:
    """Reads the rows that were labelled later, by window."""
    tables: dict[int, list[pa.Table]] = {}
    for file in sorted(Path(run_dir, "supervision", "fm").glob("backfill-*.parquet")):
        tables.setdefault(int(file.stem.split("-")[1]), []).append(pq.read_table(file))
    return {window: pa.concat_tables(parts) for window, parts in tables.items()}


def fm_without_students(log: str, run_dir: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """An experiment whose FM stores nothing, and the same with a student."""
    config = experiment_dict(log, run_dir)
    alone = copy.deepcopy(config)
    del alone["models"]["vm"]
    alone["models"]["fm"]["supervision"] = {"store": False}
    return alone, config


@pytest.fixture(scope="module")
def trained_alone(log: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose FM has trained on the whole log and stored nothing, to be copied."""
    folder = tmp_path_factory.mktemp("alone")
    train(load(folder, fm_without_students(log, str(folder / "run"))[0]))
    return folder / "run"


def test_a_student_of_an_fm_that_stored_nothing(log: str, trained_alone: Path, tmp_path: Path, exfm_cli: Cli) -> None:
    run_dir = shutil.copytree(trained_alone, str(tmp_path / "run"))
    _, config = fm_without_students(log, run_dir)
    with pytest.raises(exfm.ConfigError, match=r"without storing its supervision.*--model fm --backfill FROM\.\.TO"):
        exfm.run(load(tmp_path, config))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    done = exfm_cli("supervise", str(path), "--model", "fm", "--backfill", "2023-11-15..")
    assert done.status == 0, done.err
    rows = backfilled(run_dir)
    assert [window for window, table in rows.items() if table.num_rows] == [1, 2, 3, 4, 5]
    assert f"{sum(table.num_rows for table in rows.values())} rows of 6 windows labelled, 1 windows masked" in done.out
    assert "nothing labelled: there was no snapshot yet that may label it; its students learn" in done.err
    for window, table in list(rows.items())[1:]:
        # The model after the window before: it knows no label of the window.
        assert set(table.column("snapshot").to_pylist()) == {window - 1}
        watermarks = table.column("watermark").cast(pa.int64()).to_numpy()
        assert (watermarks == START_US + window * DAY_US).all()
        assert table.column("example_id").equals(predictions(run_dir, "fm")[window].column("example_id"))
    results = exfm.run(load(tmp_path, config))
    first = predictions(run_dir, "vm")[0].num_rows
    assert results["supervision"]["fm"]["vm"]["hit_rate"] == pytest.approx(1 - first / ROWS)


def test_a_student_of_other_traffic_is_labelled_as_if_it_had_always_been_there(log: str, tmp_path: Path) -> None:
    def students(run_dir: str) -> dict[str, Any]:
        config = experiment_dict(log, run_dir)
        config["models"]["fm"]["supervision"] = {"delay": "1d"}
        vm = config["models"]["vm"]
        config["models"]["few"] = {**copy.deepcopy(vm), "where": {"item": list(range(10))}, "control": False}
        config["models"]["all"] = {**copy.deepcopy(vm), "control": False}
        del config["models"]["vm"]
        return config

    together = students(str(tmp_path / "together"))
    train(load(tmp_path, together))
    config = students(str(tmp_path / "run"))
    first = copy.deepcopy(config)
    del first["models"]["all"]
    train(load(tmp_path, first))
    done = backfill(load(tmp_path, config), TimeRange(START_US + 2 * DAY_US, START_US + 5 * DAY_US))
    assert sorted(done) == [2, 3, 4] and all(report.rows for report in done.values())
    again = backfill(load(tmp_path, config), TimeRange(START_US + 2 * DAY_US, START_US + 5 * DAY_US))
    assert all(report.left == "all of its rows are labelled" for report in again.values())
    for window in (2, 3, 4):
        folders = [tmp_path / name / "supervision" / "fm" for name in ("run", "together")]
        parts = [pq.read_table(file) for file in folders[0].glob(f"*-{window:06d}-*.parquet")]
        actual = pa.concat_tables(parts).sort_by("example_id")
        expected = pq.read_table(next(folders[1].glob(f"window-{window:06d}-*.parquet"))).sort_by("example_id")
        for column in ("example_id", "snapshot", "watermark", "event_time"):
            assert actual.column(column).equals(expected.column(column))
        # Batches of other rows round otherwise.
        np.testing.assert_allclose(
            actual.column("prediction_click").to_numpy(), expected.column("prediction_click").to_numpy(), atol=1e-6
        )
    train(load(tmp_path, config))
    ids = {window: table.column("example_id") for window, table in predictions(str(tmp_path / "run"), "all").items()}
    assert ids == {w: t.column("example_id") for w, t in predictions(str(tmp_path / "together"), "all").items()}


def test_jobs_share_the_windows_of_a_back_fill(log: str, trained_alone: Path, tmp_path: Path) -> None:
    _, config = fm_without_students(log, shutil.copytree(trained_alone, str(tmp_path / "run")))
    experiment = load(tmp_path, config)
    store = open_store(experiment)
    assert store.backfills.claim("fm", 3) and not store.backfills.claim("fm", 3)
    done = backfill(experiment)
    assert done[3].left == "another job is labelling it" and not done[3].masked
    assert sum(bool(report.rows) for report in done.values()) == 4
    store.backfills.release("fm", 3)
    done = backfill(experiment)
    assert [window for window, report in done.items() if report.rows] == [3]
    rows = backfilled(str(tmp_path / "run"))
    assert all(len(set(table.column("example_id").to_pylist())) == table.num_rows for table in rows.values())


def test_windows_whose_snapshot_is_gone_are_masked(log: str, trained_alone: Path, tmp_path: Path) -> None:
    _, config = fm_without_students(log, shutil.copytree(trained_alone, str(tmp_path / "run")))
    shutil.rmtree(tmp_path / "run" / "snapshots" / "fm" / "000002")
    done = backfill(load(tmp_path, config))
    assert [window for window, report in done.items() if report.masked] == [0, 3]
    assert "snapshot 2, which may label it, is no longer stored" in done[3].left
    results = exfm.run(load(tmp_path, config))
    windows = results["supervision"]["fm"]["vm"]["windows"]
    assert [window["hit_rate"] == 0 for window in windows] == [True, False, False, True, False, False]


def test_a_window_that_the_teacher_has_not_passed_is_left_to_it(log: str, tmp_path: Path) -> None:
    alone, config = fm_without_students(log, str(tmp_path / "run"))
    alone["stream"]["source"]["path"] = f"{log}/part-[01].parquet"
    train(load(tmp_path, alone))
    done = backfill(load(tmp_path, config))
    assert done[5].left == "the teacher has not passed it yet, and labels it then"
    assert not done[5].masked


@pytest.mark.parametrize(
    ("between", "message"),
    [
        ("yesterday..", "--backfill FROM: write a time such as 2026-01-31"),
        ("2023-11-15", "write FROM..TO, two times (UTC)"),
        ("2023-11-16..2023-11-15", "the end must come after the start"),
    ],
)
def test_a_range_that_is_none_is_refused(between: str, message: str, log: str, tmp_path: Path, exfm_cli: Cli) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(experiment_dict(log, str(tmp_path / "run"))))
    outcome = exfm_cli("supervise", str(path), "--model", "fm", "--backfill", between)
    assert outcome.status == 2 and message in outcome.err


def test_candidates_that_nobody_was_shown_are_labelled_and_teach(tmp_path: Path) -> None:
    """Rows without labels come to windows that the teacher has passed; a student that begins then learns from them."""
    folder = tmp_path / "log"
    write_log(folder, make_log(ROWS))
    config = experiment_dict(str(folder), str(tmp_path / "run"))
    config["models"]["vm"] |= {"control": False, "transfer": [{"name": "direct", "teacher": "fm"}]}
    shown = copy.deepcopy(config)
    del shown["models"]["vm"]
    shown["models"]["fm"]["supervision"] = {"store": True}
    shown["models"]["fm"]["keep"] = {"snapshots": "all"}
    config["models"]["fm"] = copy.deepcopy(shown["models"]["fm"])
    train(load(tmp_path, shown))
    candidates = make_log(300, seed=5)
    ids = pa.array(candidates.column("example_id").to_numpy() + 10**6)
    candidates = candidates.set_column(0, "example_id", ids)
    candidates = candidates.set_column(candidates.column_names.index("click"), "click", pa.nulls(300, pa.int8()))
    pq.write_table(candidates, folder / "candidates.parquet")
    done = backfill(load(tmp_path, config), TimeRange(START_US + DAY_US, START_US + 6 * DAY_US))
    assert sorted(done) == [1, 2, 3, 4, 5]
    labelled = {id for table in backfilled(config["run_dir"]).values() for id in table.column("example_id").to_pylist()}
    time = candidates.column("event_time").cast(pa.int64()).to_numpy()
    assert labelled == set(ids.to_numpy()[time >= START_US + DAY_US].tolist())
    results = exfm.run(load(tmp_path, config))
    seen = pa.concat_tables(predictions(config["run_dir"], "vm").values())
    assert seen.num_rows == ROWS + 300 and seen.column("label_click").null_count == 300
    scores = results["models"]["vm"]["tasks"]["click"]
    assert 0 < scores["unlabelled"] < 300
    # Misses: the candidates of the first window, which no snapshot may label, and the teacher's first batch.
    misses = round((1 - results["supervision"]["fm"]["vm"]["hit_rate"]) * (ROWS + 300))
    before = np.count_nonzero(time < START_US + DAY_US)
    assert before <= misses <= before + 64
