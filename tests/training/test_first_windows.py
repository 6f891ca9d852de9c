"""`exfm run --windows N`: the first windows alone, and a later run that goes on from there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest

import exfm
from tests.conftest import Outcome
from tests.training.logs import (
    DAY_US,
    START_US,
    differences,
    experiment_dict,
    load,
    make_log,
    predictions,
    write_log,
)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six days, the second without a row."""
    table = make_log(600)
    day = (pc.cast(table["event_time"], "int64").to_numpy() - START_US) // DAY_US
    return write_log(tmp_path_factory.mktemp("log"), table.filter(np.asarray(day != 1)))


def config(log: str, run_dir: str) -> dict[str, Any]:
    return experiment_dict(log, run_dir, labels=("click", "buy"))


def test_a_run_goes_on_after_its_first_windows(log: str, tmp_path: Path) -> None:
    undisturbed = exfm.run(load(tmp_path, config(log, str(tmp_path / "undisturbed"))))
    experiment = load(tmp_path, config(log, str(tmp_path / "run")))
    first = exfm.run(experiment, windows=2)
    assert sorted(predictions(experiment.run_dir, "fm")) == [0, 2]
    assert first["time"]["stopped"] and "stopped after 2 windows" in first["notes"][0]
    # The same call has nothing more to do, and still says so.
    again = exfm.run(experiment, windows=2)
    assert differences(again, first) == [] and again["time"]["windows_done"] == 0
    further = exfm.run(experiment, windows=3)
    assert sorted(predictions(experiment.run_dir, "fm")) == [0, 2, 3]
    assert "stopped after 3 windows" in further["notes"][0]
    results = exfm.run(experiment)
    assert not results["time"]["stopped"]
    assert differences(results, undisturbed) == []
    for model in ("fm", "vm", "vm.control"):
        expected = predictions(str(tmp_path / "undisturbed"), model)
        assert predictions(experiment.run_dir, model) == expected


def test_a_run_of_all_its_windows_is_not_stopped(log: str, tmp_path: Path) -> None:
    experiment = load(tmp_path, config(log, str(tmp_path / "run")))
    results = exfm.run(experiment, windows=5)
    assert not results["time"]["stopped"] and not [note for note in results["notes"] if "stopped" in note]
    assert differences(exfm.run(experiment), results) == []


def test_the_command_takes_a_window_at_least(log: str, tmp_path: Path, exfm_cli: Callable[..., Outcome]) -> None:
    experiment = load(tmp_path, config(log, str(tmp_path / "run")))
    with pytest.raises(exfm.ConfigError, match="at least 1 window; given: 0"):
        exfm.run(experiment, windows=0)
    done = exfm_cli("run", str(tmp_path / "test.yaml"), "--windows", "1")
    assert done.status == 0 and "stopped at the end of the first window;" in done.out
    # Refused before --fresh removes anything.
    refused = exfm_cli("run", str(tmp_path / "test.yaml"), "--fresh", "--windows", "0")
    assert refused.status == 2 and "--windows" in refused.err
    assert list(predictions(experiment.run_dir, "fm")) == [0]
