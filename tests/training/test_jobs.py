"""Stages as separate jobs over one workspace: results of a single process, in any order, killed at any time."""

from __future__ import annotations

import json
import random
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

import exfm
from exfm.bookkeeping.commit_writer import WindowCommit
from exfm.data.windows import stream_windows
from exfm.scheduling.identity import open_run
from exfm.storage.workspace import Workspace
from exfm.supervision.store import Store
from exfm.training.loop import StreamLoop
from tests.processes import start_exfm
from tests.training.logs import differences, experiment_dict, load, make_log, supervision, train, write_log

KILLS = 1
ROWS = 900


def config_of(folder: Path, name: str) -> Path:
    """An experiment with late labels and an FM that labels a day later, kept in ``folder / name``."""
    log = folder / "log"
    config = experiment_dict(str(log) if log.exists() else write_log(log, make_log(ROWS)), str(folder / name))
    config["stream"]["source"]["labels"].append({"name": "buy", "delay": "2d"})
    config["models"]["fm"]["supervision"] = {"delay": "1d"}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def job(path: Path, stage: str, model: str) -> tuple[int, str]:
    """Runs a stage in this process until it waits; returns the number of windows done and the missing input."""
    experiment = exfm.load_experiment(str(path))
    store = Store(experiment.run_dir)
    open_run(experiment, store)
    names = [arm.name for arm in experiment.arms if model in (arm.name, arm.base)]
    train, label = (names, ()) if stage == "train" else ((), names)
    loop = StreamLoop(experiment, store, experiment.config.parallel.build(), lambda _: None, train, label)
    return loop.advance(), loop.waiting_for


def experiment_window(path: Path, index: int) -> exfm.sources.Window:
    """A window of the experiment's stream."""
    source = exfm.load_experiment(str(path)).source
    return list(stream_windows(source, timedelta(days=1)))[index]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("whole")
    return exfm.run(exfm.load_experiment(str(config_of(folder, "whole")))), folder / "whole"


