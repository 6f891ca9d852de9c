"""Runs over an Iceberg table: equal to those over Parquet files, while the table is compacted, evolves and grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import exfm
from exfm.storage.late_log import LateLog
from exfm.supervision.store import Store
from tests.plugins.test_iceberg import Lake, delete_rows, properties
from tests.training.logs import experiment_dict, load, make_log, predictions, train, write_log

pytest.importorskip("pyiceberg", reason="needs the package pyiceberg")


def config(folder: Path, run_dir: Path, **source: Any) -> dict[str, Any]:
    whole = experiment_dict("x", str(run_dir))
    fields = whole["stream"]["source"]
    del fields["path"]
    fields |= {"name": "iceberg", "table": "ads.log", "properties": properties(folder), **source}
    return whole | {"models": {"fm": whole["models"]["fm"]}}


def test_a_table_that_changes_gives_the_run_of_parquet(tmp_path: Path) -> None:
    """Renamed columns and partitions change nothing, a compaction makes no row late, and later snapshots go on."""
    log = make_log(600)
    plain = experiment_dict(write_log(tmp_path / "parquet", log), str(tmp_path / "plain"))
    train(load(tmp_path, plain | {"models": {"fm": plain["models"]["fm"]}}))
    expected = predictions(str(tmp_path / "plain"), "fm")
    mixed = log.take(pa.array(np.random.default_rng(0).permutation(300)))
    run = config(tmp_path, tmp_path / "run")
    with Lake(tmp_path) as lake:
        lake.write(mixed.rename_columns([f"old_{name}" if name == "item" else name for name in log.column_names]))
        lake.rename(old_item="item")
        train(load(tmp_path, run))
        lake.write(log.slice(300))
        lake.table().overwrite(lake.table().scan().to_arrow())
        exfm.run(load(tmp_path, run))
        actual = predictions(run["run_dir"], "fm")
        assert actual.keys() == expected.keys() and len(actual) > 3
        # The first commit ended inside a window, whose later rows came too late.
        late = sum(rows.count for rows in LateLog(Store(run["run_dir"]).workspace).all("fm"))
        inside = sum(expected[key].num_rows - actual[key].num_rows for key in actual)
        assert late == inside
        whole = config(tmp_path, tmp_path / "whole")
        train(load(tmp_path, whole))
        actual = predictions(whole["run_dir"], "fm")
        assert all(actual[key].equals(expected[key]) for key in expected)
        delete_rows(lake.table(), None, [3])
        extra = log.slice(0, 5).set_column(0, "example_id", pa.array(np.arange(5) + 10**6))
        lake.write(extra)
        assert exfm.run(load(tmp_path, whole))["data"]["late_rows"] == 5
