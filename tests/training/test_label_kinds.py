"""Numbers and classes as labels, beside a binary label: learned, taught, scored, stored and served."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import exfm
from exfm.diagnosis.diagnose import diagnose
from exfm.evaluation.intervals import match
from exfm.experiment.run import build_plan
from exfm.reporting.result_table import result_table
from exfm.scheduling.identity import open_run
from exfm.serving.export import Form, export
from exfm.serving.predict import predict
from exfm.serving.predictor import load as load_export
from exfm.serving.snapshot_list import list_snapshots
from exfm.storage.commits import CommitLog
from exfm.supervision.store import Store, open_store
from exfm.training.loop import StreamLoop
from tests.training.labelled_logs import ACTION, WATCH, labelled_experiment, labelled_log
from tests.training.logs import load, predictions, supervision, write_log


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: Any) -> tuple[exfm.Experiment, dict[str, Any]]:
    """A run of all kinds of label in one model; the teacher's head of the watch time is another than the student's."""
    folder = tmp_path_factory.mktemp("mixed")
    path = write_log(folder / "log", labelled_log(1_200))
    config = labelled_experiment(path, str(folder / "run"), WATCH, ACTION)
    config["evaluation"]["metrics"] = [{"name": name} for name in ("rmse", "accuracy")] + [{"name": "top_k", "k": 2}]
    config["models"]["vm"]["heads"] = {"watch": {"name": "log_normal"}}
    config["models"]["vm"]["gate"] = {"min_labels": 20, "windows": 2, "ne_tolerance": 0.5, "compared_rows": 100}
    experiment = load(folder, config)
    return experiment, exfm.run(experiment)


def columns(experiment: exfm.Experiment, model: str, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions, labels and example ids of the scored windows of a model, where labels are known."""
    windows = predictions(experiment.run_dir, model)
    table = pa.concat_tables([windows[index] for index in sorted(windows) if index >= 2])
    names = [name for name in table.column_names if name.partition("/")[0] == f"prediction_{task}"]
    predicted = np.stack([table.column(name).to_numpy() for name in names], axis=1).astype(np.float64)
    label = table.column(f"label_{task}").to_numpy().astype(np.float64)
    is_known = ~np.isnan(label)
    return predicted[is_known].squeeze(), label[is_known], table.column("example_id").to_numpy()[is_known]


def loss(task: str, predicted: np.ndarray, label: np.ndarray) -> np.ndarray:
    if task == "watch":
        return (predicted - label) ** 2
    return -np.log(predicted[np.arange(label.size), label.astype(int)])


@pytest.mark.parametrize("model", ["fm", "vm", "vm.control"])
def test_ne_is_the_loss_over_that_of_the_best_constant(mixed: Any, model: str) -> None:
    experiment, results = mixed
    figures = results["models"][model]["tasks"]
    predicted, label, _ = columns(experiment, model, "watch")
    watch = figures["watch"]
    assert watch["kind"] == "regression" and watch["examples"] == label.size
    assert watch["ne"] == pytest.approx(((predicted - label) ** 2).mean() / label.var(), rel=1e-6)
    assert watch["baseline"] == pytest.approx(label.var(), rel=1e-6)
    assert watch["mean_label"] == pytest.approx(label.mean(), rel=1e-9)
    assert watch["calibration"] == pytest.approx(predicted.mean() / label.mean(), rel=1e-6)
    assert watch["metrics"] == {"rmse": pytest.approx(((predicted - label) ** 2).mean() ** 0.5, rel=1e-6)}
    assert watch["auc"] is watch["gauc"] is watch["base_rate"] is watch["ne_recalibrated"] is None
    predicted, label, _ = columns(experiment, model, "action")
    shares = np.bincount(label.astype(int)) / label.size
    action = figures["action"]
    assert action["ne"] == pytest.approx(loss("action", predicted, label).mean() / -(shares @ np.log(shares)), rel=1e-6)
    assert action["metrics"]["accuracy"] == action["accuracy"] == (predicted.argmax(axis=1) == label).mean()
    assert set(action["metrics"]) == {"accuracy", "top_2"}
    assert "kind" not in figures["click"] and "metrics" not in figures["click"]
    for task in ("watch", "action"):
        assert set(figures[task]["windows"][3]) == {"window", "start", "examples", "ne", "metrics"}


def test_a_model_of_all_kinds_learns_each(mixed: Any) -> None:
    figures = mixed[1]["models"]["fm"]["tasks"]
    for task in ("click", "watch", "action"):
        later = [window["ne"] for window in figures[task]["windows"][3:]]
        assert max(later) < min(1.0, figures[task]["windows"][0]["ne"]), task


def test_gains_compare_losses_of_the_same_examples(mixed: Any) -> None:
    experiment, results = mixed
    for gain in results["gains"]:
        task = gain["task"]
        if task == "click":
            continue
        means = []
        control_predicted, label, control_ids = columns(experiment, "vm.control", task)
        for model in ("vm", "fm"):
            predicted, _, ids = columns(experiment, model, task)
            index, control_index = match(ids, control_ids)
            mine = loss(task, predicted[index], label[control_index]).mean()
            other = loss(task, control_predicted[control_index], label[control_index]).mean()
            means.append(100 * (1 - mine / other))
        assert gain["ne_gain_percent"] == pytest.approx(means[0], rel=1e-5)
        assert gain["teacher_ne_gain_percent"] == pytest.approx(means[1], rel=1e-5)
        assert gain["gain_share"] == pytest.approx(means[0] / means[1], rel=1e-5)
        low, high = gain["interval95"]
        assert low < gain["ne_gain_percent"] < high


