"""The teacher's embedding of the example as an input: causal, masked where there is none, alike in every way to run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import exfm
from exfm.scheduling.identity import open_run
from exfm.supervision.store import Store
from exfm.training.loop import StreamLoop
from tests.processes import torchrun
from tests.training import parallel_worker
from tests.training.interruption import run_interrupted
from tests.training.logs import differences, experiment_dict, load, make_log, predictions, supervision, train, write_log
from tests.training.test_teacher_inputs import flipped_clicks, trainer_of, without_history

PAIR = {"name": "pair_embedding", "teacher": "fm"}
CHUNK = 128
ROWS = 400


def config(folder: Path, name: str, log: pa.Table | None = None, **vm: Any) -> dict[str, Any]:
    """An FM that stores its representation, in batches of 64, and a VM that reads it, in batches of 32."""
    path = write_log(folder / f"log-{name}", make_log() if log is None else log)
    settings = experiment_dict(path, str(folder / name))
    settings["models"]["fm"]["supervision"] = {"embedding": "float16"}
    settings["models"]["vm"] |= {"batch_size": 32, "transfer": [], "inputs": [dict(PAIR)]} | vm
    return settings


def clicks(run_dir: str, model: str) -> np.ndarray:
    """A model's predictions in the order of the stream."""
    return pa.concat_tables(predictions(run_dir, model).values()).column("prediction_click").to_numpy()


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a run over the beginning of the log."""
    folder = tmp_path_factory.mktemp("short")
    experiment = load(folder, config(folder, "run", make_log().slice(0, ROWS)))
    train(experiment)
    return experiment.run_dir


@pytest.mark.parametrize(("change", "changed"), [(flipped_clicks, 5), (flipped_clicks, 100), (without_history, 40)])
def test_a_prediction_depends_on_the_example_and_on_no_label_of_its_batch(
    short: str, tmp_path: Path, change: Callable[[pa.Table, int], pa.Table], changed: int
) -> None:
    """With a log that differs from a row on, predictions change from that row on, or from the batch after its label.

    The FM alone sees the history, and its embedding of the changed example itself reaches the VM at once.
    """
    first = CHUNK + changed
    experiment = load(tmp_path, config(tmp_path, "changed", change(make_log().slice(0, ROWS), first)))
    train(experiment)
    same = clicks(short, "vm") == clicks(experiment.run_dir, "vm")
    end = first if change is without_history else first // 32 * 32 + 32
    assert same[:end].all() and not same[end]


def test_a_label_changes_no_embedding_of_its_own_example(short: str, tmp_path: Path) -> None:
    """With other labels from a row on, the stored embeddings differ only after the FM's batch that holds it."""
    other = load(tmp_path, config(tmp_path, "other", flipped_clicks(make_log(), CHUNK + 70).slice(0, ROWS)))
    train(other)
    embeddings = []
    for run_dir in (short, other.run_dir):
        rows = pa.concat_tables(supervision(run_dir, "fm").values())
        embeddings.append(np.array(rows.column("embedding").to_pylist()))
    same = (embeddings[0] == embeddings[1]).all(axis=1)
    assert same[: CHUNK + 128].all() and not same[CHUNK + 128 :].all()


def settings_of(folder: Path, name: str, delay: str = "0s", **supervision_fields: Any) -> dict[str, Any]:
    settings = config(folder, name, make_log(900))
    settings["models"]["fm"]["supervision"] |= {"delay": delay, **supervision_fields}
    return settings


def test_an_interrupted_run_ends_alike_and_says_its_lookups_and_coverage(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "whole", embedding="int8")
    settings["models"]["fm"]["where"] = {"user": {"bucket": 0, "of": 2}}
    whole = exfm.run(load(tmp_path, settings))
    experiment = load(tmp_path, {**settings, "run_dir": str(tmp_path / "interrupted")})
    assert not differences(run_interrupted(experiment, 8), whole)
    marked = {name: model["serving_lookups"] for name, model in whole["models"].items()}
    assert marked == {"fm": [], "vm": ["fm.embedding (of each pair)"], "vm.control": []}
    rows = pa.concat_tables(supervision(experiment.run_dir, "fm").values())
    stored = len(rows) - rows.column("prediction_click").null_count
    seen = whole["supervision"]["fm"]["vm"]
    assert seen["hit_rate"] == pytest.approx(stored / seen["examples"]) and 0.3 < seen["hit_rate"] < 0.7


def test_separate_jobs_with_a_delay_end_alike(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "whole", delay="1d", embedding_dim=6)
    whole = exfm.run(load(tmp_path, settings))
    experiment = load(tmp_path, {**settings, "run_dir": str(tmp_path / "jobs")})
    store = Store(experiment.run_dir)
    open_run(experiment, store)
    plan = experiment.config.parallel.build()
    for trained, label in ((["fm"], []), ([], ["fm"]), (["vm", "vm.control"], [])):
        assert StreamLoop(experiment, store, plan, lambda _: None, trained, label).advance()
    assert not differences(exfm.run(experiment), whole)
    assert whole["supervision"]["fm"]["vm"]["age_s"] > 86_400


