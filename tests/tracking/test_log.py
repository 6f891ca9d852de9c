"""`exfm log`: TensorBoard and MLflow hold the figures of results.json, however often and whenever it is called."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import exfm
from exfm.experiment.run import build_plan
from exfm.scheduling.identity import open_run
from exfm.supervision.store import Store
from exfm.training.loop import StreamLoop

EXPERIMENT = """
name: logged
seed: 3
run_dir: {folder}/run
stream:
  source: {{name: synthetic_ads, days: 2, rows_per_day: 300, users: 30, ads: 40}}
  window: 12h
evaluation: {{replicates: 100, recall_at: [3]}}
models:
  fm:
    backbone: {{name: wukong, layers: 1}}
    tasks: [click]
  vm:
    backbone: {{name: dlrm}}
    tasks: [click]
    transfer:
      - {{name: direct, teacher: fm}}
    control: true
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logged")


@pytest.fixture(scope="module")
def experiment(folder: Path) -> exfm.Experiment:
    (folder / "logged.yaml").write_text(EXPERIMENT.format(folder=folder), encoding="utf-8")
    return exfm.load_experiment(str(folder / "logged.yaml"))


@pytest.fixture(scope="module")
def results(experiment: exfm.Experiment, folder: Path) -> dict[str, Any]:
    return exfm.run(experiment)


@pytest.fixture
def mlflow_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed: pip install 'exfm[mlflow]'")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    return "./mlruns"


def tracked_by(uri: str) -> Any:
    """Opens a folder with MLflow's client."""
    import mlflow

    return mlflow.MlflowClient(tracking_uri=Path(uri).absolute().as_uri())