def test_supervision_is_the_teachers_prediction(mixed: Any) -> None:
    experiment, results = mixed
    stored = pa.concat_tables(supervision(experiment.run_dir, "fm").values())
    predicted = pa.concat_tables(predictions(experiment.run_dir, "fm").values())
    for name in ("prediction_watch", *(f"prediction_action/{number}" for number in range(4))):
        values, valid = stored.column(name), stored.column(name).is_valid()
        assert 0 < len(values) - valid.to_numpy().sum() <= 64  # before the first labels it teaches nothing
        assert values.filter(valid).equals(predicted.column(name).filter(valid)), name
    metadata = stored.schema.metadata
    assert metadata[b"exfm.kind.watch"] == b"value" and metadata[b"exfm.kind.action"] == b"probabilities"
    for entry in results["supervision"]["fm"]["vm"]["soft_labels"]:
        scored = results["models"]["fm"]["tasks"][entry["task"]]
        assert entry["ne"] == pytest.approx(scored["ne"], rel=1e-5)
        assert entry["calibration"] == pytest.approx(scored["calibration"], rel=1e-5)


def test_pages_and_tables_name_the_figures_of_a_kind(mixed: Any) -> None:
    experiment, results = mixed
    page = Path(experiment.run_dir, "report.html").read_text()
    assert "Figures of watch, a number" in page and "Figures of action, a class" in page
    assert "Further figures of action" in page and "1 &minus; R&sup2;" in page
    console = Console(width=250, file=StringIO(), record=True)
    console.print(result_table(results))
    assert re.search(r"base rate +mean label +rmse +accuracy +top_2 +NE gain", console.export_text())
    left_out = diagnose(Store(experiment.run_dir, {}), results, Path(experiment.run_dir, "config.yaml").read_text())[
        "left_out"
    ]
    assert "vm, watch: it has a regression label, and the measures are those of probabilities" in left_out


def test_the_gate_reads_what_it_has_written(mixed: Any) -> None:
    experiment, _ = mixed
    counters = CommitLog(Store(experiment.run_dir, {}).workspace).load("train", "vm", 5).counters
    assert set(counters["compared"]["tasks"]) == {"click", "watch", "action"}
    assert len(counters["prequential"]["action"]["class_counts"]) == 4
    listed = list_snapshots(Store(experiment.run_dir, {}), "vm")[-1]
    window = predictions(experiment.run_dir, "vm")[5]
    label = window.column("label_watch").to_numpy()
    is_known = ~np.isnan(label)
    error = (window.column("prediction_watch").to_numpy()[is_known].astype(np.float64) - label[is_known]) ** 2
    assert listed.tasks["watch"]["ne"] == pytest.approx(error.mean() / label[is_known].var(), rel=1e-5)


def test_an_export_predicts_what_exfm_predict_does(mixed: Any, tmp_path: Path) -> None:
    experiment, _ = mixed
    described = export(experiment, "vm", str(tmp_path / "export"), Form(compiled=False), compute_figures=False)
    assert [(spec.holds, spec.shape) for spec in described.outputs] == [
        ("probability", ("B",)), ("value", ("B",)), ("probabilities", ("B", 4))
    ]  # fmt: skip
    log = labelled_log(1_200).combine_chunks().to_batches()[0]
    served = load_export(str(tmp_path / "export"))
    rows = served.predict(log)
    predict(experiment, "vm", str(tmp_path / "rows.parquet"))
    table = pq.read_table(tmp_path / "rows.parquet")
    expected = np.stack([table.column(f"prediction_action/{number}").to_numpy() for number in range(4)], axis=1)
    np.testing.assert_allclose(rows["watch"], table.column("prediction_watch").to_numpy(), rtol=1e-5)
    np.testing.assert_allclose(rows["action"], expected, atol=1e-5)
    assert (rows["watch"] > 0).all() and table.schema.metadata[b"exfm.kind.watch"] == b"value"
    assert {name: value.shape for name, value in served.predict(log.slice(0, 0)).items()} == {
        "click": (0,), "watch": (0,), "action": (0, 4)
    }  # fmt: skip
    card = (tmp_path / "export" / "MODEL_CARD.md").read_text()
    assert "prediction (value, or probability" in card
    # What a model predicts teaches another, as predictions from elsewhere do.
    predict(experiment, "fm", str(tmp_path / "taught.parquet"))
    config = labelled_experiment(experiment.config.stream.source.config.path, str(tmp_path / "run"), WATCH)
    del config["models"]["fm"]
    config["models"]["vm"] |= {"transfer": [{"name": "direct", "teacher": "vendor"}], "tasks": ["watch"]}
    column = {"column": "prediction_watch", "kind": "value"}
    config["teachers"] = {"vendor": {"path": str(tmp_path / "taught.parquet"), "predictions": {"watch": column}}}
    results = exfm.run(load(tmp_path, config), windows=3)
    (entry,) = results["supervision"]["vendor"]["vm"]["soft_labels"]
    assert entry["ne"] < 0.8  # it has seen all labels
    (gain,) = results["gains"]
    assert gain["teacher_ne_gain_percent"] > 10


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log", labelled_log(400))
    read: dict[str, pa.Table] = {}
    for name, stops in {"whole": (None,), "resumed": (3, None)}.items():
        config = labelled_experiment(path, str(tmp_path / name), WATCH, ACTION)
        config["models"]["vm"] |= {"control": False, "transfer": [{"name": "student_adapter", "teacher": "fm"}]}
        experiment = load(tmp_path, config)
        for stop in stops:
            store, plan = open_store(experiment), build_plan(experiment)
            open_run(experiment, store)
            StreamLoop(experiment, store, plan, lambda _: None, ["fm", "vm"], []).advance(first_windows=stop)
        read[name] = pa.concat_tables(predictions(config["run_dir"], "vm").values())
    assert read["resumed"].num_rows == 400 and read["resumed"].equals(read["whole"])
