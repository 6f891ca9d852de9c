"""The stream loop as a user sees it: files, causality, and equal results after a crash."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import exfm
from exfm.bookkeeping.progress import Progress
from exfm.storage.commits import Commit, CommitLog
from tests.training.logs import (
    DAY_US,
    START_US,
    differences,
    experiment_dict,
    load,
    make_log,
    predictions,
    supervision,
    train,
    write_log,
)

ROWS = 900


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_log(tmp_path_factory.mktemp("log"), make_log(ROWS))


@pytest.fixture(scope="module")
def undisturbed(log: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    run_dir = str(folder / "run")
    return exfm.run(load(folder, experiment_dict(log, run_dir))), run_dir


def test_every_example_is_predicted_once_per_model_and_in_order(undisturbed: tuple[dict[str, Any], str]) -> None:
    results, run_dir = undisturbed
    for model in ("fm", "vm", "vm.control"):
        rows = pa.concat_tables(predictions(run_dir, model).values())
        assert rows.column("example_id").to_pylist() == make_log(ROWS).column("example_id").to_pylist()
        assert rows.column("label_click").to_pylist() == make_log(ROWS).column("click").to_pylist()
        assert results["models"][model]["examples"] == rows.num_rows


def test_results_hold_what_scripts_rely_on(undisturbed: tuple[dict[str, Any], str]) -> None:
    results, run_dir = undisturbed
    assert set(results) >= {"experiment", "seed", "models", "gains", "time"}
    task = results["models"]["vm"]["tasks"]["click"]
    assert set(task) >= {"ne", "auc", "gauc", "log_loss", "calibration", "base_rate", "windows"}
    assert set(task["windows"][0]) >= {"window", "examples", "ne", "auc"}
    assert results["models"]["fm"]["parameters"]["sparse"] == 8 * (64 + 64)
    assert results["models"]["fm"]["flops_per_example"] > results["models"]["vm"]["flops_per_example"] > 0
    gain = results["gains"][0]
    assert (gain["model"], gain["control"], gain["task"], gain["teacher"]) == ("vm", "vm.control", "click", "fm")
    assert gain["interval95"][0] <= gain["ne_gain_percent"] <= gain["interval95"][1]
    assert Path(run_dir, "report.html").read_text().startswith("<!doctype html>")


def test_a_control_starts_from_its_models_weights(undisturbed: tuple[dict[str, Any], str]) -> None:
    _, run_dir = undisturbed
    vm, control = predictions(run_dir, "vm")[0], predictions(run_dir, "vm.control")[0]
    first = slice(0, 20)  # the first batch: nothing has been learned yet
    assert vm.column("prediction_click").to_numpy()[first].tolist() == (
        control.column("prediction_click").to_numpy()[first].tolist()
    )
    assert vm.column("prediction_click") != control.column("prediction_click")


def test_supervision_is_the_fms_own_forward(undisturbed: tuple[dict[str, Any], str]) -> None:
    results, run_dir = undisturbed
    written = supervision(run_dir, "fm")
    for window, rows in predictions(run_dir, "fm").items():
        assert written[window].column("example_id") == rows.column("example_id")
        taught, predicted = (table.column("prediction_click").to_pylist() for table in (written[window], rows))
        unlearned = 64 if window == 0 else 0  # the first batch: the model has not seen a label yet
        assert taught[unlearned:] == predicted[unlearned:]
        assert taught[: unlearned - 10] == [None] * (unlearned - 10) if unlearned else None not in taught
        age = written[window].column("event_time").to_numpy() - written[window].column("watermark").to_numpy()
        assert (age >= np.timedelta64(0)).all()
    # A row of nulls teaches nothing.
    assert results["supervision"]["fm"]["vm"]["hit_rate"] == 1 - nulls(run_dir, "fm") / ROWS


def nulls(run_dir: str, teacher: str) -> int:
    """How many examples a teacher has predicted before it had learned."""
    return sum(rows.column("prediction_click").null_count for rows in supervision(run_dir, teacher).values())


def test_labels_of_later_windows_change_no_earlier_prediction(
    log: str, undisturbed: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    table = make_log(ROWS)
    later = table.column("event_time").cast(pa.int64()).to_numpy() >= START_US + 3 * DAY_US
    shuffled = table.column("click").to_numpy().copy()
    shuffled[later] = np.random.default_rng(1).permutation(1 - shuffled[later])
    changed = table.set_column(table.column_names.index("click"), "click", pa.array(shuffled))
    run_dir = str(tmp_path / "run")
    train(load(tmp_path, experiment_dict(write_log(tmp_path / "log", changed), run_dir)))
    for model in ("fm", "vm", "vm.control"):
        before, after = predictions(undisturbed[1], model), predictions(run_dir, model)
        for window in range(3):
            assert before[window] == after[window]
        assert before[4].column("prediction_click") != after[4].column("prediction_click")


def test_an_examples_own_label_never_reaches_its_prediction(
    undisturbed: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    table = make_log(ROWS)
    flipped = table.column("click").to_numpy().copy()
    flipped[-1] = 1 - flipped[-1]
    changed = table.set_column(table.column_names.index("click"), "click", pa.array(flipped))
    run_dir = str(tmp_path / "run")
    train(load(tmp_path, experiment_dict(write_log(tmp_path / "log", changed), run_dir)))
    for model in ("fm", "vm"):
        before, after = predictions(undisturbed[1], model)[5], predictions(run_dir, model)[5]
        assert before.column("prediction_click") == after.column("prediction_click")


class StoppedError(Exception):
    """Stands for a crash between two chunks."""


@pytest.mark.parametrize("chunks", [4, 7, 12])
def test_a_run_that_stops_anywhere_ends_with_the_same_results(
    log: str, undisturbed: tuple[dict[str, Any], str], tmp_path: Path, chunks: int
) -> None:
    config = experiment_dict(log, str(tmp_path / "run"))
    left = chunks

    def stop(progress: Progress) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            left = chunks
            raise StoppedError

    for _ in range(20):
        try:
            results = exfm.run(load(tmp_path, config), stop)
        except StoppedError:
            assert not list(tmp_path.rglob("*.tmp"))
            continue
        break
    assert differences(results, undisturbed[0]) == []


def test_crashes_between_the_commits_of_a_window_change_nothing(
    log: str, undisturbed: tuple[dict[str, Any], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four commits in each of six windows every third comes to nothing at first, so that each kind of them does."""
    config = experiment_dict(log, str(tmp_path / "run"))
    add, begun = CommitLog._add, []

    def failing(self: CommitLog, stage: Any, model: str, commit: Commit, *more: Any) -> bool:
        name = (stage, model, commit.window.index)
        if name not in begun:
            begun.append(name)
            if len(begun) % 3 == 1:
                raise StoppedError
        return add(self, stage, model, commit, *more)

    with monkeypatch.context() as patch:
        patch.setattr(CommitLog, "_add", failing)
        for _ in range(0, 24, 3):
            with pytest.raises(StoppedError):
                exfm.run(load(tmp_path, config))
        results = exfm.run(load(tmp_path, config))
    assert len(begun) == 24
    assert differences(results, undisturbed[0]) == []


