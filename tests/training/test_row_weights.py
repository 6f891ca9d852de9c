"""A row of weight 2 teaches as much as the same row twice, and a row of weight 0 nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from torch import Tensor

import exfm
from exfm.data.batch import Batch
from exfm.data.blank import blank_batch
from exfm.data.column_types import plain_rows
from exfm.data.decode import decode
from exfm.evaluation.intervals import PairedLosses
from exfm.evaluation.metrics import Moments, auc, log_losses
from exfm.evaluation.recalibration import LogitHistogram
from exfm.experiment.run import build_plan
from exfm.interfaces.local_shards import whole_tensors
from exfm.learning.trainer import Trainer
from exfm.transfer.build import teacher_specs
from tests.training.logs import experiment_dict, load, make_log, predictions, train, write_log

ROWS = 48
STRATEGIES: dict[str, list[dict[str, Any]]] = {
    "labels alone": [],
    "direct": [{"name": "direct", "teacher": "fm"}],
    "auxiliary_head": [{"name": "auxiliary_head", "teacher": "fm", "label_scale": "auto"}],
    "student_adapter": [{"name": "student_adapter", "teacher": "fm"}],
    "representation": [{"name": "representation", "teacher": "fm"}],
}


def weighted(log: pa.Table, weight: np.ndarray[Any, Any]) -> pa.Table:
    return log.append_column("weight", pa.array(weight))


def stepped(
    folder: Path, transfer: list[dict[str, Any]], batches: list[Batch], hits: list[Tensor]
) -> dict[str, Tensor]:
    """Returns a student's weights after a step on each batch, with SGD of all weights."""
    config = experiment_dict(write_log(folder / "log", weighted(make_log(60), np.ones(60))), str(folder / "run"))
    sgd = {"dense": {"name": "sgd", "lr": 0.1}, "tables": {"name": "sgd", "lr": 0.1}}
    config["stream"]["source"]["weight"] = "weight"
    config["models"]["fm"] |= {"supervision": {"embedding": "float16"}}
    config["models"]["vm"] |= {"transfer": transfer, "control": False, "optimizer": sgd}
    experiment = load(folder, config)
    arm = next(arm for arm in experiment.arms if arm.name == "vm")
    trainer = Trainer(arm, experiment.schema, teacher_specs(experiment), build_plan(experiment), 0)
    for batch, hit in zip(batches, hits, strict=True):
        narrowed = trainer.model.narrow(batch)
        torch.manual_seed(0)
        soft = torch.sin(batch.example_id.float()).sigmoid()
        embedding = torch.stack([torch.cos(batch.example_id.float() * k) for k in range(1, 1 + 16)], dim=1)
        width = teacher_specs(experiment)["fm"].embedding_dim or 1
        embedding = embedding.repeat(1, -(-width // 16))[:, :width]
        output = exfm.transfer.TeacherOutput({"click": soft}, {"click": hit}, embedding)
        trainer.step(narrowed, trainer.transfer.join({"fm": output}), ("click",))
    return {name: value.clone() for name, value in whole_tensors(trainer.weights()).items()}


def rows_of(log: pa.Table, schema: exfm.schema.FeatureSchema) -> Batch:
    return decode(plain_rows(log.combine_chunks().to_batches()[0], schema), schema)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weight_2_is_the_row_twice(tmp_path: Path, strategy: str) -> None:
    config = experiment_dict(write_log(tmp_path / "log", weighted(make_log(60), np.ones(60))), str(tmp_path / "run"))
    config["stream"]["source"]["weight"] = "weight"
    schema = load(tmp_path, config).schema
    random = np.random.default_rng(0)
    log, weight = make_log(3 * ROWS), random.integers(0, 4, 3 * ROWS)
    once, twice = [], []
    hit_once, hit_twice = [], []
    for start in range(0, 3 * ROWS, ROWS):
        rows, weights = log.slice(start, ROWS), weight[start : start + ROWS]
        once.append(rows_of(weighted(rows, weights), schema))
        index = torch.repeat_interleave(torch.arange(ROWS), torch.from_numpy(weights))
        repeated = rows_of(weighted(rows, np.ones(ROWS)), schema).select(index)
        twice.append(repeated)
        hit = torch.from_numpy(random.random(ROWS) < 0.7)
        hit_once.append(hit)
        hit_twice.append(hit[index])
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    expected = stepped(tmp_path / "a", STRATEGIES[strategy], twice, hit_twice)
    for name, value in stepped(tmp_path / "b", STRATEGIES[strategy], once, hit_once).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_rows_without_weight_are_predicted_and_teach_nothing(tmp_path: Path) -> None:
    log = make_log(400)
    weight = (np.random.default_rng(1).random(400) < 0.6).astype(float)
    read: dict[str, Any] = {}
    for name, user in {"a": log.column("user").to_numpy(), "b": 39 - log.column("user").to_numpy()}.items():
        # Other users where the weight is 0.
        users = pa.array(np.where(weight > 0, log.column("user").to_numpy(), user))
        rows = weighted(log.set_column(log.column_names.index("user"), "user", users), weight)
        config = experiment_dict(write_log(tmp_path / name, rows), str(tmp_path / f"{name}-run"))
        config["stream"]["source"]["weight"] = "weight"
        config["models"] = {"vm": {**config["models"]["vm"], "transfer": [], "control": False}}
        train(load(tmp_path, config))
        read[name] = pa.concat_tables(predictions(config["run_dir"], "vm").values())
    kept = pa.array(weight > 0)
    assert read["a"].num_rows == 400
    assert read["a"].filter(kept).equals(read["b"].filter(kept))
    assert not read["a"].equals(read["b"])


def test_a_bad_weight_is_named(tmp_path: Path) -> None:
    weight = np.ones(60)
    weight[7] = -1
    config = experiment_dict(write_log(tmp_path / "log", weighted(make_log(60), weight)), str(tmp_path / "run"))
    config["stream"]["source"]["weight"] = "weight"
    with pytest.raises(exfm.ConfigError, match=r"row 7: weight: a weight is a finite number, 0 or more; given: -1"):
        train(load(tmp_path, config))


def test_blank_rows_have_weights_where_rows_have() -> None:
    schema = exfm.schema.FeatureSchema(
        weight="w", features=(exfm.schema.DenseFeature(name="price"),), labels=(exfm.schema.Label(name="click"),)
    )
    assert {name: weight.tolist() for name, weight in blank_batch(schema, 2).weights.items()} == {
        "": [1, 1],
        "click": [1, 1],
    }
    assert not blank_batch(schema.model_copy(update={"weight": ""}), 2).weights


# ---- figures -------------------------------------------------------------------------------------------------------


def repeated(rows: pa.Table, task: str, times: np.ndarray[Any, Any]) -> list[Any]:
    """Repeats predictions, labels and groups as often as numbers say."""
    names = (f"prediction_{task}", f"label_{task}", "group")
    return [np.repeat(rows.column(name).to_numpy(), times) for name in names]


def test_figures_are_those_of_rows_that_are_repeated(tmp_path: Path) -> None:
    log = make_log(600)
    weight = np.random.default_rng(2).integers(0, 4, 600)
    config = experiment_dict(write_log(tmp_path / "log", weighted(log, weight)), str(tmp_path / "run"))
    config["stream"]["source"]["weight"] = "weight"
    config["evaluation"]["skip"] = 0
    results = exfm.run(load(tmp_path, config))
    rows = pa.concat_tables(predictions(config["run_dir"], "vm").values())
    assert rows.column("weight_click").to_pylist() == weight.tolist()
    probability, label, _ = repeated(rows, "click", weight)
    expected = Moments.from_predictions(probability, label > 0.5)
    scores = results["models"]["vm"]["tasks"]["click"]
    for name in ("ne", "calibration", "base_rate", "log_loss"):
        assert scores[name] == pytest.approx(getattr(expected, name), rel=1e-6), name
    histogram = LogitHistogram()
    histogram.add(probability, label > 0.5)
    recalibration = histogram.recalibration()
    assert recalibration is not None and scores["ne_recalibrated"] == pytest.approx(recalibration.ne, rel=1e-6)
    assert scores["auc"] == pytest.approx(auc(probability, label > 0.5), abs=1e-4)
    assert scores["examples"] == 600
    losses = PairedLosses()
    control = pa.concat_tables(predictions(config["run_dir"], "vm.control").values())
    control_probability, _, group = repeated(control, "click", weight)
    losses.add(group, label > 0.5, log_losses(probability, label > 0.5), log_losses(control_probability, label > 0.5))
    (gain,) = results["gains"]
    assert gain["ne_gain_percent"] == pytest.approx(losses.gain, rel=1e-6)
    assert gain["interval95"] == pytest.approx(losses.interval95(100, 0), rel=1e-6)
    assert gain["examples"] == 600


def test_a_sampling_rate_moves_each_logit_by_its_logarithm(tmp_path: Path) -> None:
    log = make_log(600)
    logits: dict[float, dict[str, npt.NDArray[np.float64]]] = {}
    scores: dict[str, Any] = {}
    for rate in (1.0, 0.25):
        config = experiment_dict(write_log(tmp_path / f"{rate}", log), str(tmp_path / f"{rate}-run"))
        config["models"]["vm"]["transfer"] = [
            {"name": "auxiliary_head", "teacher": "fm"},
            {"name": "student_adapter", "teacher": "fm"},
        ]
        config["stream"]["source"]["labels"][0]["sampling_rate"] = rate
        config["evaluation"]["skip"] = 0.0
        scores = exfm.run(load(tmp_path, config))["models"]["vm"]["tasks"]["click"]
        logits[rate] = {}
        for model in ("fm", "vm", "vm.control"):
            # Not the first window, because the first batch is predicted before the bias of its labels is set.
            rows = pa.concat_tables(list(predictions(config["run_dir"], model).values())[1:])
            probability = rows.column("prediction_click").to_numpy().astype(np.float64)
            logits[rate][model] = np.log(probability) - np.log1p(-probability)
            weight = rows.column("weight_click").to_numpy() if rate < 1 else np.ones(rows.num_rows)
            click = rows.column("label_click").to_numpy()
            assert weight.tolist() == np.where(click == 1, 1.0, 1 / rate).tolist()
    for model, plain in logits[1.0].items():
        assert logits[0.25][model] == pytest.approx(plain + np.log(0.25), abs=2e-3), model
    # Figures are of all traffic: each negative stands for four.
    rows = pa.concat_tables(predictions(str(tmp_path / "0.25-run"), "vm").values())
    probability, label, _ = repeated(rows, "click", rows.column("weight_click").to_numpy().astype(int))
    expected = Moments.from_predictions(probability, label > 0.5)
    for name in ("ne", "calibration", "base_rate", "log_loss"):
        assert scores[name] == pytest.approx(getattr(expected, name), rel=1e-6), name
