"""Epochs: the first windows are trained on several times, the windows after them once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import exfm
from exfm.errors import RunError
from exfm.experiment.run import build_plan
from exfm.supervision.store import Store
from exfm.training.loop import StreamLoop
from exfm.training.stage import Stage
from tests.training.interruption import run_interrupted
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

FIRST = 3
UNTIL = "2023-11-18"  # START_US and three days
BOTH = ("fm", "vm", "vm.control")


def config_of(log: str, run_dir: Path, epochs: Mapping[str, int]) -> dict[str, Any]:
    """A teacher of a prompt and a late label, its student and a control."""
    config = experiment_dict(log, str(run_dir), labels=("click", "buy"))
    config["evaluation"]["skip"] = 0.0
    for name, model in config["models"].items():
        model |= {"backbone": {"name": "dlrm"}, "batch_size": 32, "optimizer": {"dense": {"ema": 0.9, "warmup": 40}}}
        if name in epochs:
            model["epochs"] = {"count": epochs[name], "until": UNTIL}
    return config


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_log(tmp_path_factory.mktemp("log"), make_log(rows=900))


@pytest.fixture(scope="module")
def runs(log: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Runs without epochs, with epochs of the student, and of teacher and student."""
    folder = tmp_path_factory.mktemp("runs")
    results: dict[str, dict[str, Any]] = {}
    for name, epochs in (("once", {}), ("student", {"vm": 3}), ("both", {"fm": 3, "vm": 3})):
        results[name] = exfm.run(load(folder, config_of(log, folder / name, epochs)))
    return folder, results


def first_days() -> pa.Table:
    """The rows of the first windows."""
    table = make_log(rows=900)
    times = table.column("event_time").cast(pa.int64()).to_numpy()
    return table.slice(0, int(np.searchsorted(times, START_US + FIRST * DAY_US)))


def saved(run_dir: Path, model: str, window: int = 5) -> dict[str, Tensor]:
    """All tensors of a model's snapshot after a window."""
    tensors: dict[str, Tensor] = {}
    for file in ("model", "training"):
        (path,) = (run_dir / "snapshots" / model / f"{window:06d}").glob(f"{file}-*.safetensors")
        tensors |= {f"{file}/{name}": value for name, value in load_file(path).items()}
    return tensors


def test_the_first_pass_is_that_of_a_run_without_epochs(runs: tuple[Path, dict[str, Any]]) -> None:
    """What is predicted and taught in the first windows has seen none of their labels twice, or before its time."""
    folder, _ = runs
    for model in BOTH:
        once, repeated = (predictions(str(folder / name), model) for name in ("once", "both"))
        assert once.keys() == repeated.keys() == set(range(6))
        assert all(once[window] == repeated[window] for window in range(FIRST))
        assert all(once[window] != repeated[window] for window in range(FIRST, 6))
    once, repeated = (supervision(str(folder / name), "fm") for name in ("once", "both"))
    assert all(once[window] == repeated[window] for window in range(FIRST)) and once[FIRST] != repeated[FIRST]