def test_a_finished_run_is_not_repeated(undisturbed: tuple[dict[str, Any], str], log: str, tmp_path: Path) -> None:
    results, run_dir = undisturbed
    seen: list[Progress] = []
    again = exfm.run(load(tmp_path, experiment_dict(log, run_dir)), seen.append)
    assert differences(again, results) == []
    assert seen == []


def test_a_finished_run_makes_the_figures_that_are_asked_for_later(
    undisturbed: tuple[dict[str, Any], str], log: str, tmp_path: Path
) -> None:
    results, run_dir = undisturbed
    seen: list[Progress] = []
    again = exfm.run(load(tmp_path, experiment_dict(log, run_dir), "evaluation.recall_at=[2,5]"), seen.append)
    assert seen == []
    task = again["models"]["vm"]["tasks"]["click"]
    assert set(task["recall_at"]) == {"2", "5"}
    assert task["recall_counts"]["5"]["groups"] > 10
    assert 0 < task["recall_at"]["2"] < task["recall_at"]["5"] < 1
    assert "Recall of click" in Path(run_dir, "report.html").read_text()
    assert differences(exfm.run(load(tmp_path, experiment_dict(log, run_dir))), results) == []


def test_another_experiment_in_the_same_folder_is_refused(
    undisturbed: tuple[dict[str, Any], str], log: str, tmp_path: Path
) -> None:
    config = experiment_dict(log, undisturbed[1])
    with pytest.raises(exfm.ConfigError, match=r"models\.vm\.embedding_dim was 8 and is now 16"):
        exfm.run(load(tmp_path, config, "models.vm.embedding_dim=16"))
    assert exfm.run(load(tmp_path, config, "evaluation.skip=0.5"))["models"]["vm"]["tasks"]["click"]["ne"]