@pytest.mark.soak  # processes take long to start
def test_two_processes_predict_as_one(tmp_path: Path) -> None:
    """Batches of 4 of few users, so that a process often has no row of a batch and computes with a blank example."""
    log = make_log(240)
    few = {"batch_size": 4, "where": {"user": {"bucket": [0, 1], "of": 5}}, "control": False}
    single = config(tmp_path, "one", log, **few)
    single["stream"]["chunk_rows"], single["models"]["fm"]["batch_size"] = 26, 9
    train(load(tmp_path, single))
    two = {**single, "name": "two", "run_dir": str(tmp_path / "two"), "parallel": {"name": "ddp"}}
    load(tmp_path, two)
    torchrun(
        parallel_worker.main,
        [{"config": str(tmp_path / "two.yaml"), "overrides": [], "log": []}],
        tmp_path / "killed",
        processes=2,
    )
    actual, expected = (clicks(str(tmp_path / name), "vm") for name in ("two", "one"))
    assert expected.size > 40
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [None, 6])
def test_the_control_has_none_and_the_width_is_that_of_the_stored_embedding(tmp_path: Path, width: int | None) -> None:
    """Without ``embedding_dim`` the width is that of the FM's backbone, which sees features that the VM does not."""
    experiment = load(tmp_path, settings_of(tmp_path, "run", embedding_dim=width))
    fm, vm, control = (trainer_of(experiment, name).model for name in ("fm", "vm", "vm.control"))
    assert control.inputs is None and vm.inputs is not None
    assert vm.inputs.embedding_dims == {"fm": width or fm.backbone.output_dim}
    student, plain = vm.state_dict(), control.state_dict()
    assert all(name.startswith("inputs.components.0.") for name in student.keys() - plain.keys())
    unequal = {name for name in plain if not torch.equal(student[name], plain[name])} if width is None else set()
    assert all(name.startswith("backbone.") for name in unequal)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "fmm"}, r"models\.vm\.inputs\.0\.teacher: no model is called 'fmm'\. Did you mean 'fm'"),
        ({"teacher": "vendor"}, r"inputs\.0\.teacher: 'vendor' is a teacher from elsewhere, which stores no embedding"),
        ({"teacher": "plain"}, r"inputs\.0\.teacher: .*write models\.plain\.supervision\.embedding: float16"),
        ({"entities": ["user"]}, r"inputs\.0\.entities: .* of no entity; leave entities out\. Given: \['user'\]"),
        ({"teacher": "vm"}, r"inputs\.0\.teacher: 'vm' stores no embedding of its examples"),
    ],
)
def test_wrong_inputs_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    settings = config(tmp_path, "run", inputs=[PAIR | changes])
    settings["models"]["plain"] = {"backbone": {"name": "mlp"}, "batch_size": 64}
    settings["teachers"] = {"vendor": {"path": "nowhere", "predictions": {"click": {"column": "p", "kind": "logit"}}}}
    with pytest.raises(exfm.ConfigError, match=message):
        load(tmp_path, settings)


def test_a_cycle_and_a_late_label_are_refused(tmp_path: Path) -> None:
    cycle = config(tmp_path, "cycle", supervision={"embedding": "float16"})
    cycle["models"]["fm"]["inputs"] = [{"name": "pair_embedding", "teacher": "vm"}]
    with pytest.raises(exfm.ConfigError, match=r"inputs: teachers form a cycle"):
        load(tmp_path, cycle)
    late = config(tmp_path, "late")
    late["stream"]["source"]["labels"].append({"name": "buy", "delay": "2d"})
    message = r"models\.vm\.inputs: buy is known late, and the teacher's embedding .* at once: click"
    with pytest.raises(exfm.ConfigError, match=message):
        load(tmp_path, late)


def test_epochs_read_the_embeddings_of_the_first_pass(tmp_path: Path) -> None:
    """Further passes change the predictions after them and none before, with the embeddings that are stored."""
    runs = []
    for name, epochs in (("once", {}), ("twice", {"epochs": {"count": 2, "until": "2023-11-17"}})):
        experiment = load(tmp_path, config(tmp_path, name, make_log(600), **epochs))
        train(experiment)
        runs.append(predictions(experiment.run_dir, "vm"))
    same = [runs[0][window].equals(runs[1][window]) for window in runs[0]]
    assert same[:2] == [True, True] and not any(same[2:])


@pytest.mark.parametrize("stored", [{}, {"embedding_dim": 6}])
def test_an_embedding_of_another_run_is_read(stored: dict[str, Any], tmp_path: Path) -> None:
    lender = settings_of(tmp_path, "lender", **stored)
    train(load(tmp_path, lender))
    settings = {**lender, "run_dir": str(tmp_path / "borrower"), "models": {"vm": lender["models"]["vm"]}}
    settings["teachers"] = {"fm": {"run": str(tmp_path / "lender"), "model": "fm"}}
    experiment = load(tmp_path, settings)
    train(experiment)
    np.testing.assert_array_equal(clicks(experiment.run_dir, "vm"), clicks(str(tmp_path / "lender"), "vm"))
