"""Measures the commit of a window in which few rows of a large table change, and its files: full snapshots and deltas.

Each window looks up so many random rows of a table with AdaGrad, whose sums are as large as the table.

    python benchmarks/deltas.py --table-rows 10000000 --touched 2048 --windows 4 [--plan hsdp_2d --processes 2]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

import exfm
from exfm.experiment.run import build_plan
from exfm.scheduling.identity import open_run
from exfm.supervision.store import open_store
from exfm.testing.torchrun import launch
from exfm.training.loop import StreamLoop

HOUR_US = 3_600_000_000
WIDTH = 16


def write_log(path: Path, table_rows: int, touched: int, windows: int) -> None:
    """Writes windows of an hour, with a row for each row of the table that is looked up."""
    random, count = np.random.default_rng(0), touched * windows
    columns: dict[str, Any] = {
        "example_id": np.arange(count),
        "event_time": pa.array(np.arange(count) * HOUR_US // touched, pa.timestamp("us")),
        "item": random.integers(0, table_rows, count),
        "price": random.normal(size=count),
        "click": random.integers(0, 2, count).astype(np.int8),
    }
    path.mkdir()
    pq.write_table(pa.table(columns), path / "log.parquet")


def experiment(folder: Path, table_rows: int, full_every: int, plan: str) -> dict[str, Any]:
    """Describes a model of the table and a number."""
    features: list[dict[str, Any]] = [
        {"name": "item", "kind": "categorical", "rows": table_rows, "ids": "row"},
        {"name": "price", "kind": "dense"},
    ]
    source = {"name": "parquet", "path": str(folder / "log"), "features": features, "labels": [{"name": "click"}]}
    model = {"backbone": {"name": "mlp", "hidden": [16]}, "embedding_dim": WIDTH, "batch_size": 256}
    model["keep"] = {"full_snapshot_every": full_every}
    return {
        "name": "deltas",
        "run_dir": str(folder / f"run-{full_every}"),
        "stream": {"source": source, "window": "1h"},
        "models": {"fm": model},
        "parallel": {"name": plan, "device": "cpu"},
    }


def run(path: Path, windows: int, out: Path) -> None:
    """Runs the windows; the first process writes for each the seconds of its commit, and the bytes of its snapshot."""
    loaded = exfm.load_experiment(str(path))
    store = open_store(loaded)
    plan = build_plan(loaded)
    if plan.process_group.is_rank_zero:
        open_run(loaded, store)
    plan.process_group.barrier()
    loop = StreamLoop(loaded, store, plan, lambda _: None)
    measured: list[tuple[float, int]] = []
    for number in range(windows):
        before = loop.clock.commit
        loop.advance(first_windows=number + 1)
        size = sum(file.bytes for file in store.snapshots.files("fm", number))
        measured.append((loop.clock.commit - before, size))
    if plan.process_group.is_rank_zero:
        out.write_text(json.dumps(measured))


def main() -> None:
    """Prints milliseconds and bytes of each window."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--table-rows", type=int, default=10_000_000)
    parser.add_argument("--touched", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--plan", default="single")
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="exfm-deltas-") as name:
        folder = Path(name)
        write_log(folder / "log", options.table_rows, options.touched, options.windows)
        for kind, full_every in (("full", 1), ("deltas", options.windows)):
            path, out = folder / f"{kind}.yaml", folder / f"{kind}.json"
            path.write_text(yaml.safe_dump(experiment(folder, options.table_rows, full_every, options.plan)))
            if options.processes == 1:
                run(path, options.windows, out)
            else:
                launch(run, path, options.windows, out, processes=options.processes)
            for number, (seconds, size) in enumerate(json.loads(out.read_text())):
                print(f"{kind:<8} window {number}: {1000 * seconds:8.1f} ms, {size:>14,} bytes")


if __name__ == "__main__":
    main()
