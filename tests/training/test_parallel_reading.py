"""Four processes that read a share each: bytes of the log, and a run on a log with bad rows, in a single launch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import exfm
from tests.processes import torchrun
from tests.training import reading_worker
from tests.training.logs import experiment_dict, make_log, predictions

PROCESSES = 4


def write_wide_log(folder: Path) -> None:
    """Four files of four row groups, about 1 kB a row."""
    random = np.random.default_rng(0)
    for number in range(4):
        first, rows = 1000 * number, 1000
        columns: dict[str, Any] = {
            "example_id": np.arange(first, first + rows),
            "event_time": pa.array(np.arange(first, first + rows), pa.timestamp("us")),
            "item": random.integers(0, 64, rows),
            "click": random.integers(0, 2, rows),
            "text": pa.FixedSizeListArray.from_arrays(pa.array(random.normal(size=rows * 250).astype(np.float32)), 250),
        }
        pq.write_table(pa.table(columns), folder / f"part-{number}.parquet", row_group_size=250)


def write_bad_log(folder: Path) -> None:
    """Files of several types that overlap in time, with bad labels, rows without a time, and ids that repeat."""
    random = np.random.default_rng(1)
    log = make_log(rows=400)
    label = np.where(random.random(400) < 0.05, 9, log["click"].to_numpy())
    ids = log["example_id"].to_numpy().copy()
    ids[random.integers(0, 400, 20)] = ids[random.integers(0, 400, 20)]
    time = log["event_time"].to_numpy()
    log = log.set_column(6, "click", pa.array(label)).set_column(0, "example_id", pa.array(ids))
    log = log.set_column(1, "event_time", pa.array(time, pa.timestamp("us"), mask=random.random(400) < 0.02))
    writer = random.integers(0, 3, 400)
    for number, price in enumerate((pa.float64(), pa.float32(), pa.decimal128(20, 10))):
        rows = log.filter(pa.array(writer == number))
        rows = rows.set_column(4, "price", pa.array(rows["price"].to_numpy().round(6)).cast(pa.float32()).cast(price))
        if number == 1:
            rows = rows.set_column(2, "user", rows["user"].cast(pa.int16()).combine_chunks().dictionary_encode())
        pq.write_table(rows, folder / f"part-{number}.parquet", row_group_size=17)


def job(folder: Path, name: str) -> dict[str, Any]:
    """A run of an FM; a label of it is known two days late, when the rows are read again."""
    config = experiment_dict(str(folder / "bad"), str(folder / name), labels=("click", "buy"))
    config["models"] = {"fm": config["models"]["fm"] | {"batch_size": 32}}
    config["stream"] |= {"on_bad_row": "skip", "chunk_rows": 45}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return {"config": str(path), "overrides": [], "log": []}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The logs, and a run of a single process and of four."""
    folder = tmp_path_factory.mktemp("reading")
    for name, write in (("wide", write_wide_log), ("bad", write_bad_log)):
        (folder / name).mkdir()
        write(folder / name)
    exfm.run(exfm.load_experiment(job(folder, "single")["config"]))
    four = job(folder, "four") | {"overrides": ["parallel.name=ddp"]}
    torchrun(reading_worker.main, str(folder / "wide"), folder, [four], processes=PROCESSES)
    return folder


def test_a_process_reads_its_share_of_the_bytes(folder: Path) -> None:
    whole = reading_worker.bytes_read(str(folder / "wide"), exfm.sources.Shard())
    assert whole > 4_000_000
    for rank in range(PROCESSES):
        assert json.loads((folder / f"bytes-{rank}").read_text()) < 1.3 / PROCESSES * whole


def test_bad_rows_are_left_out_as_by_a_single_process(folder: Path) -> None:
    four, single = (json.loads((folder / name / "results.json").read_text())["data"] for name in ("four", "single"))
    assert four["skipped"] == single["skipped"]
    assert {"click", "event_time", "example_id"} <= single["skipped"].keys()
    actual, expected = (predictions(str(folder / name), "fm") for name in ("four", "single"))
    assert actual.keys() == expected.keys()
    for window, rows in expected.items():
        assert actual[window]["example_id"].equals(rows["example_id"])
        for column in rows.column_names:
            if pa.types.is_floating(rows[column].type):
                far = np.abs(actual[window][column].to_numpy() - rows[column].to_numpy())
                assert np.nanmax(far, initial=0.0) < 1e-5, column
