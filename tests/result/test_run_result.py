"""A run's result is the content of results.json, and gives frames, plots, models as modules, and comparisons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib.figure import Figure

import exfm
from exfm import extras
from exfm.result.run_result import RunResult
from exfm.serving.predict import predict
from tests.training.logs import experiment_dict, make_log, stream_rows, write_log


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunResult]:
    """Runs an experiment that is a dictionary, and again with a wider student of another name of folder."""
    folder = tmp_path_factory.mktemp("results")
    log = make_log(500)
    names = pa.array([f"user-{user}" for user in log["user"].to_pylist()])
    log = log.set_column(log.schema.get_field_index("user"), "user", names)
    results: dict[str, RunResult] = {}
    for name, width in (("narrow", 8), ("wide", 16)):
        config = experiment_dict(write_log(folder / "log", log), str(folder / name))
        config["stream"] = {**config["stream"], "window": "2d"}
        config["models"]["vm"] |= {"embedding_dim": width, "where": {"item": {"bucket": [0, 1], "of": 3}}}
        results[name] = exfm.run(exfm.load_experiment(config))
    return results


@pytest.fixture(scope="module")
def reopened(runs: dict[str, RunResult]) -> RunResult:
    return exfm.open_run(Path(runs["narrow"].run_dir))


def test_it_is_the_content_of_results_json(runs: dict[str, RunResult], reopened: RunResult) -> None:
    written = json.loads(Path(runs["narrow"].run_dir, "results.json").read_text())
    assert written == json.loads(json.dumps(runs["narrow"])) == reopened
    assert reopened.models["vm"] == written["models"]["vm"] and list(reopened.models) == list(written["models"])


def test_an_unfinished_run_and_an_unknown_model_are_errors(reopened: RunResult, tmp_path: Path) -> None:
    with pytest.raises(exfm.ConfigError, match=r"no results\.json and no config\.yaml here; `exfm run`"):
        exfm.open_run(tmp_path)
    with pytest.raises(exfm.ConfigError, match=r"no model 'vmm'.*Did you mean 'vm'"):
        reopened.models["vmm"]


def test_frames_have_every_window_and_the_gains(reopened: RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = reopened.to_frame()
    assert frame.index.names == ["model", "task", "window"]
    for name, model in reopened["models"].items():
        windows = model["tasks"]["click"]["windows"]
        assert frame.loc[name, "click"]["ne"].tolist() == [window["ne"] for window in windows]
    assert reopened.models["fm"].to_frame()["auc"].tolist() == frame.loc["fm", "click"]["auc"].tolist()
    overall = reopened.to_frame(windows=False)
    (gain,) = reopened["gains"]
    assert overall.loc[("vm", "click"), ["ne_gain_percent", "gain_low", "gain_high"]].tolist() == [
        gain["ne_gain_percent"],
        *gain["interval95"],
    ]

    def no_pandas(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(extras, "import_module", no_pandas)
    with pytest.raises(exfm.ConfigError, match=r"pip install 'exfm\[pandas\]'"):
        reopened.to_frame()


def test_plots_have_a_line_per_model_and_the_gain(reopened: RunResult) -> None:
    figure = reopened.plot()
    over_time, gains = figure.axes
    assert isinstance(figure, Figure) and {*reopened["models"]} <= {line.get_label() for line in over_time.lines}
    assert [tick.get_text() for tick in gains.get_yticklabels()] == ["vm over vm.control"]
    drawn = [np.asarray(line.get_xdata()).tolist() for line in gains.lines]
    assert reopened["gains"][0]["interval95"] in drawn
    with pytest.raises(exfm.ConfigError, match="no model predicts 'clik'"):
        reopened.plot("clik")


def test_it_is_short_on_screen_and_a_table_in_a_notebook(reopened: RunResult) -> None:
    for shown in (reopened, reopened.models, reopened.models["vm"], reopened.experiment):
        assert len(repr(shown)) < 300 and "\n" not in repr(shown)
    page = reopened._repr_html_()
    assert page.count("<tr>") >= len(reopened["models"]) + 1 and "vm.control" in page and "report.html" in page
    assert "&lt;" in RunResult({**reopened, "notes": ["<script>"]}, "", lambda: reopened.experiment)._repr_html_()


def test_a_loaded_model_predicts_rows_like_the_command(reopened: RunResult, tmp_path: Path) -> None:
    out = tmp_path / "vm.parquet"
    predict(reopened.experiment, "vm", str(out))
    expected = pq.read_table(out)
    rows = stream_rows(reopened.experiment)
    rows = rows.filter(pa.compute.is_in(rows["example_id"], expected["example_id"])).combine_chunks()
    model = reopened.models["vm"].load()
    assert isinstance(model, torch.nn.Module) and not any(module.training for module in model.modules())
    for form in (rows, rows.to_batches()[0], rows.to_pandas(), rows.to_pylist()):
        predicted = model.predict(form)["click"]
        np.testing.assert_allclose(predicted, expected["prediction_click"].to_numpy(), rtol=0, atol=1e-6)
    encoded = model(model.encode(rows.to_pandas()))["click"]
    assert np.array_equal(encoded.numpy(), predicted)
    with pytest.raises(exfm.ConfigError, match="item: the column is missing"):
        model.predict(rows.drop_columns(["item"]))
    early = reopened.models["vm"].load(at="0")
    assert early.snapshot == 0 and not np.array_equal(early.predict(rows)["click"], predicted)


def test_a_batch_has_the_rows_that_the_model_sees_and_gradients_reach_its_tables(reopened: RunResult) -> None:
    model, batch = reopened.models["vm"].batch(40)
    stored = pq.ParquetDataset(f"{reopened.run_dir}/predictions/vm").read().slice(0, 40)
    assert batch.labels["click"].tolist() == stored["label_click"].to_pylist()
    assert reopened.models["vm"].rows(40)["example_id"].to_pylist() == stored["example_id"].to_pylist()
    later = reopened.models["vm"].rows(5, window=1)["event_time"].cast(pa.int64()).to_pylist()
    assert min(later) >= min(stored["example_id"].to_pylist()) and len(later) == 5
    tokens_BND, _ = model.network.featurizer(batch)
    assert tokens_BND.shape[0] == 40
    model.requires_grad_()
    torch.nn.functional.binary_cross_entropy(model(batch)["click"], batch.labels["click"]).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if "table_" in name}
    assert gradients and all(gradient is not None and gradient.any() for gradient in gradients.values())
    with pytest.raises(exfm.ConfigError, match="windows 0 to 2; given: window=9"):
        reopened.models["vm"].rows(window=9)


def test_runs_are_compared_by_config_figures_and_common_examples(runs: dict[str, RunResult]) -> None:
    comparison = exfm.compare([runs["narrow"].run_dir, runs["wide"]])
    assert [run["label"] for run in comparison.runs] == ["narrow", "wide"]
    assert comparison.differences == [{"key": "models.vm.embedding_dim", "values": {"narrow": 8, "wide": 16}}]
    by_model = {gain["model"]: gain for gain in comparison.gains}
    # The FM is the same model in both runs, and its predictions are equal bit for bit.
    assert by_model["fm"]["ne_gain_percent"] == 0 and by_model["fm"]["interval95"] == [0, 0]
    narrow, wide = (runs[name]["models"]["vm"]["tasks"]["click"] for name in ("narrow", "wide"))
    assert by_model["vm"]["examples"] == wide["examples"] == narrow["examples"]
    expected = 100 * (narrow["ne"] - wide["ne"]) / narrow["ne"]
    assert by_model["vm"]["ne_gain_percent"] == pytest.approx(expected, rel=1e-6)
    low, high = by_model["vm"]["interval95"]
    assert low < expected < high
    frame = comparison.to_frame()
    assert frame.loc[("wide", "vm", "click"), "models.vm.embedding_dim"] == 16
    assert comparison.gains_frame().loc[("wide", "vm", "click"), "gain_low"] == low
    assert json.loads(json.dumps(comparison.as_dict()))["runs"] == comparison.runs
    assert [tick.get_text() for tick in comparison.plot().axes[1].get_yticklabels()] == ["narrow, vm", "wide, vm"]
    assert "models.vm.embedding_dim" in repr(comparison) and "<td>16</td>" in comparison._repr_html_()


def test_other_examples_of_equal_ids_are_not_compared(runs: dict[str, RunResult], tmp_path: Path) -> None:
    source = runs["narrow"].experiment.config.stream.source.config.path
    log = pq.read_table(source)
    other = log.set_column(log.schema.get_field_index("click"), "click", pa.compute.subtract(1, log["click"]))
    config = experiment_dict(write_log(tmp_path / "log", other), str(tmp_path / "other"))
    config["stream"]["window"] = "2d"
    del config["models"]["fm"], config["models"]["vm"]["transfer"]
    config["models"]["vm"]["control"] = False
    result = exfm.run(exfm.load_experiment(config))
    (gain,) = exfm.compare([runs["narrow"], result]).gains
    assert gain["model"] == "vm" and gain["ne_gain_percent"] is None and "labels of" in gain["note"]
    with pytest.raises(exfm.ConfigError, match="named twice"):
        exfm.compare([result, result.run_dir])
    with pytest.raises(exfm.ConfigError, match="a list of two runs"):
        exfm.compare([result])
