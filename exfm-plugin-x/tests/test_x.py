"""`x`: what exfm requires of a data source, and what this one promises."""

from __future__ import annotations

import shutil
from pathlib import Path

import exfm
import pytest
from exfm.testing import DataSourceTests

import exfm_plugin_x
from exfm_plugin_x.source import XSource

EXAMPLE = Path(__file__).parents[1] / "examples" / "x.yaml"
LOG = EXAMPLE.with_name("log.csv")


class TestXSource(DataSourceTests):
    component = XSource
    plugin = exfm_plugin_x
    configs = ({"path": "{folder}/log.csv"}, {"path": "file://{folder}/log.csv", "users": 50, "items": 20})

    def write(self, folder: Path) -> None:
        shutil.copy(LOG, folder)


def test_a_file_that_is_not_there() -> None:
    source = XSource(XSource.Config(path="nowhere.csv"))
    with pytest.raises(ValueError, match=r"nowhere\.csv cannot be read"):
        source.time_range()


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("id,time,user,click\n1,2026-01-01 00:00:00,ann,1\n")
    source = XSource(XSource.Config(path=str(path)))
    with pytest.raises(ValueError, match="item"):
        source.time_range()


def test_the_example_runs(tmp_path: Path) -> None:
    smaller = [f"stream.source.path={LOG}"]
    experiment = exfm.load_experiment(str(EXAMPLE), [f"run_dir={tmp_path / 'run'}", *smaller])
    results = exfm.run(experiment)
    assert all(task["log_loss"] < 1 for model in results["models"].values() for task in model["tasks"].values())