def test_a_model_makes_the_steps_of_its_epochs(runs: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Twice more those of a run that ends with the first windows: with the late labels that were known by then."""
    folder, _ = runs
    train(load(tmp_path, config_of(write_log(tmp_path / "first", first_days()), tmp_path / "run", {})))
    for model in BOTH:
        steps = {name: int(saved(folder / name, model)["training/steps"]) for name in ("once", "both")}
        first = int(saved(tmp_path / "run", model, FIRST - 1)["training/steps"])
        assert steps["both"] == steps["once"] + 2 * first and first > 10


def test_figures_count_the_windows_after(runs: tuple[Path, dict[str, Any]]) -> None:
    _, results = runs
    rows = {
        entry["window"]: entry["examples"] for entry in results["once"]["models"]["vm"]["tasks"]["click"]["windows"]
    }
    after = sum(rows[window] for window in range(FIRST, 6))
    for name in ("student", "both"):
        for model in BOTH:
            task = results[name]["models"][model]["tasks"]["click"]
            assert task["examples"] == after and len(task["windows"]) == 6
        (gain,) = (gain for gain in results[name]["gains"] if gain["task"] == "click")
        assert gain["examples"] == after
        notes = [note for note in results[name]["notes"] if "trained on 3 times" in note]
        assert len(notes) == (3 if name == "both" else 2) and all("the first 3 windows" in note for note in notes)


@pytest.mark.parametrize("stop_after", [9, *(pytest.param(n, marks=pytest.mark.soak) for n in (3, 7, 14, 19, 25, 33))])
def test_an_interrupted_run_ends_with_the_same_bits(
    runs: tuple[Path, dict[str, Any]], log: str, tmp_path: Path, stop_after: int
) -> None:
    """Also where it is stopped in the second of three epochs, of the teacher or of the student or its control."""
    folder, results = runs
    experiment = load(tmp_path, config_of(log, tmp_path / "run", {"fm": 3, "vm": 3}))
    assert differences(run_interrupted(experiment, stop_after), results["both"]) == []
    for model in BOTH:
        actual, expected = saved(tmp_path / "run", model), saved(folder / "both", model)
        assert actual.keys() == expected.keys()
        assert [
            name for name in expected if not torch.equal(actual[name].nan_to_num(), expected[name].nan_to_num())
        ] == []


def test_a_student_in_a_job_of_its_own_learns_the_same(
    runs: tuple[Path, dict[str, Any]], log: str, tmp_path: Path
) -> None:
    """Its teacher's supervision of all epochs is the one that was committed in the first pass."""
    folder, _ = runs
    experiment = load(tmp_path, config_of(log, tmp_path / "run", {"fm": 3, "vm": 3}))
    for arms in (["fm"], ["vm", "vm.control"]):
        StreamLoop(experiment, Store(experiment.run_dir), build_plan(experiment), lambda _: None, arms, []).advance()
    for model in BOTH:
        actual, expected = (predictions(str(path), model) for path in (tmp_path / "run", folder / "both"))
        assert actual == expected


def test_every_epoch_has_the_same_supervision_and_labels(
    log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pass over the first windows trains the student on the same rows, hits and late labels, in the same order."""
    seen: list[tuple[str, list[int], list[int], Any]] = []
    consume, repeat, late = Stage.consume, Stage.repeat, Stage.consume_late

    def note(kind: str, stage: Stage, chunk: Any, *more: Any) -> None:
        if stage.name == "vm":
            teachers = more[0] if kind == "rows" else {}
            batch = chunk.batch
            hits = [
                int(joiner.join(batch.example_id, batch.event_time_us).supervision.hit["click"].sum())
                for joiner in teachers.values()
            ]
            seen.append((kind, batch.example_id.tolist(), hits, more[0] if kind == "late" else None))

    def noting(kind: str, call: Any) -> Any:
        def noted(stage: Stage, chunk: Any, *more: Any) -> Any:
            note(kind, stage, chunk, *more)
            return call(stage, chunk, *more)

        return noted

    monkeypatch.setattr(Stage, "consume", noting("rows", consume))
    monkeypatch.setattr(Stage, "repeat", noting("rows", repeat))
    monkeypatch.setattr(Stage, "consume_late", noting("late", late))
    train(load(tmp_path, config_of(log, tmp_path / "run", {"vm": 3})))
    newest = START_US + FIRST * DAY_US
    times = make_log(rows=900).column("event_time").cast(pa.int64()).to_numpy()
    ids = set((np.flatnonzero(times < newest) * 7 + 3).tolist())
    count = sum(len(set(entry[1]) & ids) > 0 for entry in seen)
    first = next(number for number in range(1, count) if seen[number] == seen[0])
    assert seen[:first] == seen[first : 2 * first] == seen[2 * first : 3 * first]
    assert {entry[0] for entry in seen[:first]} == {"rows", "late"}
    rows = [row for entry in seen[:first] if entry[0] == "rows" for row in entry[1]]
    assert set(rows) == ids and all(sum(entry[2]) > 0 for entry in seen[:first] if entry[0] == "rows")


def test_a_stream_that_ends_before_is_said(runs: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The further epochs come with the first window after the first part, when the stream has one."""
    early, folder = first_days(), tmp_path / "log"
    config = config_of(write_log(folder, early), tmp_path / "run", {"vm": 3})
    results = exfm.run(load(tmp_path, config))
    assert results["models"]["vm"]["tasks"]["click"]["examples"] == 0
    assert any("there is none yet" in note for note in results["notes"])
    pq.write_table(make_log(rows=900).slice(early.num_rows), folder / "part-3.parquet")
    results = exfm.run(load(tmp_path, config))
    assert not any("there is none yet" in note for note in results["notes"])
    whole, grown = (predictions(str(path), "vm") for path in (runs[0] / "student", tmp_path / "run"))
    assert grown == whole


def test_a_part_that_is_gone_is_named(tmp_path: Path) -> None:
    """The further epochs need the first windows again."""
    early, folder = first_days(), tmp_path / "log"
    config = config_of(write_log(folder, early), tmp_path / "run", {"vm": 3})
    train(load(tmp_path, config))
    pq.write_table(make_log(rows=900).slice(early.num_rows), folder / "part-3.parquet")
    (folder / "part-0.parquet").unlink()
    with pytest.raises(
        RunError, match=r"models\.vm\.epochs: window 2023-11-15\S* .*part-0.parquet.* in the stream no more"
    ):
        exfm.run(load(tmp_path, config))
