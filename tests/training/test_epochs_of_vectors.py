"""Epochs of models that follow a teacher's states, rows and parts: each pass reads what the first pass read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import exfm
from exfm.experiment.run import build_plan
from exfm.learning.trainer import Trainer
from exfm.modeling.vector_table import HistoryTable
from exfm.scheduling.identity import open_run
from exfm.storage import snapshots
from exfm.supervision.store import Store, open_store
from exfm.supervision.vacuum import apply_vacuum, find_vacuum
from exfm.training.loop import StreamLoop
from tests.training.interruption import StopError
from tests.training.logs import experiment_dict, load, make_log, predictions, train, write_log

UNTIL = "2023-11-18"  # after three of six days
PARTS = {"table/item": "projected", "sequence_encoder/history": "copied", "dense_tokens": "fine_tuned"}
INPUTS = (
    {"name": "latest_state", "teacher": "fm", "entities": ["item"]},
    {"name": "loopfm", "teacher": "fm", "entities": ["user"], "states": 3},
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_log(tmp_path_factory.mktemp("log"), make_log(rows=500))


def config_of(log: str, run_dir: Path, count: int = 3) -> dict[str, Any]:
    """A teacher that stores states and rows, which come late, and a student that takes all of a teacher there is."""
    config = experiment_dict(log, str(run_dir))
    fm, vm = config["models"]["fm"], config["models"]["vm"]
    supervision = {"states": {"user": ["user"], "item": ["item"]}, "state_dim": 4, "rows": ["item"], "lag": "3h"}
    fm |= {"backbone": {"name": "dlrm"}, "supervision": supervision}
    del vm["features"]
    vm |= {
        "sequence_encoder": {"name": "din"},
        "batch_size": 48,
        "optimizer": {"dense": {"ema": 0.9}},
        "control": False,
        "inputs": list(INPUTS),
        "transfer": [
            {"name": "compact_features", "teacher": "fm", "entities": ["user"]},
            {"name": "parameter_sharing", "teacher": "fm", "parts": dict(PARTS)},
        ],
    }
    if count > 1:
        vm["epochs"] = {"count": count, "until": UNTIL}
    return config


@pytest.fixture(scope="module", autouse=True)
def no_time_to_read() -> Iterator[pytest.MonkeyPatch]:
    """Snapshots go as soon as nobody needs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "READING_S", 0.0)
        patch.setattr(snapshots, "LEAVING", 0)
        yield patch


def saved(run_dir: Path, model: str = "vm") -> dict[str, Tensor]:
    """All tensors of a model's last snapshot."""
    tensors: dict[str, Tensor] = {}
    for file in ("model", "training"):
        (path,) = (run_dir / "snapshots" / model / "000005").glob(f"{file}-*.safetensors")
        tensors |= {f"{file}/{name}": value for name, value in load_file(path).items()}
    return tensors


