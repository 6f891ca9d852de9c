"""Checks that supervision, snapshots and predictions do not depend on ``stream.chunk_rows`` if batches do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.training.logs import (
    DAY_US,
    START_US,
    experiment_dict,
    load,
    make_log,
    predictions,
    supervision,
    train,
    write_log,
)

DAYS = 4
BATCH = 64
ROWS_PER_DAY = 5 * BATCH  # whole batches, so that windows end with whole ones, and no whole number of larger chunks
CHUNKS = (64, 320)
FOLLOWED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "states": ({"states": {"user": ["user"]}, "state_dim": 4}, {"name": "compact_features", "teacher": "fm"}),
    "rows": ({"rows": ["user"]}, {"name": "parameter_sharing", "teacher": "fm", "parts": {"table/user": "added"}}),
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    table = make_log(DAYS * ROWS_PER_DAY)
    within = np.sort(np.random.default_rng(1).integers(0, DAY_US, (DAYS, ROWS_PER_DAY)), axis=1)
    time = START_US + (within + DAY_US * np.arange(DAYS)[:, None]).ravel()
    times = pa.array(time, pa.timestamp("us", "UTC"))
    table = table.set_column(table.column_names.index("event_time"), "event_time", times)
    return write_log(tmp_path_factory.mktemp("log"), table)


def run(log: str, folder: Path, chunk_rows: int, transfer: dict[str, Any] | None = None, **supervision: Any) -> str:
    run_dir = folder / f"chunks-{chunk_rows}"
    config = experiment_dict(log, str(run_dir))
    config["models"]["fm"] |= {"batch_size": BATCH, "supervision": supervision}
    config["models"]["vm"]["batch_size"] = BATCH // 2
    if transfer is not None:
        config["models"]["vm"]["transfer"] = [transfer]
    train(load(folder, config, f"stream.chunk_rows={chunk_rows}"))
    return str(run_dir)


def close(actual: pa.Table, expected: pa.Table, column: str) -> None:
    values, others = (table.column(column).to_numpy() for table in (actual, expected))
    np.testing.assert_allclose(values, others, rtol=0, atol=1e-6, err_msg=column)


@pytest.mark.parametrize("delay", ["0s", "6h", "1d", "36h"])
def test_supervision_does_not_depend_on_the_size_of_chunks(log: str, tmp_path: Path, delay: str) -> None:
    first, *others = (run(log, tmp_path, rows, delay=delay) for rows in CHUNKS)
    expected = supervision(first, "fm")
    assert len(expected) == DAYS and expected[DAYS - 1].num_rows == ROWS_PER_DAY
    for run_dir in others:
        actual = supervision(run_dir, "fm")
        for window, rows in expected.items():
            for column in ("example_id", "snapshot", "watermark"):
                assert actual[window].column(column).equals(rows.column(column)), (delay, run_dir, window, column)
            close(actual[window], rows, "prediction_click")
        for model in ("fm", "vm", "vm.control"):
            for window, rows in predictions(first, model).items():
                close(predictions(run_dir, model)[window], rows, "prediction_click")


@pytest.mark.parametrize("followed", FOLLOWED)
@pytest.mark.parametrize("lag", ["0s", "3h"])
def test_states_and_rows_reach_students_alike(log: str, tmp_path: Path, followed: str, lag: str) -> None:
    stored, transfer = FOLLOWED[followed]
    first, *others = (run(log, tmp_path, rows, transfer, lag=lag, **stored) for rows in CHUNKS)
    assert not predictions(first, "vm")[1].equals(predictions(first, "vm.control")[1])
    for run_dir in others:
        for window, rows in predictions(first, "vm").items():
            close(predictions(run_dir, "vm")[window], rows, "prediction_click")


def test_one_snapshot_labels_a_window_a_delay_before_its_start(log: str, tmp_path: Path) -> None:
    """Six hours after a window's start the snapshot of the window before is old enough for its later examples."""
    for window, rows in supervision(run(log, tmp_path, 64, delay="6h"), "fm").items():
        assert set(rows.column("snapshot").to_pylist()) == ({window - 2} if window >= 2 else set())
        watermarks = rows.column("watermark").cast(pa.int64()).to_pylist()
        assert set(watermarks) == ({START_US + (window - 1) * DAY_US} if window >= 2 else set())
