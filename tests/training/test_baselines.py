"""Runs whose models are measured against named models: on the examples that both predicted, and no others."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from sklearn.metrics import log_loss

import exfm
from exfm.reporting.result_table import comparison_table, result_table
from exfm.tracking.run_reader import RunReader
from tests.training.logs import experiment_dict, load, make_log, predictions, write_log

Run = tuple[str, dict[str, Any]]


def config_of(folder: Path) -> dict[str, Any]:
    """Two equal arms with a control between them, and models of the students' shape on all and on other traffic."""
    config = experiment_dict(write_log(folder / "log", make_log()), str(folder / "run"))
    models = config["models"]
    models["vm"]["where"] = {"user": {"bucket": 0, "of": 2}}
    models["alone"] = {key: value for key, value in models["vm"].items() if key not in ("where", "transfer", "control")}
    models["others"] = {**models["alone"], "where": {"user": {"bucket": 1, "of": 2}}}
    for name, control in (("twin", True), ("shared", "vm.control"), ("wide", "alone"), ("apart", "others")):
        models[name] = {**copy.deepcopy(models["vm"]), "control": control}
    pairs = (
        ("vm", "alone"),
        ("vm", "vm.control"),
        ("alone", "vm"),
        ("fm", "others"),
        ("vm", "others"),
        ("vm", "alone"),
    )
    config["compare"] = [{"model": model, "baseline": baseline} for model, baseline in pairs]
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The folder of a run and its results."""
    folder = tmp_path_factory.mktemp("baselines")
    experiment = load(folder, config_of(folder))
    return experiment.run_dir, exfm.run(experiment)


def gain_of(results: dict[str, Any], model: str) -> dict[str, Any]:
    (gain,) = [entry for entry in results["gains"] if entry["model"] == model]
    return dict(gain)


def scored(run_dir: str, model: str) -> pa.Table:
    """A model's predictions in the windows that the overall figures cover: of six days all but the first two."""
    by_window = predictions(run_dir, model)
    return pa.concat_tables([by_window[index] for index in sorted(by_window)[2:]])


def losses(table: pa.Table, ids: np.ndarray) -> float:
    kept = np.isin(table.column("example_id").to_numpy(), ids)
    label, probability = (table.column(name).to_numpy()[kept] for name in ("label_click", "prediction_click"))
    return float(log_loss(label, probability.astype(float), labels=[0, 1]))


def test_a_shared_control_is_as_good_as_an_own_one(run: Run) -> None:
    _, results = run
    assert {"vm.control", "twin.control"} < results["models"].keys()
    assert not {"shared.control", "wide.control", "apart.control"} & results["models"].keys()
    twin_gain, shared_gain = gain_of(results, "twin"), gain_of(results, "shared")
    assert (twin_gain.pop("model"), shared_gain.pop("model")) == ("twin", "shared")
    assert (twin_gain.pop("control"), shared_gain.pop("control")) == ("twin.control", "vm.control")
    assert twin_gain == shared_gain and twin_gain["ne_gain_percent"] != 0


def test_a_control_that_sees_more_is_compared_on_the_models_examples(run: Run) -> None:
    run_dir, results = run
    gain = gain_of(results, "wide")
    model, control = scored(run_dir, "wide"), scored(run_dir, "alone")
    ids = model.column("example_id").to_numpy()
    assert control.num_rows > model.num_rows == gain["examples"]
    assert gain["ne_gain_percent"] == pytest.approx(100 * (1 - losses(model, ids) / losses(control, ids)))
    teacher = scored(run_dir, "fm")
    assert gain["teacher_ne_gain_percent"] == pytest.approx(100 * (1 - losses(teacher, ids) / losses(control, ids)))
    assert gain["interval95"][0] < gain["ne_gain_percent"] < gain["interval95"][1]


def test_models_without_a_common_example_are_said_not_to_be_compared(run: Run) -> None:
    _, results = run
    gain = gain_of(results, "apart")
    assert (gain["examples"], gain["ne_gain_percent"], gain["interval95"]) == (0, None, None)
    notes = [note for note in results["notes"] if "in common" in note]
    assert [note.split(" predicted no example of click in common")[0] for note in notes] == [
        "apart and others", "vm and others"
    ]  # fmt: skip


def test_the_table_says_which_models_are_the_controls(run: Run) -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(result_table(run[1]))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert {line.rstrip() for line in lines if line.startswith("NE gain of")} == {
        "NE gain of shared: over vm.control", "NE gain of wide: over alone", "NE gain of apart: over others"
    }  # fmt: skip