def curves_of(logdir: Path, model: str) -> dict[str, list[tuple[int, float]]]:
    """Reads every scalar of a model with TensorBoard's reader, as steps and values."""
    loader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install 'exfm[tensorboard]'"
    )
    events = loader.EventAccumulator(str(logdir / "logged" / model), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def series(results: dict[str, Any], model: str, key: str) -> dict[int, float]:
    return {entry["window"]: entry[key] for entry in results["models"][model]["tasks"]["click"]["windows"]}


def expected(results: dict[str, Any], model: str) -> dict[str, dict[int, float]]:
    figures = {f"click/{key}": series(results, model, key) for key in ("ne", "auc", "bayes_ne")}
    if model == "vm":
        control = series(results, "vm.control", "ne")
        figures["click/ne_gain_percent"] = {
            window: 100 * (control[window] - ne) / control[window] for window, ne in figures["click/ne"].items()
        }
    return figures


def check(curves: dict[str, list[tuple[int, float]]], results: dict[str, Any], model: str) -> None:
    for key, values in expected(results, model).items():
        assert [step for step, _ in curves[key]] == sorted(values), key
        assert dict(curves[key]) == pytest.approx(values, rel=1e-5, abs=1e-5), key
    last = {key: values[-1][1] for key, values in curves.items()}
    assert last["run/click/ne"] == pytest.approx(results["models"][model]["tasks"]["click"]["ne"])
    scores = results["models"][model]["tasks"]["click"]
    assert last["run/click/recalibration/scale"] == pytest.approx(scores["recalibration"]["scale"], rel=1e-5)
    assert last["run/click/recall_at/3"] == pytest.approx(scores["recall_at"]["3"], rel=1e-5)
    assert last["run/parameters/sparse"] == pytest.approx(results["models"][model]["parameters"]["sparse"])
    assert last["run/flops_per_example"] == pytest.approx(results["models"][model]["flops_per_example"])
    if model == "vm":
        (gain,) = results["gains"]
        assert last["run/click/ne_gain_percent"] == pytest.approx(gain["ne_gain_percent"], rel=1e-5)
        assert last["run/click/ne_gain_percent_low"] == pytest.approx(gain["interval95"][0], rel=1e-5)
        assert last["run/click/ne_gain_percent_high"] == pytest.approx(gain["interval95"][1], rel=1e-5)
        rates = [value for _, value in curves["supervision/fm/hit_rate"]]
        assert rates[0] == 0 and set(rates[1:]) == {1.0}  # the first window is its first batch


def test_tensorboard_shows_the_results_once(
    results: dict[str, Any], folder: Path, exfm_cli: Callable[..., Any]
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'exfm[tensorboard]'")
    for _ in range(2):
        outcome = exfm_cli("log", str(folder / "run"), "--tensorboard", str(folder / "board"))
        assert outcome.status == 0, outcome.err
    for model in ("fm", "vm", "vm.control"):
        check(curves_of(folder / "board", model), results, model)


def test_mlflow_shows_the_results_once(
    results: dict[str, Any], folder: Path, exfm_cli: Callable[..., Any], mlflow_uri: str
) -> None:
    for _ in range(2):
        outcome = exfm_cli("log", str(folder / "run"), "--mlflow", mlflow_uri)
        assert outcome.status == 0, outcome.err
    client = tracked_by(mlflow_uri)
    home = client.get_experiment_by_name("logged").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([home])}
    assert sorted(runs) == ["fm", "vm", "vm.control"] and len(client.search_runs([home])) == 3
    for model, run in runs.items():
        history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        check({key: [(m.step, m.value) for m in metrics] for key, metrics in history.items()}, results, model)
        assert run.info.status == "FINISHED"
    assert runs["vm"].data.params["model.transfer"] == json.dumps(
        [{"name": "direct", "teacher": "fm", "fallback": [], "tasks": {}, "weight": 1.0, "temperature": 1.0}]
    )
    assert runs["vm.control"].data.params["model.transfer"] == "[]" and runs["fm"].data.params["seed"] == "3"


def test_a_run_under_way_is_logged_as_far_as_it_has_come(
    experiment: exfm.Experiment, folder: Path, exfm_cli: Callable[..., Any], mlflow_uri: str, tmp_path: Path
) -> None:
    again = exfm.load_experiment(str(folder / "logged.yaml"), [f"run_dir={tmp_path / 'run'}"])
    store = Store(again.run_dir)
    open_run(again, store)
    StreamLoop(again, store, build_plan(again), lambda _: None, train=["fm"]).advance()
    outcome = exfm_cli("log", str(tmp_path / "run"), "--mlflow", mlflow_uri)
    assert (outcome.status, "4 windows logged" in outcome.out, "under way" in outcome.out) == (0, True, True)
    exfm.run(again)
    outcome = exfm_cli("log", str(tmp_path / "run"), "--mlflow", mlflow_uri, "--follow")
    assert (outcome.status, "8 windows logged" in outcome.out, "complete" in outcome.out) == (0, True, True)
    client = tracked_by(mlflow_uri)
    (run,) = client.search_runs([client.get_experiment_by_name("logged").experiment_id], "tags.`exfm.model` = 'fm'")
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "click/ne")] == [0, 1, 2, 3]


def test_a_database_without_the_complete_mlflow_is_an_error(
    results: Any, folder: Path, exfm_cli: Callable[..., Any]
) -> None:
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed: pip install 'exfm[mlflow]'")
    if importlib.util.find_spec("sqlalchemy"):
        pytest.skip("the whole of MLflow is installed, which can use a database")
    outcome = exfm_cli("log", str(folder / "run"), "--mlflow", "sqlite:///mlflow.db")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert outcome.err.startswith("error: --mlflow: sqlite:///mlflow.db: ") and "pip install mlflow" in outcome.err


@pytest.mark.parametrize(("module", "option"), [("tensorboard", "--tensorboard"), ("mlflow", "--mlflow")])
def test_a_missing_package_is_named_with_its_extra(
    module: str, option: str, results: Any, folder: Path, exfm_cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    outcome = exfm_cli("log", str(folder / "run"), option, str(folder / "nowhere"))
    assert outcome.status == 2 and f"pip install 'exfm[{module}]'" in outcome.err


def test_a_log_without_destination_or_run_is_an_error(tmp_path: Path, exfm_cli: Callable[..., Any]) -> None:
    assert "say where to" in exfm_cli("log", str(tmp_path)).err
    outcome = exfm_cli("log", str(tmp_path), "--tensorboard", str(tmp_path))
    assert outcome.status == 2 and "no config.yaml here" in outcome.err
