"""The card of an export says what the run holds about the snapshot, and how the export is loaded."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import exfm
import exfm.serving
from exfm.serving.card import _code
from exfm.serving.export import Form, export
from exfm.supervision.store import Store
from tests.training.logs import experiment_dict, load, make_log, predictions, write_log

PROGRAM = Form(compiled=False)


def config_of(folder: Path) -> dict[str, Any]:
    config = experiment_dict("${oc.env:CARD_LOG}", str(folder / "run"), labels=("click", "buy"))
    config["evaluation"]["skip"] = 0.0
    vm = config["models"]["vm"]
    vm |= {"where": {"user": {"bucket": [0, 1], "of": 3}}, "gate": {}, "features": ["user", "item", "history"]}
    config["models"]["direct"] = {**vm, "control": "vm.control", "transfer": [{"name": "direct", "teacher": "fm"}]}
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("card")


@pytest.fixture(scope="module")
def experiment(folder: Path) -> exfm.Experiment:
    """A finished run, whose file reads the data's path from the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARD_LOG", write_log(folder / "secret-place", make_log(900)))
        experiment = load(folder, config_of(folder))
        exfm.run(experiment)
    return experiment


@pytest.fixture(scope="module")
def results(experiment: exfm.Experiment) -> Mapping[str, Any]:
    read: Mapping[str, Any] = Store(experiment.run_dir).workspace.read_json("results.json")
    return read


