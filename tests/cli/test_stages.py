"""`exfm run`, `train`, `supervise` and `predict` as a user calls them, without a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exfm.supervision.store import Store


@pytest.fixture
def small(experiment: dict[str, Any], write: Any, tmp_path: Path) -> str:
    """Three small models over two days."""
    experiment["run_dir"] = str(tmp_path / "run")
    experiment["stream"]["source"] |= {"rows_per_day": 120}
    experiment["evaluation"] = {"replicates": 100}
    model = {"backbone": {"name": "mlp"}, "tasks": ["click"]}
    taught = model | {"transfer": [{"name": "direct", "teacher": "fm"}]}
    experiment["models"] = {"fm": model, "vm": taught, "other": model}
    return str(write(experiment))


def test_train_takes_several_models(small: str, tmp_path: Path, exfm_cli: Any) -> None:
    outcome = exfm_cli("train", small, "--model", "vm", "--model", "fm")
    assert outcome.status == 0 and outcome.out == "train vm, fm: 2 windows done; all there is\n"
    log = Store(str(tmp_path / "run")).log
    assert log.windows("train", "fm") == log.windows("train", "vm") == [0, 1]
    assert log.windows("train", "other") == []
    assert "no model is called 'wm'" in exfm_cli("train", small, "--model", "fm", "--model", "wm").err


def test_jobs_without_a_terminal_say_where_they_are(small: str, tmp_path: Path, exfm_cli: Any) -> None:
    ran = exfm_cli("run", small)
    assert ran.status == 0 and "window 1 of 2" in ran.err and "rows/s, NE fm " in ran.err
    predicted = exfm_cli("predict", small, "--model", "vm", "--out", str(tmp_path / "vm.parquet"))
    assert predicted.status == 0 and "window 2 of 2" in predicted.err
    assert exfm_cli("train", small, "--model", "other").status == 0