def different(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    assert actual.keys() == expected.keys()
    return [name for name in expected if not torch.equal(actual[name], expected[name])]


class Reading:
    """Notes, at each step of a student, the ids of the batch and all vectors of teachers that the step reads."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.steps: list[tuple[list[int], list[Tensor]]] = []
        step = Trainer.step

        def noting(trainer: Trainer, batch: Any, *more: Any) -> Any:
            if trainer.arm.name == "vm":
                self.steps.append((batch.example_id.tolist(), self._vectors(trainer, batch)))
            return step(trainer, batch, *more)

        patch.setattr(Trainer, "step", noting)

    def _vectors(self, trainer: Trainer, batch: Any) -> list[Tensor]:
        vectors: list[Tensor] = []
        for fed in trainer.transfer.parameters.fed_tables():
            for feature in {column.partition("_")[2] for column in fed.columns}:
                rows = batch.sparse[feature].values()
                if isinstance(fed.table, HistoryTable):
                    vectors += [tensor.clone() for tensor in fed.table.history(rows, feature)]
                else:
                    vectors.append(fed.table(rows, feature, torch.float32))
        return vectors

    def check_passes(self, count: int) -> None:
        """Checks that each pass over the first windows reads what the first pass read, as far as it comes."""
        starts = [number for number, (ids, _) in enumerate(self.steps) if ids == self.steps[0][0]]
        assert len(starts) == count
        first = self.steps[: starts[1]]
        assert len(first) > 3 and all(tensor.any() for tensor in first[-1][1])
        for start, end in zip(starts[1:], [*starts[2:], len(self.steps)], strict=True):
            for (ids, vectors), (ids_again, vectors_again) in zip(first, self.steps[start:end], strict=False):
                assert ids == ids_again
                assert all(map(torch.equal, vectors, vectors_again))


def stop(experiment: exfm.Experiment, after: int) -> None:
    """Trains an experiment up to a number of chunks."""
    chunks = iter(range(after - 1))

    def count(_: object) -> None:
        if next(chunks, None) is None:
            raise StopError

    store = open_store(experiment)
    open_run(experiment, store)
    with pytest.raises(StopError):
        StreamLoop(experiment, store, build_plan(experiment), count, label=[]).advance()


@pytest.fixture(scope="module")
def whole(log: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reading]:
    """The folder of a run that is not interrupted, and what its student read."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        reading = Reading(patch)
        train(load(folder, config_of(log, folder / "run")))
    return folder / "run", reading


def test_every_pass_reads_the_vectors_of_the_first(whole: tuple[Path, Reading]) -> None:
    """States, with those in flight, and rows of the snapshots of then, although the teacher has gone on since."""
    whole[1].check_passes(3)


def test_epochs_change_weights_and_no_vectors(whole: tuple[Path, Reading], log: str, tmp_path: Path) -> None:
    """The windows before the further passes, and all vectors after them, are those of a run without epochs."""
    train(load(tmp_path, config_of(log, tmp_path / "once", 1)))
    once, repeated = (predictions(str(folder), "vm") for folder in (tmp_path / "once", whole[0]))
    assert [once[window] == repeated[window] for window in range(6)] == [True] * 3 + [False] * 3
    changed = different(saved(whole[0]), saved(tmp_path / "once"))
    assert "model/heads.task_click.2.weight" in changed or len(changed) > 10
    assert not [name for name in changed if "vectors" in name or "count_R" in name or "feed." in name]


def test_a_teacher_of_another_run_keeps_its_snapshots(whole: tuple[Path, Reading], log: str, tmp_path: Path) -> None:
    """A student that is stopped again and again ends with the same bits, whatever a vacuum removes meanwhile."""
    config = config_of(log, tmp_path / "teacher")
    teacher = {**config, "name": "teacher", "models": {"fm": {**config["models"]["fm"], "keep": {"snapshots": "all"}}}}
    train(load(tmp_path, teacher))
    teacher["models"]["fm"]["keep"] = {"snapshots": 2}
    open_run(load(tmp_path, teacher), Store(str(tmp_path / "teacher")))
    student = {**config, "run_dir": str(tmp_path / "run"), "models": {"vm": config["models"]["vm"]}}
    student["teachers"] = {"fm": {"run": str(tmp_path / "teacher"), "model": "fm"}}
    experiment, kept = load(tmp_path, student), []

    def vacuum() -> None:
        store = Store(str(tmp_path / "teacher"))
        apply_vacuum(store, find_vacuum(store), 0.0)
        kept.append(store.snapshots.versions("fm"))

    for _ in range(2):  # in the second pass, and in the third
        stop(experiment, 5)
        vacuum()
    train(experiment)
    vacuum()
    assert different(saved(tmp_path / "run"), saved(whole[0])) == []
    assert predictions(str(tmp_path / "run"), "vm") == predictions(str(whole[0]), "vm")
    # The window after the further passes may run again, and needs the snapshot before it.
    assert kept == [[0, 1, 2, 3, 4, 5]] * 2 + [[4, 5]]


def test_a_model_that_starts_from_another_begins_each_pass_with_its_vectors(
    log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is stopped in its second pass, and the other model's snapshots are gone by then."""
    config = config_of(log, tmp_path / "run", 1)
    models = {"fm": config["models"]["fm"], "parent": config["models"]["vm"]}
    models = {name: {**model, "keep": {"snapshots": "all"}} for name, model in models.items()}
    train(load(tmp_path, {**config, "models": models}))
    vm = {**config["models"]["vm"], "init_from": {"model": "parent", "at": 1}, "start": "2023-11-17"}
    vm["epochs"] = {"count": 3, "until": "2023-11-19"}
    experiment = load(tmp_path, {**config, "models": {"fm": models["fm"], "vm": vm}})
    reading = Reading(monkeypatch)
    stop(experiment, 3)
    shutil.rmtree(tmp_path / "run" / "snapshots" / "parent")
    train(experiment)
    reading.check_passes(4)
    assert reading.steps[0][1][1].any(), "the first example knows no vector of the other model"
    assert not [name for name in saved(tmp_path / "run") if "start." in name]
