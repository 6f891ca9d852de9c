"""A job reads the columns that its models need, and few bytes beside them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import exfm
from exfm.config.needed_columns import to_train
from tests.training.logs import experiment_dict, load, make_log, predictions, train, write_log

ROWS = 60_000


def read_bytes() -> int:
    """Returns the number of bytes that this process has read from files."""
    counted = re.search(r"^rchar: (\d+)", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert counted is not None
    return int(counted[1])


def wide_log(folder: Path) -> Path:
    """Writes a log of 60 columns, of which a model reads few."""
    random = np.random.default_rng(0)
    log = make_log(ROWS)
    for number in range(52):
        log = log.append_column(f"other_{number}", pa.array(random.integers(0, 2**40, ROWS)))
    folder.mkdir()
    pq.write_table(log, folder / "log.parquet", row_group_size=20_000)
    return folder / "log.parquet"


def column_bytes(path: Path, columns: set[str]) -> int:
    """Returns the size of some columns of a file."""
    metadata = pq.read_metadata(path)
    total = 0
    for group in range(metadata.num_row_groups):
        for index in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(index)
            if chunk.path_in_schema.split(".")[0] in columns:
                total += chunk.total_compressed_size
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel counts the bytes")
def test_a_job_of_a_feature_and_a_label_reads_their_columns(tmp_path: Path) -> None:
    path = wide_log(tmp_path / "log")
    config = experiment_dict(str(tmp_path / "log"), str(tmp_path / "run"))
    source = config["stream"]["source"]
    source["features"] += [{"name": f"other_{number}", "kind": "categorical", "rows": 64} for number in range(52)]
    config["models"]["vm"] |= {"features": ["item"], "transfer": [], "control": False}
    config["stream"] |= {"chunk_rows": 16_384, "window": "6d"}
    experiment = load(tmp_path, config)
    arm = next(arm for arm in experiment.arms if arm.name == "vm")
    job = to_train(experiment, [arm])
    needed = {"example_id", "event_time", "user", "item", "click"}
    assert set(job.schema.columns) == needed
    time = job.source.time_range()
    before = read_bytes()
    rows = sum(batch.num_rows for batch in job.source.read(exfm.sources.Window(0, time.start_us, time.end_us)))
    assert rows == ROWS
    assert read_bytes() - before <= 1.3 * column_bytes(path, needed) < 0.1 * path.stat().st_size


def test_a_job_alone_predicts_as_beside_the_models_that_read_more(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_log(600))
    config = experiment_dict(log, str(tmp_path / "together"))
    config["models"]["vm"] |= {"transfer": [], "control": False}
    train(load(tmp_path, config))
    alone: dict[str, Any] = {**config, "name": "alone", "run_dir": str(tmp_path / "alone")}
    alone["models"] = {"vm": config["models"]["vm"]}
    experiment = load(tmp_path, alone)
    assert {feature.name for feature in to_train(experiment, experiment.arms).schema.features} == {"user", "item"}
    train(experiment)
    for window, rows in predictions(alone["run_dir"], "vm").items():
        assert rows.equals(predictions(config["run_dir"], "vm")[window])


def test_all_columns_are_read_where_bad_rows_are_skipped(tmp_path: Path) -> None:
    config = experiment_dict(write_log(tmp_path / "log", make_log(60)), str(tmp_path / "run"))
    config["stream"]["on_bad_row"] = "skip"
    experiment = load(tmp_path, config)
    assert to_train(experiment, [arm for arm in experiment.arms if arm.name == "vm"]) is experiment