def compared(results: dict[str, Any], model: str, baseline: str) -> dict[str, Any]:
    (entry,) = [e for e in results["comparisons"] if (e["model"], e["baseline"]) == (model, baseline)]
    return dict(entry)


def test_pairs_are_compared_on_common_examples(run: Run) -> None:
    run_dir, results = run
    assert len(results["comparisons"]) == 5, "a pair that is named twice is compared once"
    for model, baseline in (("vm", "alone"), ("fm", "others"), ("vm", "vm.control")):
        tables = [scored(run_dir, name) for name in (model, baseline)]
        ids = np.intersect1d(*(table.column("example_id").to_numpy() for table in tables))
        label = (
            tables[0].filter(pa.array(np.isin(tables[0].column("example_id").to_numpy(), ids))).column("label_click")
        )
        rate = float(np.mean(label.to_numpy()))
        entropy = log_loss([1, 0], [rate, rate], sample_weight=[rate, 1 - rate])
        entry = compared(results, model, baseline)
        assert entry["examples"] == ids.size > 0
        assert [entry["ne"], entry["baseline_ne"]] == pytest.approx([losses(table, ids) / entropy for table in tables])
        assert entry["ne_gain_percent"] == pytest.approx(100 * (1 - entry["ne"] / entry["baseline_ne"]))
        assert entry["interval95"][0] < entry["ne_gain_percent"] < entry["interval95"][1]


def test_a_pair_turned_round_has_the_same_figures_turned_round(run: Run) -> None:
    there, back = compared(run[1], "vm", "alone"), compared(run[1], "alone", "vm")
    assert (there["ne"], there["baseline_ne"], there["examples"]) == (back["baseline_ne"], back["ne"], back["examples"])
    assert (1 - there["ne_gain_percent"] / 100) * (1 - back["ne_gain_percent"] / 100) == pytest.approx(1)


def test_a_pair_of_a_model_and_its_control_is_the_models_gain(run: Run) -> None:
    gain, entry = gain_of(run[1], "vm"), compared(run[1], "vm", "vm.control")
    assert all(gain[key] == entry[key] for key in ("examples", "ne_gain_percent", "interval95"))


def test_pairs_are_shown_and_those_without_an_example_too(run: Run) -> None:
    run_dir, results = run
    console = Console(file=io.StringIO(), width=120)
    console.print(comparison_table(results))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "no common example" in shown and f"{compared(results, 'vm', 'alone')['ne']:.4f}" in shown
    report = (Path(run_dir) / "report.html").read_text()
    assert "Compared with other models" in report and report.count("no common example") == 1
    assert comparison_table(results | {"comparisons": []}) is None


def test_trackers_are_told_the_gain_over_a_named_control(run: Run) -> None:
    run_dir, results = run
    reader = RunReader(run_dir)
    models = {model.name: model for model in reader.models()}
    assert models.keys() == results["models"].keys()
    windows: dict[str, dict[Any, dict[str, float]]] = {}
    for name in ("wide", "apart", "shared", "twin"):
        events = reader.windows(models[name], -1, scored=True)
        windows[name] = {event.window: event.figures() for event in events}
    tables = {name: predictions(run_dir, name) for name in ("wide", "alone")}
    for window, values in windows["wide"].items():
        model, control = (tables[name][window.index] for name in ("wide", "alone"))
        ids = model.column("example_id").to_numpy()
        expected = 100 * (1 - losses(model, ids) / losses(control, ids))
        assert values["click/ne_gain_percent"] == pytest.approx(expected)
    assert len(windows["wide"]) == len(windows["apart"]) == 6
    assert all("click/ne" in values and "click/ne_gain_percent" not in values for values in windows["apart"].values())
    gains = [[values["click/ne_gain_percent"] for values in windows[name].values()] for name in ("shared", "twin")]
    assert gains[0] == gains[1]


def test_a_run_that_is_through_takes_other_pairs(run: Run, tmp_path: Path) -> None:
    run_dir, results = run
    config = config_of(tmp_path)
    config["stream"]["source"]["path"] = str(Path(run_dir).parent / "log")
    config |= {"run_dir": run_dir, "compare": [{"model": "others", "baseline": "fm", "task": "click"}]}
    again = exfm.run(load(tmp_path, config))
    assert again["time"]["windows_done"] == 0 and again["gains"] == results["gains"]
    (entry,) = again["comparisons"]
    assert entry["ne"] == compared(results, "fm", "others")["baseline_ne"]
