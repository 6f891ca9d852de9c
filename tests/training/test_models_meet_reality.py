"""Mistakes around models that come and go are said, and other files' models are looked after."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import exfm
from tests.training.logs import experiment_dict, load, make_log, predictions, train, write_log

Cli = Callable[..., Any]
ROWS = 300


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_log(tmp_path_factory.mktemp("log"), make_log(ROWS))


def test_repair_and_rollback_know_the_models_of_other_files(log: str, tmp_path: Path, exfm_cli: Cli) -> None:
    run_dir = str(tmp_path / "run")
    config = experiment_dict(log, run_dir)
    train(load(tmp_path, config))
    other = copy.deepcopy(config)
    other["models"] = {"other": config["models"]["fm"]}
    train(load(tmp_path, other))
    file = min((tmp_path / "run" / "predictions" / "vm").glob("*.parquet"))
    whole = file.read_bytes()
    file.write_bytes(b"garbage")
    outcome = exfm_cli("repair", run_dir, "--dry-run")
    assert "damaged" in outcome.out and "vm" in outcome.out and "nothing damaged" not in outcome.out
    file.write_bytes(whole)
    assert exfm_cli("promote", run_dir, "--model", "vm", "--version", "latest").status == 0
    assert "vm" in exfm_cli("snapshots", run_dir).out


def test_a_teacher_cannot_be_of_the_run_itself(log: str, tmp_path: Path) -> None:
    config = experiment_dict(log, str(tmp_path / "run"))
    del config["models"]["vm"]
    train(load(tmp_path, config))
    student = experiment_dict(log, str(tmp_path / "run"))
    del student["models"]["fm"]
    student["teachers"] = {"fm": {"run": f"{tmp_path / 'run'}/", "model": "fm"}}
    with pytest.raises(exfm.ConfigError, match=r"teachers\.fm\.run: .* is this experiment's own run_dir"):
        load(tmp_path, student)


@pytest.mark.parametrize("wrong", [{"fresh": ["backbones"]}, {"map": {"usr": "user"}}])
def test_names_that_match_nothing_are_refused(wrong: dict[str, Any], log: str, tmp_path: Path) -> None:
    config = experiment_dict(log, str(tmp_path / "run"))
    del config["models"]["vm"]
    train(load(tmp_path, config))
    config["models"]["child"] = config["models"]["fm"] | {
        "init_from": {"model": "fm", **wrong},
        "start": "2023-11-20T00:00:00Z",
    }
    (key,) = wrong
    with pytest.raises(
        exfm.ConfigError, match=rf"init_from\.{key}: the model has no tensor, table or task .*Did you mean"
    ):
        train(load(tmp_path, config))


def test_late_labels_of_examples_before_the_start_are_not_the_models(log: str, tmp_path: Path) -> None:
    config = experiment_dict(log, str(tmp_path / "run"), labels=("click", "buy"))
    alone = {**config["models"]["vm"], "transfer": [], "control": False}
    config["models"] = {"later": {**alone, "start": "2023-11-18T00:00:00Z"}}
    train(load(tmp_path, config))
    cut = copy.deepcopy(config)
    cut["run_dir"] = str(tmp_path / "cut")
    cut["stream"]["start"] = cut["models"]["later"].pop("start")
    train(load(tmp_path, cut))
    columns = [name for name in predictions(cut["run_dir"], "later")[0].column_names if name != "window"]
    actual, expected = predictions(config["run_dir"], "later"), predictions(cut["run_dir"], "later")
    assert [actual[window].select(columns) for window in (3, 4, 5)] == [expected[n].select(columns) for n in (0, 1, 2)]


def test_epochs_before_the_start_are_refused(log: str, tmp_path: Path) -> None:
    config = experiment_dict(log, str(tmp_path / "run"))
    config["models"]["vm"] |= {"start": "2023-11-18", "epochs": {"count": 2, "until": "2023-11-17"}}
    with pytest.raises(exfm.ConfigError, match=r"models\.vm\.epochs\.until: .* is not after the model's start"):
        load(tmp_path, config)


def test_a_back_fill_outside_the_stream_is_an_error(log: str, tmp_path: Path, exfm_cli: Cli) -> None:
    config = experiment_dict(log, str(tmp_path / "run"))
    train(load(tmp_path, config))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    outcome = exfm_cli("supervise", str(path), "--model", "fm", "--backfill", "2030-01-01..2030-01-02")
    assert outcome.status == 2 and "no window of the stream begins in that time" in outcome.err
