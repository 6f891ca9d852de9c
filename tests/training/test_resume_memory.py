"""A resume takes no more memory than the training that it goes on with: no table is there twice."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

import exfm
from exfm.cli.main import main
from tests.processes import run_function
from tests.training.logs import experiment_dict, load, make_log

ROWS, WIDTH = 4_000_000, 4
MIB = 1 << 20


def _print_peak(path: str) -> None:
    sys.argv = ["exfm", "run", path]
    try:
        main()
    finally:
        print(f"peak: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}")


def peak_bytes(path: Path) -> int:
    """Peak resident memory of an `exfm run`."""
    done = run_function(_print_peak, str(path))
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rpartition("peak: ")[2])


def large_tables(folder: Path, run_dir: str) -> dict[str, Any]:
    """A small model on a large table."""
    config = experiment_dict(str(folder / "log"), run_dir)
    config["stream"]["source"]["features"] = [{"name": "user", "kind": "categorical", "rows": ROWS}]
    config["stream"]["window"] = "3d"
    model = {"backbone": {"name": "mlp"}, "embedding_dim": WIDTH, "batch_size": 64}
    config["models"] = {"fm": model}
    return config


def test_a_resume_holds_no_table_twice(tmp_path: Path) -> None:
    log = make_log(rows=60)
    half = log.num_rows // 2
    (tmp_path / "log").mkdir()
    path = tmp_path / "large.yaml"
    path.write_text(yaml.safe_dump(large_tables(tmp_path, str(tmp_path / "run"))))
    pq.write_table(log.slice(0, half), tmp_path / "log" / "0.parquet")
    trained = peak_bytes(path)
    pq.write_table(log.slice(half), tmp_path / "log" / "1.parquet")
    resumed = peak_bytes(path)
    table = ROWS * WIDTH * 4
    assert resumed < trained + table / 2, f"{trained / MIB:.0f} MiB, then {resumed / MIB:.0f} MiB"


def test_tables_that_no_memory_can_hold_are_named(tmp_path: Path) -> None:
    config = large_tables(tmp_path, str(tmp_path / "run"))
    config["stream"]["source"]["features"][0]["rows"] = 10**12
    (tmp_path / "log").mkdir()
    pq.write_table(make_log(rows=60), tmp_path / "log" / "0.parquet")
    named = (
        r"models\.fm: no memory for its tables, 16,000,000,000,000 bytes .*'user', 1,000,000,000,000 rows of 4.*plan"
    )
    with pytest.raises(exfm.RunError, match=named):
        exfm.run(load(tmp_path, config))
