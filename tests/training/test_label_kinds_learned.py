"""A step on labels that are not 0 or 1: unknown labels teach nothing, weights count as rows, late labels when known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

import exfm
from exfm.data.batch import Batch
from exfm.data.column_types import plain_rows
from exfm.data.decode import decode
from exfm.experiment.run import build_plan
from exfm.interfaces.local_shards import whole_tensors
from exfm.learning.trainer import Trainer
from exfm.modeling.labels import Labels
from exfm.transfer.build import teacher_specs
from exfm_plugins.heads.mse.head import MSE
from tests.training.labelled_logs import ACTION, WATCH, labelled_experiment, labelled_log
from tests.training.logs import load, predictions, train, write_log

ROWS = 32
STRATEGIES: dict[str, list[dict[str, Any]]] = {
    "labels alone": [],
    "direct": [{"name": "direct", "teacher": "fm"}],
    "auxiliary_head": [{"name": "auxiliary_head", "teacher": "fm"}],
    "student_adapter": [{"name": "student_adapter", "teacher": "fm", "head": "shared"}],
}
TASKS = ("click", "watch", "action")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: Any) -> exfm.Experiment:
    """An experiment of all kinds of label, with weights and SGD."""
    folder = tmp_path_factory.mktemp("learned")
    log = labelled_log(60).append_column("weight", pa.array(np.ones(60)))
    config = labelled_experiment(write_log(folder / "log", log), str(folder / "run"), WATCH, ACTION)
    config["stream"]["source"]["weight"] = "weight"
    sgd = {"dense": {"name": "sgd", "lr": 0.1}, "tables": {"name": "sgd", "lr": 0.1}}
    config["models"]["vm"] |= {"control": False, "optimizer": sgd}
    for number, transfer in enumerate(STRATEGIES.values()):
        config["models"][f"vm{number}"] = {**config["models"]["vm"], "transfer": transfer}
    return load(folder, config)


def rows_of(experiment: exfm.Experiment, log: pa.Table, weight: np.ndarray) -> Batch:
    weighted = log.append_column("weight", pa.array(weight))
    schema = experiment.schema
    return decode(plain_rows(weighted.combine_chunks().to_batches()[0], schema), schema)


def stepped(experiment: exfm.Experiment, strategy: str, batches: list[Batch]) -> dict[str, Tensor]:
    """Returns a student's weights, and its strategy's, after a step on each batch."""
    name = f"vm{list(STRATEGIES).index(strategy)}"
    arm = next(arm for arm in experiment.arms if arm.name == name)
    trainer = Trainer(arm, experiment.schema, teacher_specs(experiment), build_plan(experiment), 0)
    for batch in batches:
        number_B = torch.sin(batch.example_id.float())
        soft = {
            "click": number_B.sigmoid(),
            "watch": 15 + 10 * number_B,
            "action": torch.stack([number_B, 2 * number_B, 0 * number_B, -number_B], dim=1).softmax(1),
        }
        hit_B = torch.cos(7 * batch.example_id.float()) > -0.5
        output = exfm.transfer.TeacherOutput(soft, dict.fromkeys(TASKS, hit_B))
        narrowed = trainer.model.narrow(batch)
        trainer.step(narrowed, trainer.transfer.join({"fm": output}), TASKS)
    return {
        **whole_tensors(trainer.weights()),
        **{f"transfer {key}": value for key, value in trainer.transfer.state().items()},
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_weight_2_is_the_row_twice(experiment: exfm.Experiment, strategy: str) -> None:
    log, weight = labelled_log(3 * ROWS, unknown=0.3), np.random.default_rng(0).integers(0, 4, 3 * ROWS)
    once, twice = [], []
    for start in range(0, 3 * ROWS, ROWS):
        rows, weights = log.slice(start, ROWS), weight[start : start + ROWS]
        once.append(rows_of(experiment, rows, weights))
        index = torch.repeat_interleave(torch.arange(ROWS), torch.from_numpy(weights))
        twice.append(rows_of(experiment, rows, np.ones(ROWS)).select(index))
    expected = stepped(experiment, strategy, twice)
    for name, value in stepped(experiment, strategy, once).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("strategy", ["labels alone", "student_adapter"])
def test_what_is_in_rows_without_a_label_moves_no_head(experiment: exfm.Experiment, strategy: str) -> None:
    log = labelled_log(ROWS, unknown=0.4)
    unknown = torch.from_numpy(log.column("watch").is_null().to_numpy(zero_copy_only=False))
    batch = rows_of(experiment, log, np.ones(ROWS))
    other = rows_of(experiment, log, np.ones(ROWS))
    # Where one label of a task is missing all are, so that nothing of the row is learned; its features differ.
    for rows in (batch, other):
        rows.labels["click"][unknown] = rows.labels["action"][unknown] = torch.nan
    number = other.sparse.keys().index("user") * ROWS
    other.sparse.values()[number : number + ROWS][unknown] = 7
    if strategy == "labels alone":
        learned = [stepped(experiment, strategy, [rows]) for rows in (batch, other)]
        heads = [name for name in learned[0] if name.startswith(("heads.", "task_heads."))]
        assert any("task_heads.task_watch" in name for name in heads)
        for name in heads:
            assert torch.equal(learned[0][name], learned[1][name]), name
    else:
        # Of a batch without any label of a task its head and its adapter stay, bit for bit.
        blank = rows_of(experiment, log, np.ones(ROWS))
        blank.labels["watch"][:] = torch.nan
        before, after = stepped(experiment, strategy, [batch]), stepped(experiment, strategy, [batch, blank])
        for name in before:
            if ("watch" in name and "adapters" in name) or name.startswith("heads.task_watch"):
                assert torch.equal(before[name], after[name]), name


def test_the_loss_is_the_mean_over_the_known_labels() -> None:
    head = MSE(MSE.Config(scale=2.0), exfm.schema.Label(name="watch", kind="regression"))
    output, label_B = torch.randn(5), torch.tensor([3.0, torch.nan, 9.0, torch.nan, -1.0])
    labels = Labels.of_tasks({"watch": label_B}, ["watch"], {}, {"watch": head})
    is_known = ~label_B.isnan()
    torch.testing.assert_close(labels.loss("watch", output), ((output - label_B / 2)[is_known] ** 2).mean() / 2)
    assert labels.filled("watch").tolist() == [3.0, 9.0, 9.0, 9.0, -1.0]  # a known label, never 0


def test_late_labels_are_learned_when_they_come(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", labelled_log(900))
    config = labelled_experiment(path, str(tmp_path / "run"), {**WATCH, "delay": "2d"})
    config["models"] = {"vm": {**config["models"]["vm"], "transfer": [], "control": False}}
    experiment = load(tmp_path, config)
    train(experiment)
    by_window = predictions(config["run_dir"], "vm")
    # Untrained outputs, in no unit yet: the labels of the first window are known after the third.
    for index in range(3):
        assert np.abs(by_window[index].column("prediction_watch").to_numpy()).max() < 1
    later = by_window[4].column("prediction_watch").to_numpy()
    mean = np.nanmean(by_window[4].column("label_watch").to_numpy().astype(float))
    assert later.std() > 0 and 0.3 * mean < later.mean() < 2 * mean


def test_units_of_a_label_do_not_matter(tmp_path: Path) -> None:
    log = labelled_log(400)
    scaled: list[np.ndarray] = []
    clicks: list[pa.ChunkedArray] = []
    for factor in (1, 1024):  # a power of 2, so that no number rounds otherwise
        folder = tmp_path / str(factor)
        watch = pa.array(log.column("watch").to_numpy() * factor, from_pandas=True)
        table = log.set_column(log.column_names.index("watch"), "watch", watch)
        config = labelled_experiment(write_log(folder / "log", table), str(folder / "run"), WATCH)
        config["models"] = {"vm": {**config["models"]["vm"], "transfer": [], "control": False}}
        train(load(folder, config))
        rows = pa.concat_tables(predictions(config["run_dir"], "vm").values())
        # Without the first batch, which is predicted before there is a unit.
        scaled.append(rows.column("prediction_watch").to_numpy()[64:] / factor)
        clicks.append(rows.column("prediction_click"))
    np.testing.assert_allclose(scaled[1], scaled[0], rtol=1e-4)
    np.testing.assert_allclose(clicks[1].to_numpy(), clicks[0].to_numpy(), rtol=1e-5)