def test_stages_run_one_by_one_give_the_same_results(whole: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    path = config_of(tmp_path, "jobs")
    first = str(experiment_window(path, 0))
    assert job(path, "train", "vm") == (0, f"the supervision of 'fm' for window {first}")
    # the first two windows can be labelled without any snapshot: with nothing, as a day's delay wants it
    assert job(path, "supervise", "fm") == (2, f"the snapshot of 'fm' after window {first}")
    assert job(path, "train", "vm")[0] == 2
    assert job(path, "train", "fm") == (6, "")
    assert job(path, "train", "fm") == (0, "")
    assert job(path, "supervise", "fm") == (4, "")
    assert job(path, "train", "vm") == (4, "")
    results = exfm.run(exfm.load_experiment(str(path)))
    assert differences(results, whole[0]) == []


def test_a_listing_that_lacks_the_newest_names_changes_nothing(
    whole: tuple[dict[str, Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_of(tmp_path, "stale")
    names = Workspace.names

    def late(self: Workspace, folder: str) -> list[str]:
        listed = names(self, folder)
        return listed[:-1] if folder.startswith(("commits/", "snapshots/")) else listed

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "names", late)
        for target in (("train", "fm"), ("supervise", "fm"), ("train", "vm")):
            assert job(path, *target) == (6, "")
    assert differences(exfm.run(exfm.load_experiment(str(path))), whole[0]) == []


def test_a_restarted_follower_does_the_last_window_with_its_own_state(
    whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    path = config_of(tmp_path, "follow")
    for expected in ([5], [0, 1], [0, 0]):  # the sixth window could still get rows, until nothing has come for a while
        experiment = exfm.load_experiment(str(path))
        store = Store(experiment.run_dir)
        open_run(experiment, store)
        loop = StreamLoop(experiment, store, experiment.config.parallel.build(), lambda _: None)
        assert [loop.advance(complete_windows_only=turn == 0) for turn in range(len(expected))] == expected
    assert differences(exfm.run(exfm.load_experiment(str(path))), whole[0]) == []


def command(path: Path, stage: str, model: str) -> list[str]:
    return [stage, str(path), "--model", model, "--follow", "--idle-timeout", "6"]


def killed_and_restarted(arguments: list[str], commits: Path, seed: int, failures: list[str]) -> None:
    """Runs a job, kills it once it has got somewhere, and lets the last start finish."""
    moments = random.Random(seed)
    for attempt in range(KILLS + 1):
        process = start_exfm(*arguments)
        if attempt < KILLS:
            before = len(list(commits.rglob("*.json")))
            while process.is_alive() and len(list(commits.rglob("*.json"))) == before:
                time.sleep(0.02)
            process.join(moments.uniform(0, 0.4))
            process.kill()
        process.join(120)
        if attempt == KILLS and process.exitcode != 0:
            failures.append(f"{arguments}: status {process.exitcode}")


@pytest.mark.soak  # benchmarks/soak_jobs.py kills more of them
def test_three_jobs_killed_at_random_moments_end_with_the_same_results(
    whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    path = config_of(tmp_path, "killed")
    failures: list[str] = []
    jobs = [("train", "fm"), ("supervise", "fm"), ("train", "vm")]
    threads = [
        threading.Thread(
            target=killed_and_restarted, args=(command(path, *target), tmp_path / "killed" / "commits", seed, failures)
        )
        for seed, target in enumerate(jobs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    results = exfm.run(exfm.load_experiment(str(path)))
    assert differences(results, whole[0]) == []
    stored = pa.concat_tables(supervision(str(tmp_path / "killed"), "fm").values())
    identifiers = stored.column("example_id").to_pylist()
    assert len(set(identifiers)) == len(identifiers)


def test_of_two_jobs_on_one_model_one_commits_and_the_other_says_so(
    whole: tuple[dict[str, Any], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = config_of(tmp_path, "twice")
    experiments = [exfm.load_experiment(str(path)) for _ in range(2)]
    store = Store(experiments[0].run_dir)
    open_run(experiments[0], store)
    first, second = (
        StreamLoop(experiment, store, experiment.config.parallel.build(), lambda _: None, ["fm"], [])
        for experiment in experiments
    )
    # both see the first window undone; the second one's commit comes too late
    stage = second.stages[0]
    commit = stage.commit

    def late_commit(*commit_arguments: Any, **options: Any) -> WindowCommit:
        first.advance()
        return commit(*commit_arguments, **options)

    stage.commit = late_commit  # type: ignore[method-assign]
    second.advance()
    assert "another job had committed it" in caplog.text
    assert job(path, "supervise", "fm")[1] == job(path, "train", "vm")[1] == ""
    assert differences(exfm.run(experiments[0]), whole[0]) == []


def test_a_labeller_goes_back_to_an_older_snapshot_and_not_to_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = config_of(tmp_path, "damaged")
    assert job(path, "train", "fm")[0] == 6
    snapshots = tmp_path / "damaged" / "snapshots" / "fm"
    (snapshots / "000000").rename(tmp_path / "aside")
    with pytest.raises(
        exfm.RunError, match=r"snapshots/fm/000000/model-\w+\.safetensors: the snapshot is not stored any more"
    ):
        job(path, "supervise", "fm")
    (tmp_path / "aside").rename(snapshots / "000000")
    (model,) = (snapshots / "000001").glob("model-*")
    model.write_bytes(model.read_bytes()[:-8] + bytes(8))
    assert job(path, "supervise", "fm")[1] == ""
    assert "corrupt" in caplog.text and "labelling with the snapshot before it" in caplog.text
    labels = supervision(str(tmp_path / "damaged"), "fm")
    used = [set(labels[window].column("snapshot").to_pylist()) for window in (2, 3, 4)]
    assert used == [{0}, {0}, {2}]


def test_a_commit_with_other_content_is_refused_and_the_first_one_stands(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_log(ROWS))
    config = experiment_dict(log, str(tmp_path / "run"))
    train(load(tmp_path, config))
    manifest = tmp_path / "run" / "commits" / "train" / "fm" / "000005.json"
    before = json.loads(manifest.read_text())
    other = dict(config, seed=1, run_dir=str(tmp_path / "other"))
    train(load(tmp_path, other))

    commit = Store(str(tmp_path / "other")).log.load("train", "fm", 5)
    with pytest.raises(exfm.RunError, match=r"of 'fm' was committed by another job, with other content"):
        Store(str(tmp_path / "run")).log.add("train", "fm", commit)
    assert json.loads(manifest.read_text()) == before


def test_the_fm_computes_each_example_of_ten_students_once(tmp_path: Path) -> None:
    config = experiment_dict(write_log(tmp_path / "log", make_log()), str(tmp_path / "run"))
    config["models"]["fm"]["supervision"] = {"delay": "1d"}
    vm = {key: value for key, value in config["models"].pop("vm").items() if key != "control"}
    for student in range(10):
        config["models"][f"vm{student}"] = {**vm, "where": {"user": {"bucket": [student, student + 1], "of": 12}}}
    results = exfm.run(load(tmp_path, config))
    union = make_log().num_rows * 11 / 12
    supervised = supervision(str(tmp_path / "run"), "fm")
    rows = sum(table.num_rows for table in supervised.values())
    assert results["labelling"]["fm"]["examples"] == rows
    assert 0.5 * union < rows < union  # the first two days have no snapshot that is old enough
    students = results["supervision"]["fm"].values()
    assert sum(student["examples"] * student["hit_rate"] for student in students) > 1.5 * rows
