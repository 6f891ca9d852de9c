"""Rows of a teacher's tables: stored after training, told in time, and alike in every way to run an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import exfm
from exfm.data.batch import Batch
from exfm.data.stream import ChunkReader
from exfm.data.windows import stream_windows
from exfm.learning.trainer import Trainer
from exfm.transfer.build import teacher_specs
from tests.training.logs import differences, experiment_dict, load, make_log, predictions, supervision, train, write_log

PARTS = {"table/user": "added", "table/item": "projected"}
CHUNK = 128
ROWS = 400  # of the first days, for runs that are compared no further


def config(folder: Path, name: str, log: pa.Table | None = None) -> dict[str, Any]:
    """An FM that stores rows, in batches of 64, and a VM that follows them, in batches of 32."""
    path = write_log(folder / f"log-{name}", make_log() if log is None else log)
    settings = experiment_dict(path, str(folder / name))
    settings["models"]["fm"]["supervision"] = {"rows": ["user", "item"]}
    settings["models"]["vm"] |= {
        "batch_size": 32,
        "transfer": [{"name": "parameter_sharing", "teacher": "fm", "parts": dict(PARTS)}],
    }
    return settings


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[exfm.Experiment, dict[str, Any]]:
    """The experiment, run without a stop, and its results."""
    folder = tmp_path_factory.mktemp("whole")
    experiment = load(folder, config(folder, "whole"))
    return experiment, exfm.run(experiment)


def probabilities(run_dir: str) -> np.ndarray:
    """The student's predictions, in the log's order."""
    return pa.concat_tables(predictions(run_dir, "vm").values()).column("prediction_click").to_numpy()


def batches(experiment: exfm.Experiment) -> list[Batch]:
    stream = experiment.config.stream
    reader = ChunkReader(experiment.source, experiment.schema, stream, {}, exfm.sources.Shard())
    windows = stream_windows(experiment.source, stream.window)
    return [chunk.batch for window in windows for chunk in reader.read(window)]


def test_rows_are_those_after_training_on_the_batch(whole: tuple[exfm.Experiment, dict[str, Any]]) -> None:
    experiment, _ = whole
    arm = next(arm for arm in experiment.arms if arm.name == "fm")
    plan = experiment.config.parallel.build()
    trainer = Trainer(arm, experiment.schema, teacher_specs(experiment), plan, experiment.config.seed)
    chunk = trainer.model.narrow(batches(experiment)[0])
    stored = supervision(experiment.run_dir, "fm")[0]
    for start in (0, 64):
        batch = chunk.select(torch.arange(start, start + 64))
        trainer.step(batch, (), ("click",))
        trainer.observe(batch)
        tables = trainer.model.state_dict()
        for feature in ("user", "item"):
            (weight,) = (value for key, value in tables.items() if key.endswith(f"table_{feature}.weight"))
            expected = weight[batch.sparse[feature].values()].half()
            actual = torch.tensor(stored.column(f"row_{feature}").to_pylist()[start : start + 64]).half()
            assert torch.equal(actual, expected)


@pytest.mark.parametrize("changed", [5, 40, 64, 100])
def test_a_students_prediction_depends_on_no_later_label(
    whole: tuple[exfm.Experiment, dict[str, Any]], tmp_path: Path, changed: int
) -> None:
    """With other labels from a row on, only predictions after the student's batch with that row change."""
    table, as_is = make_log().slice(0, ROWS), probabilities(whole[0].run_dir)
    flipped = table.column("click").to_numpy().copy()
    first = CHUNK + changed
    flipped[first:] = 1 - flipped[first:]
    position = table.column_names.index("click")
    train(load(tmp_path, config(tmp_path, "flipped", table.set_column(position, "click", [flipped]))))
    per_window = [rows.num_rows for rows in predictions(whole[0].run_dir, "vm").values()]
    assert per_window[0] > 2 * CHUNK  # so the second chunk is whole
    end = first // 32 * 32 + 32
    same = as_is[:ROWS] == probabilities(str(tmp_path / "flipped"))
    assert same[:end].all() and not same[end : end + 64].all()


def test_rows_make_what_a_snapshot_gives_fresher(whole: tuple[exfm.Experiment, dict[str, Any]], tmp_path: Path) -> None:
    stale = config(tmp_path, "stale", make_log().slice(0, ROWS))
    stale["models"]["fm"].pop("supervision")
    train(load(tmp_path, stale))
    actual, other = (predictions(run_dir, "vm") for run_dir in (whole[0].run_dir, str(tmp_path / "stale")))
    column = "prediction_click"
    assert actual[0].column(column)[:32].equals(other[0].column(column)[:32])
    assert not actual[0].column(column).equals(other[0].column(column))


def test_an_interrupted_run_ends_alike(whole: tuple[exfm.Experiment, dict[str, Any]], tmp_path: Path) -> None:
    experiment = load(tmp_path, {**config(tmp_path, "whole"), "run_dir": str(tmp_path / "interrupted")})
    chunks = 0

    def stop(_: object) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == 8:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        exfm.run(experiment, stop)
    assert not differences(exfm.run(experiment), whole[1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": ["usr"]}, r"supervision\.rows: the data has no categorical feature .*'usr'.*user"),
        ({"rows": ["price"]}, r"supervision\.rows: the data has no categorical feature .*'price'"),
        ({"rows": ["user"], "delay": "1d"}, r"supervision\.rows: .*delay: 0s"),
    ],
)
def test_wrong_rows_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    settings = config(tmp_path, "run")
    settings["models"]["fm"]["supervision"] = fields
    with pytest.raises(exfm.ConfigError, match=message):
        load(tmp_path, settings)


def test_features_of_one_table_are_refused(tmp_path: Path) -> None:
    settings = config(tmp_path, "run")
    settings["stream"]["source"]["features"][1]["table"] = "user"
    with pytest.raises(exfm.ConfigError, match=r"rows: user, item read one table, 'user'"):
        load(tmp_path, settings)