def test_the_same_bits_on_any_file_system(undisturbed: tuple[dict[str, Any], str], log: str, tmp_path: Path) -> None:
    results = exfm.run(load(tmp_path, experiment_dict(log, f"memory://{tmp_path.name}/run")))
    assert differences(results, undisturbed[0]) == []


def test_batches_do_not_depend_on_how_files_are_cut(undisturbed: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    pq.write_table(make_log(ROWS), tmp_path / "log" / "all.parquet", row_group_size=97)
    config = experiment_dict(str(tmp_path / "log"), str(tmp_path / "run"))
    assert differences(exfm.run(load(tmp_path, config)), undisturbed[0]) == []


def stopped_in_window_5(config: dict[str, Any], folder: Path) -> Path:
    """The run_dir of a run whose last committed window is 4."""

    def stop(progress: Progress) -> None:
        if progress.window.index == 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        exfm.run(load(folder, config), stop)
    return Path(config["run_dir"])


def test_a_corrupt_snapshot_is_named_and_the_one_before_it_is_taken(
    log: str, undisturbed: tuple[dict[str, Any], str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = experiment_dict(log, str(tmp_path / "run"))
    run_dir = stopped_in_window_5(config, tmp_path)
    corrupt = next((run_dir / "snapshots" / "vm" / "000004").glob("model-*"))
    whole = corrupt.read_bytes()
    corrupt.write_bytes(whole[:-8] + bytes(8))
    results = exfm.run(load(tmp_path, config))
    assert re.search(r"snapshots/vm/000004/model-\w+\.safetensors: corrupt", caplog.text)
    assert differences(results, undisturbed[0]) == []
    assert corrupt.read_bytes() == whole  # window 4 was done again


def test_when_no_snapshot_can_be_read_the_first_one_is_named(log: str, tmp_path: Path) -> None:
    config = experiment_dict(log, str(tmp_path / "run"))
    run_dir = stopped_in_window_5(config, tmp_path)
    for file in (run_dir / "snapshots" / "vm").rglob("training-*"):
        file.write_bytes(b"")
    with pytest.raises(exfm.RunError, match=r"snapshots/vm/000004/training-\w+\.safetensors: corrupt"):
        exfm.run(load(tmp_path, config))


def test_models_on_part_of_the_traffic_see_that_part_only(log: str, tmp_path: Path) -> None:
    config = experiment_dict(log, str(tmp_path / "run"))
    config["models"]["vm"]["where"] = {"user": [1, 2, 3]}
    results = exfm.run(load(tmp_path, config))
    table = make_log(ROWS)
    of_users = table.filter(pa.compute.is_in(table.column("user"), pa.array([1, 2, 3])))
    rows = pa.concat_tables(predictions(str(tmp_path / "run"), "vm").values())
    assert rows.column("example_id").to_pylist() == of_users.column("example_id").to_pylist()
    coverage = results["supervision"]["fm"]["vm"]
    first = supervision(str(tmp_path / "run"), "fm")[0].column("prediction_click").null_count
    unlearned = sum(user in (1, 2, 3) for user in table.column("user").to_pylist()[:first])
    assert coverage["examples"] == of_users.num_rows
    assert coverage["hit_rate"] == (of_users.num_rows - unlearned) / of_users.num_rows


def test_students_beyond_the_teachers_traffic_meet_misses(log: str, tmp_path: Path) -> None:
    config = experiment_dict(log, str(tmp_path / "run"))
    config["models"]["fm"]["where"] = {"user": {"bucket": 0, "of": 2}}
    results = exfm.run(load(tmp_path, config))
    fm, vm = results["models"]["fm"]["examples"], results["models"]["vm"]["examples"]
    assert 0 < fm < vm
    assert results["supervision"]["fm"]["vm"]["hit_rate"] == pytest.approx(
        (fm - nulls(str(tmp_path / "run"), "fm")) / vm
    )


def test_torch_keeps_its_random_state(log: str, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    exfm.run(load(tmp_path, experiment_dict(log, str(tmp_path / "run"))))
    assert torch.equal(before, torch.get_rng_state())