@pytest.fixture
def copied(experiment: exfm.Experiment, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The experiment over a copy of the run that a test may change."""
    shutil.copytree(folder / "run", tmp_path / "run")
    monkeypatch.setenv("CARD_LOG", str(folder / "secret-place"))
    return exfm.load_experiment(str(folder / "test.yaml"), [f"run_dir={tmp_path / 'run'}"])


def card_of(experiment: exfm.Experiment, model: str, out: Path, at: str = "latest") -> str:
    export(experiment, model, str(out), PROGRAM, at)
    return (out / "MODEL_CARD.md").read_text(encoding="utf-8")


def section(card: str, title: str) -> str:
    return card.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(text: str) -> dict[str, list[str]]:
    """Reads the rows of the tables of a section, by their first cell."""
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells}


def test_figures_gains_and_teachers_are_those_of_the_results(
    experiment: exfm.Experiment, results: Mapping[str, Any], tmp_path: Path
) -> None:
    card = card_of(experiment, "vm", tmp_path / "vm")
    figures = section(card, "Figures")
    assert figures.strip().startswith("From the run's results.json.")
    tables, gains = figures.split("Intervals of these")
    for task in ("click", "buy"):
        of_task = results["models"]["vm"]["tasks"][task]
        keys = ("ne", "ne_recalibrated", "auc", "gauc", "calibration")
        assert rows(tables)[task] == [
            str(of_task["examples"]), *(f"{of_task[key]:.4f}" for key in keys), f"{100 * of_task['base_rate']:.2f}%"
        ]  # fmt: skip
        (gain,) = (entry for entry in results["gains"] if entry["model"] == "vm" and entry["task"] == task)
        row = rows(gains)[task]
        assert row[0] == "vm.control" and row[3] == "fm"
        assert row[1].replace("\N{MINUS SIGN}", "-") == f"{gain['ne_gain_percent']:+.2f}%"
        low, high = gain["interval95"]
        assert row[2].replace("\N{MINUS SIGN}", "-") == f"{low:+.2f}% to {high:+.2f}%"
    covered = results["supervision"]["fm"]["vm"]
    assert rows(section(card, "Teachers"))["fm"][:2] == [
        "this run", f"{100 * covered['hit_rate']:.1f}% of {covered['examples']}"
    ]  # fmt: skip
    data, model = rows(section(card, "Data")), rows(section(card, "Model"))
    assert data["examples"] == [str(results["models"]["vm"]["examples"])]
    assert '"bucket": [0, 1]' in data["traffic"][0] and data["watermark"] == ["2023-11-21T00:00:00Z"]
    assert data["label: buy"] == ["column `buy`, known 2 d after the event"]
    assert '"name": "dlrm"' in model["backbone"][0] and model["look-ups of stored vectors at serving"] == ["none"]
    assert "buy is known 2 d after the event" in section(card, "Limitations")
    assert "backbone.dlrm" in section(card, "Versions")


def test_figures_without_results_are_equal(
    copied: exfm.Experiment, experiment: exfm.Experiment, tmp_path: Path
) -> None:
    with_results = section(card_of(experiment, "direct", tmp_path / "with"), "Figures")
    Path(copied.run_dir, "results.json").unlink()
    without = section(card_of(copied, "direct", tmp_path / "without"), "Figures")
    export(copied, "direct", str(tmp_path / "none"), PROGRAM, compute_figures=False)
    none = section((tmp_path / "none/MODEL_CARD.md").read_text(encoding="utf-8"), "Figures")
    assert "Not computed: no results.json ends with this snapshot, and --no-figures was given." in none
    assert rows(none) == {}
    assert without.splitlines()[1].startswith("Computed at export") and with_results != without
    assert without.splitlines()[2:] == with_results.splitlines()[2:]


def test_figures_end_with_an_older_snapshot(experiment: exfm.Experiment, tmp_path: Path) -> None:
    card = card_of(experiment, "vm", tmp_path / "vm", at="3")
    windows = [table for index, table in predictions(experiment.run_dir, "vm").items() if index <= 3]
    table = pa.concat_tables(windows)
    label, probability = (table[f"{kind}_click"].to_numpy() for kind in ("label", "prediction"))
    losses = -np.where(label == 1, np.log(probability), np.log1p(-probability))
    base = label.mean()
    entropy = -base * np.log(base) - (1 - base) * np.log1p(-base)
    click = rows(section(card, "Figures").split("Intervals of these")[0])["click"]
    assert click[0] == str(label.size) and float(click[1]) == pytest.approx(losses.mean() / entropy, abs=6e-5)
    assert float(click[5]) == pytest.approx(probability.sum() / label.sum(), abs=6e-5)
    assert rows(section(card, "Data"))["windows"][0].startswith("4 of 1d, from 2023-11-15")
    assert f"snapshot {json.loads((tmp_path / 'vm/inputs.json').read_text())['snapshot']}:" in card


def test_figures_that_cannot_be_computed_are_named(copied: exfm.Experiment, tmp_path: Path) -> None:
    Path(copied.run_dir, "results.json").unlink()
    next(Path(copied.run_dir, "predictions/vm").glob("*.parquet")).unlink()
    figures = section(card_of(copied, "vm", tmp_path / "vm"), "Figures")
    assert figures.strip().startswith("Not computed:") and "a committed file is missing" in figures
    assert "A gain over a control is not measured." in figures and rows(figures) == {}
    assert exfm.serving.load(str(tmp_path / "vm")).description.model == "vm"


def test_the_card_has_no_value_of_the_environment(experiment: exfm.Experiment, tmp_path: Path) -> None:
    card = card_of(experiment, "vm", tmp_path / "vm")
    assert "secret-place" not in card and "${oc.env:CARD_LOG}" in card


def test_held_snapshots_and_aliases(copied: exfm.Experiment, tmp_path: Path, exfm_cli: Any) -> None:
    assert exfm_cli("promote", copied.run_dir, "--model", "vm", "--version", "5", "--alias", "canary").status == 0
    state = rows(section(card_of(copied, "vm", tmp_path / "vm"), "State"))
    assert state["aliases at export"] == ["canary"] and state["state"] == ["published"]
    assert '"ne_tolerance": 0.1' in state["gate"][0]
    state = rows(section(card_of(copied, "vm.control", tmp_path / "control", at="4"), "State"))
    assert state["aliases at export"] == ["none"]


def test_a_teacher_of_another_run_and_a_start(experiment: exfm.Experiment, folder: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config["name"] = "taught"
    config["stream"]["source"]["path"] = str(folder / "secret-place")
    vm = config["models"]["vm"] | {"init_from": {"run": experiment.run_dir, "model": "vm", "at": "2"}, "control": False}
    config["models"] = {"late": vm | {"gate": {"windows": 1, "calibration": [0.99, 1.01], "min_labels": 1}}}
    memory = fsspec.filesystem("memory")
    memory.put(experiment.run_dir, "/user:secret@host/run", recursive=True)
    config["teachers"] = {"fm": {"run": "memory://user:secret@host/run", "model": "fm"}}
    taught = load(tmp_path, config)
    exfm.run(taught)
    version = next(s.version for s in Store(taught.run_dir).snapshots.committed("late") if s.held)
    card = card_of(taught, "late", tmp_path / "late", at=str(version))
    assert rows(section(card, "Teachers"))["fm"][0] == "model `fm` of the run `memory://***@host/run`"
    assert "secret@" not in card
    start = section(card, "Start")
    counters = Store(taught.run_dir).log.load("train", "late", 3).counters["init_from"]
    assert counters["origin"] in start and rows(start)["as they were"][0] == str(len(counters["loaded"])) != "0"
    assert rows(section(card, "State"))["state"][0].startswith("held; click: ")
    assert "The snapshot is held by the model's gate: click" in section(card, "Limitations")
    assert "there is no control" in section(card, "Limitations")


def test_the_lines_that_load_the_export_work(
    experiment: exfm.Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'exfm[onnx]'")
    export(experiment, "vm", str(tmp_path), Form(compiled=False, onnx=True))
    blocks = re.findall(r"^```python\n(.*?)^```$", (tmp_path / "MODEL_CARD.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for block in blocks:
            exec(block, names)
    expected = names["model"].predict(names["rows"])
    outputs = names["session"].run(list(expected), dict(zip(names["names"], names["tensors"], strict=True)))
    for probabilities, output in zip(expected.values(), outputs, strict=True):
        np.testing.assert_allclose(probabilities, output, rtol=0, atol=1e-6)


def test_the_hub_reads_the_metadata(experiment: exfm.Experiment, results: Mapping[str, Any], tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: pip install 'exfm[hub]'")
    data = hub.ModelCard(card_of(experiment, "vm", tmp_path / "vm")).data
    assert data.library_name == "exfm" and "distillation" in data.tags and data.model_name == "vm"
    read = {(entry.task_name, entry.metric_type): entry.metric_value for entry in data.eval_results}
    tasks = results["models"]["vm"]["tasks"]
    assert read == {(task, key): tasks[task][key] for task in ("click", "buy") for key in ("ne", "auc", "gauc")}


@given(st.text())
def test_text_of_the_user_stays_in_its_cell(text: str) -> None:
    cell = _code(text)
    assert len(cell.splitlines()) == 1 and not re.search(r"(?<!\\)\|", cell)
    assert cell == "\N{EN DASH}" or (cell[0] == cell[-1] == "`" and "`" not in cell[1:-1])
